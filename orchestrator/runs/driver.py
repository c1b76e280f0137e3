"""What the driver does around training: identity, cluster, progress, tracking, result."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import native
from orchestrator.checkpoints.manifest import copy_commit
from orchestrator.cluster.connection import ClusterWatch, connected, while_it_lasts
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.cluster.placement import Placement, place, place_evaluation, wait_for_room
from orchestrator.cluster.stop_wish import StopWish
from orchestrator.cluster.submission import short_grace
from orchestrator.cluster.trainer import Hold, fit
from orchestrator.config.places import bucket_of
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.config.schema import DataConfig, Experiment
from orchestrator.data.doctor.examine import require_usable
from orchestrator.data.stream.ray_streams import MIN_TASKS, RayStreams
from orchestrator.errors import PreemptedError, say
from orchestrator.runs.identity import (
    Identity,
    RunState,
    examine_run,
    recorded_seed,
)
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.runs.progress import shown_progress
from orchestrator.runs.reach import Surroundings, marked_folder
from orchestrator.runs.report import (
    finished_result,
    result_of,
    run_card_of,
    say_data,
    say_finished,
    say_initial,
    say_next,
    say_result,
    say_scaling,
    say_threads,
    say_where,
    write_page,
)
from orchestrator.runs.run import NewestCommit, Run
from orchestrator.runs.tracking import Tracking, ending_tags, log_tags
from orchestrator.runs.trial_context import TrialContext
from orchestrator.storage.bucket_mirror import BucketMirror, mirrored
from orchestrator.storage.disk_errors import run_folder_errors
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import (
    DESCRIBING,
    EVENTS,
    MLFLOW_SPEC,
    REPORT,
    RESULT,
    RUN_CARD,
)
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.tracking.mlflow_shipper import RunStatus, Shipped
from orchestrator.training.interrupt import stopping_at_once, stopping_politely
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.session import open_store


def drive(resolved: ResolvedExperiment, run_dir: Path, *, force_resume: bool) -> int:
    """Run one experiment in ``run_dir`` from check to report.

    Args:
        resolved: the experiment.
        run_dir: absolute; made when missing, gone on with when not. For a run in a bucket its
            working folder.
        force_resume: go on although the experiment or the data has changed.

    Returns:
        0 when training is complete, 75 when it was asked to stop and can be started again.

    Raises:
        OrchestratorError: with the exit code of its class.
        PreemptedError: it was interrupted before or after training, or its cluster is gone.
    """
    console = Console(soft_wrap=True)
    held = mirrored(bucket_of(resolved.experiment), run_dir)
    try:
        with stopping_at_once(), held as mirror:
            result = train(
                resolved,
                run_dir,
                force_resume=force_resume,
                console=console,
                trial=None,
                mirror=mirror,
            )
    except KeyboardInterrupt as interrupt:
        raise PreemptedError(
            "interrupted; what was committed is there. Next: run the same command again to go on"
        ) from interrupt
    return 0 if result["state"] == "done" else PreemptedError.exit_code


def train(
    resolved: ResolvedExperiment,
    run_dir: Path,
    *,
    force_resume: bool,
    console: Console,
    trial: TrialContext | None,
    mirror: BucketMirror | None = None,
) -> dict[str, Any]:
    """Like :func:`drive`, for a run of its own or one of a sweep.

    Args:
        resolved: the experiment.
        run_dir: absolute; made when missing, gone on with when not.
        force_resume: go on although the experiment or the data has changed.
        console: where progress is told.
        trial: what the run is in a sweep; None for a run of its own.
        mirror: of a run in a bucket, held; None for one in a folder.

    Returns:
        Content of ``result.json``.

    Raises:
        OrchestratorError: with the exit code of its class.
    """
    with run_folder_errors(run_dir):
        return _train_in(run_dir, resolved, force_resume, console, trial, mirror)


def _train_in(
    run_dir: Path,
    resolved: ResolvedExperiment,
    force_resume: bool,
    console: Console,
    trial: TrialContext | None,
    mirror: BucketMirror | None,
) -> dict[str, Any]:
    started, began = time.monotonic(), time.time()
    if resolved.seed_is_drawn:
        recorded = recorded_seed(run_dir)
        resolved = resolved if recorded is None else resolved.with_seed(recorded)
        say(console, f"seed: {resolved.experiment.seed}, {resolved.origins['seed']}")
    plan = make_plan(resolved, run_dir, bucket=None if mirror is None else mirror.location)
    _say_plan(plan, resolved.experiment, console)
    native.backend()  # Says what is missing; what workers say stays in Ray's logs.
    identity = identity_of(plan.job)
    with RunLock(run_dir) as lock:
        # Whose folder this is comes first: starting Ray takes seconds.
        run = Run(run_dir, lock, mirror, console)
        claim = examine_run(
            run_dir,
            identity,
            resolved.tree,
            label_map=plan.job.label_map,
            force=force_resume,
            commits=run.commits,
        )
        done = run.done()
        plan.job.require_ahead(done)
        finished = finished_result(plan.job, done)
        describe = partial(run.describe, identity, resolved, claim, plan.job.label_map)
        if finished is not None and run.is_whole():
            describe(only_lost=True)
            say_finished(finished, resolved.experiment.train, console)
            say_where(resolved, str(run_dir), console)
            return finished
        for note in claim.notes:
            run.say(f"{claim.kind}: {note}")
        warning = short_grace()
        if warning is not None:
            run.say(warning)
        # A trial leaves its files to the background, as its sweep sees them arrive; in a bucket
        # that sweep may be elsewhere by then.
        waits = trial is None or mirror is not None
        tracking = Tracking(resolved, plan, trial, waits=waits, tell=run.say)
        experiment = resolved.experiment
        beside = experiment.train.evaluation == "beside"
        with connected(experiment.cluster, beside=beside), ClusterWatch() as watch:
            placement, in_loop = _placed(plan, run, watch, in_sweep=trial is not None)
            with marked_folder(plan, run_dir, done=done, say=run.say) as around:
                # Only now does the folder belong to this experiment: a start that finds no cluster,
                # or none that will do, leaves nothing that would refuse the next.
                describe()
                log_changes(run_dir, claim, done)
                job = dataclasses.replace(
                    plan.job,
                    threads=placement.threads,
                    judged_epochs=() if trial is None else trial.judged_epochs,
                    sampled={} if trial is None else trial.sampled,
                    evaluates_beside=in_loop is None,
                    extensions=claim.extensions,
                    driver_began=began,
                )
                outcome, shipped = _tracked(
                    run, plan, job, placement, tracking, around, watch, describe
                )
        # Nothing is written in the place of a folder that is gone.
        lock.require_in_place()
        result = result_of(job, outcome, shipped, time.monotonic() - started)
        # While the folder is held: who goes on with it must not find its own result replaced.
        run.write(RESULT, json.dumps(result, indent=2))
    say_result(resolved, result, console)
    if mirror is not None:
        run.say(f"kept in: {mirror.uri}")
    say_where(resolved, str(run_dir), console)
    if trial is None and result["state"] == "done":
        say_next(str(run_dir), console)
    return result


def _say_plan(plan: Plan, experiment: Experiment, console: Console) -> None:
    """Say what will be trained on what, from what.

    Raises:
        DataError: the data are of no use.
    """
    say_usable(plan, experiment.data, console)
    say_scaling(experiment.train, console)
    say_initial(plan.job, console)


def say_usable(plan: Plan, settings: DataConfig, console: Console) -> None:
    """Say what the data are, and what is noteworthy about them.

    Raises:
        DataError: they are of no use.
    """
    say_data(plan, console)
    for name, data in plan.splits.items():
        for finding in require_usable(data, name, settings.max_bad_fraction, kind=settings.format):
            say(console, f"{name}: {finding}")


def _placed(
    plan: Plan, run: Run, watch: ClusterWatch, *, in_sweep: bool
) -> tuple[Placement, str | None]:
    """Find room in the cluster, and wait for it if it is taken.

    Returns:
        What each worker gets, and why evaluation is in the loop; None where it is beside.
    """
    experiment, shards = plan.job.experiment, plan.job.shards
    placement = place(
        experiment.cluster,
        one_thread=isinstance(experiment.train.virtual_shards, int)
        or experiment.cluster.min_workers is not None,
        threads_before=shards.threads,
    )
    if shards.count is not None:
        # Which worker computes which shard must not matter.
        placement = dataclasses.replace(placement, by_node=False)
    say_threads(shards, placement.threads, run.console)
    in_loop = place_evaluation(
        experiment,
        placement,
        epochs=plan.job.total_steps / plan.job.schedule.steps_per_epoch,
        in_sweep=in_sweep,
    )
    in_turn = f"training pauses for it, {in_loop}"
    run.say(f"evaluation: {'beside training' if in_loop is None else in_turn}")
    if not in_sweep:
        least = experiment.cluster.least_workers
        while_it_lasts(watch, partial(wait_for_room, least, placement, run.say))
    return placement, in_loop


def identity_of(job: TrainingJob) -> Identity:
    """What decides the result of a job."""
    initial = None if job.initial is None else job.initial.sha256
    return Identity(job.config_digest, job.data_digest, initial=initial)


def log_changes(run_dir: Path, claim: RunState, step: int) -> None:
    """Leave in the event log what is different since the last start, forced or not."""
    if not claim.notes:
        return
    events = EventLog(run_dir / EVENTS)
    for note in claim.notes:
        events.note("changed", note, step=step)
    events.close()


def _tracked(
    run: Run,
    plan: Plan,
    job: TrainingJob,
    placement: Placement,
    tracking: Tracking,
    around: Surroundings,
    watch: ClusterWatch,
    describe: Callable[..., None],
) -> tuple[Outcome, Shipped | None]:
    """Train while MLflow is kept up to date, and tell it how the run ended, whatever happens."""
    mirror = run.mirror
    if mirror is not None:
        # A machine that is lost after MLflow has made the run must not leave a second one.
        tracking.name()
        mirror.settle(DESCRIBING)
    tracking.start()
    status: RunStatus = "FAILED"
    outcome: Outcome | None = None
    best: str | None = None
    try:
        outcome = _train(run, plan, job, placement, around, watch)
        if run.is_held():
            describe(only_lost=True)
        best = outcome.best_checkpoint
        if mirror is not None and best is not None:
            best = str(copy_commit(mirror.storage, best, LocalStorage(run.folder)))
        status = "KILLED" if outcome.state == "preempted" else "FINISHED"
    except (KeyboardInterrupt, PreemptedError):
        status = "KILLED"
        raise
    finally:
        still_there = run.is_held()
        if still_there:
            card = run_card_of(job, outcome, status=status, accelerator=placement.accelerator.kind)
            try:
                card.write(run.folder)
            except OSError as error:
                # MLflow has to hear how the run ended, and people why.
                run.say(f"warning: {RUN_CARD} was not written ({error.strerror})")
        elif status == "FINISHED":
            status, best = "FAILED", None
        if status == "FINISHED":
            _report(run)
        if mirror is not None and still_there:
            mirror.settle()
        shipped = tracking.close(
            status,
            run_dir=run.folder,
            best=None if best is None else Path(best),
            tags={**log_tags(run.folder), **({} if outcome is None else ending_tags(outcome))},
        )
        if shipped is not None and not shipped.complete:
            run.say(str(shipped))
            if mirror is not None and still_there:
                # By this the rest can be shipped from elsewhere.
                mirror.settle((MLFLOW_SPEC,))
    return outcome, shipped


def _report(run: Run) -> None:
    """Write the page of a run; nothing that goes wrong with it is worth more than a warning."""
    trouble = write_page(run.folder)
    run.say(
        f"report: {run.folder / REPORT}"
        if trouble is None
        else f"warning: the report was not written ({trouble}); `orchestrator report {run.folder}` "
        "tries again"
    )


def _train(
    run: Run,
    plan: Plan,
    job: TrainingJob,
    placement: Placement,
    around: Surroundings,
    watch: ClusterWatch,
) -> Outcome:
    """Train on the cluster, showing progress and listening for a wish to stop."""
    experiment = job.experiment
    workers, least = experiment.cluster.workers, experiment.cluster.min_workers
    many = f"{workers} {{}} worker{'s' if workers > 1 else ''}"
    many = many if least is None else f"{least} to {many}"
    run.say(
        f"{experiment.name}: {job.total_steps} steps of {job.schedule.batch_size} images on "
        + many.format(placement.accelerator.kind)
    )
    stop = StopWish(run.folder)
    # Behind its last whole line, since what a kill has left of another one goes away.
    offset = max((event.end for event in read_events(run.folder / EVENTS)), default=0)
    tasks: int | None = None
    if experiment.data.tasks != "auto":
        tasks = experiment.data.tasks
    elif job.sampled:
        # Trials beside each other would each take the cores that all leave free.
        tasks = MIN_TASKS
    streams = RayStreams(
        plan.batches,
        prefetch=experiment.data.prefetch,
        tasks=tasks,
        worker_cpus=placement.busy_cpus,
        any_node=experiment.data.tasks_on == "any_node",
        alone=is_own_ray(),
    )

    def ask_to_stop() -> None:
        stop.ask()
        if stop.is_before_training():
            run.say("stopping: no step is under way")
        else:
            run.say("stopping: the step under way is finished and committed first")

    def useless() -> BaseException | None:
        before = stop.asked.is_set() and stop.is_before_training()
        return stop.error() if before else None

    newest = NewestCommit(open_store(job))
    hold = Hold(newest, run.lock, run.folder_lock, around.marker, around.look)

    def training() -> Outcome:
        return fit(job, streams, placement, hold, stop)

    with shown_progress(job, run.console, offset=offset), stopping_politely(ask_to_stop):
        try:
            outcome = while_it_lasts(watch, training, useless)
        finally:
            # What goes on in the thread must not begin anew, on a Ray started for it alone.
            stop.asked.set()
    run.require_commit(outcome.steps)
    return outcome
