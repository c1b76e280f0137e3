"""The driver of a sweep: check, claim the folder, run the trials, rank them, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.console import Console

import native
from orchestrator.cluster.connection import ClusterWatch, connected, while_it_lasts
from orchestrator.cluster.nodes import alive_nodes
from orchestrator.cluster.placement import place
from orchestrator.config.places import bucket_of, folder_of
from orchestrator.config.resolve import ResolvedExperiment, Template, diff
from orchestrator.config.scalars import Json
from orchestrator.config.schema import PARAMETERS, Experiment
from orchestrator.errors import ConfigError, OrchestratorError, PreemptedError, error_with, say
from orchestrator.runs.digests import identity_tree
from orchestrator.runs.driver import say_usable
from orchestrator.runs.plan import make_plan
from orchestrator.runs.report import say_next, say_where
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import (
    IDENTITY,
    STOP,
    SWEEP_JOURNAL,
    SWEEP_JOURNALS,
    trial_name,
)
from orchestrator.sweeps.bucket import SweepBucket, held_sweep
from orchestrator.sweeps.capacity import agreed, capacity
from orchestrator.sweeps.fleet import STARTS, CutShort, Fleet, Source
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.judge import Judge, judged_epochs
from orchestrator.sweeps.learning import LearningSource
from orchestrator.sweeps.plan import Planner, Trial, describe
from orchestrator.sweeps.population import Population
from orchestrator.sweeps.report import Row, ranking, say_sweep, summary, write_summary
from orchestrator.sweeps.runner import Runner, write_base
from orchestrator.sweeps.sources import PlannedSource, Record
from orchestrator.sweeps.tracking import SweepTracking
from orchestrator.sweeps.view import View, shown
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.mlflow_shipper import RunStatus, Shipped
from orchestrator.training.interrupt import stopping_politely
from orchestrator.training.job import TrainingJob

#: Of the section, what may change between two starts of a sweep.
_MAY_CHANGE = ("trials", "concurrency")
#: Trials that the address of MLflow's comparison names; browsers take some thousand characters.
_COMPARED = 30


def drive_sweep(template: Template, *, force_resume: bool) -> int:
    """Run all trials of a sweep, or those that are left.

    Args:
        template: the experiment, with its ``sweep`` section.
        force_resume: go on although the experiment, the data or the code has changed.

    Returns:
        0 when all trials have ended, 75 when it was asked to stop and can be started again.

    Raises:
        OrchestratorError: with the exit code of its class.
        PreemptedError: it was interrupted where no trial was under way, or a second time.
    """
    try:
        return _drive(template, force_resume=force_resume)
    except KeyboardInterrupt as interrupt:
        raise PreemptedError(
            "interrupted; trials that have ended stay so, and what others have committed is there. "
            "Next: run the same command again to go on"
        ) from interrupt


def _drive(template: Template, *, force_resume: bool) -> int:
    console = Console(soft_wrap=True)
    base = template.resolve()
    folder = folder_of(base.experiment)
    with _claimed(base.experiment) as (journal, bucket):
        base = _with_recorded_seed(base, journal, console)
        planner = Planner(template, folder, base)
        planner.check()
        sweep = planner.sweep
        trials = planner.planned() if sweep.search != "optuna" else []
        plan = make_plan(base, folder)
        say_usable(plan, base.experiment.data, console)
        native.backend()
        claim = _claim(journal, base, plan.job.data_digest, force=force_resume)
        classes = len(plan.job.label_map)
        record = Record(planner, journal, parameters=_counter(planner, classes))
        record.require_same(trials)
        if claim is not None:
            _open(journal, claim, record, console)
        write_base(planner)
        stages = _stages(planner, journal, record, trials, plan.job)
        tracking = SweepTracking(planner, plan)
        state = _Sweep(planner, journal, record, tracking, console, force_resume, bucket)
        return state.run(stages)


class _Stage(NamedTuple):
    """Trials that run beside each other, and what follows when all have ended.

    Attributes:
        open: makes the source of the trials.
        close: returns lines to say.
    """

    open: Callable[[], _Source]
    close: Callable[[], Iterable[str]]


class _Source(Source, Protocol):
    def __len__(self) -> int:
        """Trials that are left, at most."""


def _stages(
    planner: Planner, journal: Journal, record: Record, trials: Sequence[Trial], job: TrainingJob
) -> list[_Stage]:
    """One stage, or one for each age of a population."""
    if planner.sweep.scheduler == "pbt":
        population = Population(
            planner,
            journal,
            record,
            trials,
            steps_per_epoch=job.schedule.steps_per_epoch,
            initial=None if job.initial is None else job.initial.sha256,
        )
        return [
            _Stage(partial(population.segment, age), partial(_exploit, population, age))
            for age in population.ages
        ]
    source: _Source
    if planner.sweep.search == "optuna":
        source = LearningSource(planner, journal, record)
    else:
        source = PlannedSource(record, trials)
    return [_Stage(lambda: source, lambda: ())]


def _exploit(population: Population, age: int) -> Iterator[str]:
    if age == population.ages[-1]:
        return
    for number, reason in population.failures(age).items():
        yield f"{trial_name(number)} failed on its way to epoch {age}: {reason}"
    for one in population.exploit(age):
        yield (
            f"epoch {age}: {trial_name(one.member)} continues from {trial_name(one.donor)} with "
            f"{describe(one.values)}"
        )


@contextmanager
def _claimed(experiment: Experiment) -> Iterator[tuple[Journal, SweepBucket | None]]:
    folder, location = folder_of(experiment), bucket_of(experiment)
    with ExitStack() as held:
        bucket = None
        if location is not None:
            bucket = held.enter_context(held_sweep(location, folder))
        held.enter_context(RunLock(folder))
        _refuse_run(folder, bucket)
        journal = Journal(folder, keep=None if bucket is None else bucket.keep_journal)
        held.callback(journal.close)
        yield journal, bucket


def _refuse_run(folder: Path, bucket: SweepBucket | None) -> None:
    """Raise where a run of its own lies: its event log and its MLflow run would be the sweep's."""
    places = [LocalStorage(folder), *([] if bucket is None else [bucket.mirror.storage])]
    for storage in places:
        names = {entry.name for entry in storage.list("")}
        if IDENTITY in names and not names & {SWEEP_JOURNAL, SWEEP_JOURNALS}:
            raise ConfigError(
                f"{storage.describe(IDENTITY)}: a run of its own has this name. Next: give the "
                "sweep another one (name=...)"
            )


def _with_recorded_seed(
    base: ResolvedExperiment, journal: Journal, console: Console
) -> ResolvedExperiment:
    """A seed that was drawn is drawn once for a sweep, at its first start."""
    if not base.seed_is_drawn:
        return base
    for entry in journal.of("open"):
        base = base.with_seed(entry["config"]["seed"])
    say(console, f"seed: {base.experiment.seed}, {base.origins['seed']}")
    return base


def _claim(
    journal: Journal, base: ResolvedExperiment, data_digest: str, *, force: bool
) -> dict[str, Json] | None:
    """What the sweep's folder is to belong to; None where it is this experiment's already.

    Raises:
        ConfigError: it is another sweep's.
    """
    folder = journal.path.parent
    now = _identity(base, data_digest)
    before: Mapping[str, Any] | None = None
    for entry in journal.of("open"):
        before = entry
    if before == now:
        return None
    if before is not None and not force:
        lines = [f"  {path}: {a} there, {b} now" for path, a, b in diff(dict(before), dict(now))]
        raise ConfigError(
            f"{folder}: this folder holds another sweep:\n"
            + "\n".join(lines)
            + "\nNext: give this sweep another name (name=...), undo the changes, or pass "
            "--force-resume to go on with them. Of the section, only sweep.trials and "
            "sweep.concurrency may change"
        )
    return now


def _open(journal: Journal, claim: dict[str, Json], record: Record, console: Console) -> None:
    """Let the folder belong to what was claimed, and say what a change by force leaves behind."""
    journal.add("open", **claim)
    ended = record.count_ended()
    if ended:
        say(
            console,
            f"forced: {ended} of the trials have ended and stay what they are, results of the "
            "experiment as it was; only the others have the changes",
        )


def _identity(base: ResolvedExperiment, data_digest: str) -> dict[str, Json]:
    section = base.tree["sweep"]
    assert isinstance(section, dict)
    return {
        "config": identity_tree(base.tree),
        "sweep": {key: value for key, value in section.items() if key not in _MAY_CHANGE},
        "data": data_digest,
    }


def _counter(planner: Planner, classes: int) -> Callable[[Trial], int] | None:
    """Counts a trial's parameters, if they are an objective."""
    if PARAMETERS not in planner.sweep.objectives:
        return None
    from detectors.skeleton import skeleton

    def count(trial: Trial) -> int:
        model = skeleton(trial.resolved.experiment.detector, num_classes=classes)
        return sum(parameter.numel() for parameter in model.parameters())

    return count


@dataclasses.dataclass
class _Sweep:
    """A sweep under way."""

    planner: Planner
    journal: Journal
    record: Record
    tracking: SweepTracking
    console: Console
    force_resume: bool
    bucket: SweepBucket | None = None
    #: Trials under way; None before the first.
    fleet: Fleet | None = None

    def run(self, stages: Sequence[_Stage]) -> int:
        """Run what is left; returns the exit code."""
        experiment = self.planner.base.experiment
        (self.planner.folder / STOP).unlink(missing_ok=True)
        self.record.changed = self._changed
        ended = self.record.count_ended()
        if self.bucket is not None:
            found = self.bucket.bring_ended(self.record.ordered())
            if found:
                say(self.console, f"trials brought from {self.planner.home}: {found}")
        if ended >= self.planner.count:
            self._bring_best()
            self._write("finished")
            self._say_left(self.tracking.catch_up(self.record.ordered()))
            self._settle()
            self.report()
            return 0
        say(
            self.console,
            f"{experiment.name}: {self.planner.count} trials"
            + (f", of which {ended} have ended before" if ended else ""),
        )
        if self.bucket is not None:
            # A machine that is lost after MLflow has made the run must not leave a second one.
            self.tracking.name()
            self.bucket.mirror.settle()
        self.tracking.start()
        status: RunStatus = "FAILED"
        try:
            with connected(experiment.cluster), ClusterWatch() as watch:
                stopped = self._run_stages(stages, watch)
            status = "KILLED" if stopped else "FINISHED"
        except (KeyboardInterrupt, PreemptedError):
            status = "KILLED"
            raise
        finally:
            self._bring_best()
            self._write("stopped" if status == "KILLED" else status.lower())
            self._say_left(self.tracking.close(status, self.record.ordered()))
        if not stopped:
            self._settle()
        self.report()
        if stopped:
            say(self.console, "stopped; run the same command again to go on")
            return PreemptedError.exit_code
        refuse_empty(self.record.ordered())
        return 0

    def _run_stages(self, stages: Sequence[_Stage], watch: ClusterWatch) -> bool:
        """Run all trials; whether somebody asked to stop."""
        experiment = self.planner.base.experiment
        sharded = isinstance(experiment.train.virtual_shards, int)
        placement = place(experiment.cluster, one_thread=sharded)
        nodes = [node.resources for node in alive_nodes() if placement.takes(node)]
        found = capacity(nodes, placement.resources_per_worker, experiment.cluster.workers)
        at_a_time = agreed(found, self.planner.sweep.concurrency, self.planner.count)
        say(self.console, f"{at_a_time} at a time: {found.text}")
        judge = None
        if self.planner.sweep.scheduler == "asha":
            judge = Judge(self.planner.sweep.asha, experiment.train.epochs, self.journal)
        view = View(
            self.planner.folder,
            self.planner.sweep,
            epochs=experiment.train.epochs,
            total=self.planner.count,
            rows=self.record.ordered,
            running=lambda: set() if self.fleet is None else self.fleet.names(),
        )
        for stage in stages:
            source = stage.open()
            if len(source) and self._run_trials(source, judge, at_a_time, view, watch):
                return True
            for line in stage.close():
                say(self.console, line)
        return False

    def _run_trials(
        self,
        source: _Source,
        judge: Judge | None,
        at_a_time: int,
        view: View,
        watch: ClusterWatch,
    ) -> bool:
        """Run what a source has; whether some of it is left for another start."""
        fleet = self.fleet = Fleet(self._runner(), source, judge)

        def ask_to_stop() -> None:
            say(self.console, "stopping: trials under way finish and commit their step first")
            fleet.stop()

        with shown(view, self.console), stopping_politely(ask_to_stop):
            for starts_left in reversed(range(STARTS)):
                run = partial(fleet.run, trials=len(source), concurrency=at_a_time)
                while_it_lasts(watch, run, partial(fleet.given_up, watch))
                names = ", ".join(trial.name for trial in fleet.cut_short)
                if fleet.stopping or not names or not starts_left:
                    break
                say(self.console, f"{names}: told to stop by somebody else; started again")
                source = CutShort(source, fleet.cut_short)
                fleet = self.fleet = Fleet(self._runner(), source, judge)
        return fleet.stopping or bool(fleet.cut_short)

    def _runner(self) -> Runner:
        sweep = self.planner.sweep
        epochs = self.planner.base.experiment.train.epochs
        git = git_info()
        return Runner(
            planner=self.planner,
            cwd=str(Path.cwd()),
            judged_epochs=judged_epochs(sweep.asha, epochs) if sweep.scheduler == "asha" else (),
            tags={
                "sweep": self.planner.base.experiment.name,
                "sweep_commit": "none" if git is None else str(git),
            },
            force_resume=self.force_resume,
        )

    def _changed(self) -> None:
        rows = self.record.ordered()
        newest = self.record.newest
        if newest is not None and not self.console.is_terminal:
            score = newest.value(self.planner.sweep.metric)
            known = "" if score is None else f" {self.planner.sweep.metric} {score:.4f}"
            say(self.console, f"{newest.trial.name} {newest.state}{known}: {newest.trial.text()}")
        self.tracking.progress(rows, ended=sum(1 for _ in self.journal.of("end")))
        self._write("running")

    def _write(self, state: str) -> None:
        content = summary(self.planner, self.record.ordered(), state=state)
        write_summary(self.planner.folder, content)
        if self.bucket is not None:
            self.bucket.mirror.settle()

    def _say_left(self, shipped: Shipped | None) -> None:
        if shipped is not None and not shipped.complete:
            say(self.console, str(shipped))

    def _settle(self) -> None:
        self.tracking.settle(self.record.ordered(), lambda text: say(self.console, text))

    def _bring_best(self) -> None:
        best = ranking(self.record.ordered(), self.planner.sweep)[:1]
        if self.bucket is not None and best:
            self.bucket.bring_best(best[0])

    def report(self) -> None:
        """Say how the trials rank, how the best detector is tried, and where everything is."""
        say_sweep(self.planner, self.record.ordered(), self.console)
        if self.bucket is not None:
            say(self.console, f"kept in: {self.planner.home}")
        for best in ranking(self.record.ordered(), self.planner.sweep)[:1]:
            if best.best_checkpoint is not None:
                say_next(str(self.planner.folder / best.trial.name), self.console)
        say_where(
            self.planner.base,
            str(self.planner.folder),
            self.console,
            sweep=self.planner.base.experiment.name,
            trials=self._compared(),
        )

    def _compared(self) -> list[str]:
        """Ids in MLflow of the best trials, as far as they have one."""
        best = ranking(self.record.ordered(), self.planner.sweep)[:_COMPARED]
        ids = ((row.result or {}).get("mlflow_run_id") for row in best)
        return [str(run_id) for run_id in ids if run_id is not None]


def refuse_empty(rows: Sequence[Row]) -> None:
    """Raise where all trials have failed: what all of them have failed of, if that is one kind.

    Raises:
        OrchestratorError: of that kind.
    """
    failed = [row for row in rows if row.state == "failed"]
    if not failed or len(failed) < len(rows):
        return
    kinds = {error_with(row.exit_code) for row in failed}
    kind = kinds.pop() if len(kinds) == 1 else OrchestratorError
    raise kind(f"all {len(failed)} trials failed; the first one: {failed[0].reason}")
