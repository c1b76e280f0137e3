"""Doing a run again from what its folder says, and comparing the weights bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.checkpoints.codec import weights_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.resolve import ResolvedExperiment, diff, load_experiment, read_template
from orchestrator.errors import ConfigError, StorageError, say
from orchestrator.runs.compare.run_folder import RunFolder, config_file, read_runs
from orchestrator.runs.digests import config_digest, identity_tree
from orchestrator.runs.driver import drive
from orchestrator.runs.identity import changed_sources, recorded_identity
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import RESULT, SWEEP_RESULT, trial_name
from orchestrator.sweeps.journal import Entry, read_journal
from orchestrator.sweeps.plan import describe
from orchestrator.sweeps.sources import FINAL
from orchestrator.sweeps.space import Values

# A member of a population that was replaced goes on from the commit of another one, so its weights
# were not made by its own values alone. The journal says whose they were and with which values;
# trained one after the other, these stretches make the same weights again.


@dataclass(frozen=True)
class Stretch:
    """Steps that were trained by one member with the same values.

    Attributes:
        member: its number.
        end: steps behind it, counted from the start of training.
        values: that it trained with.
    """

    member: int
    end: int
    values: Values


def lineage(entries: Sequence[Entry], member: int, steps: int) -> list[Stretch]:
    """The stretches behind a member's weights, in order; a single one if it never was replaced.

    Args:
        entries: of the sweep's journal.
        member: number of the trial.
        steps: behind the weights.
    """
    begun = {e.content["trial"]: e.content["values"] for e in entries if e.kind == "trial"}
    cloned = [entry.content for entry in entries if entry.kind == "cloned"]
    found: list[Stretch] = []
    while True:
        # A clone of the last step is not behind the weights of that step: it came after them.
        before = [c for c in cloned if c["trial"] == member and c["step"] < steps]
        newest = max(before, key=lambda clone: int(clone["step"]), default=None)
        values = begun[member] if newest is None else newest["values"]
        found.append(Stretch(member, steps, dict(values)))
        if newest is None:
            return found[::-1]
        member, steps = newest["donor"], newest["step"]


_METRIC = "val/AP"


@dataclass(frozen=True)
class Rerun:
    """The end of a repeated run.

    Attributes:
        run_dir: of the second run.
        code: exit code of training; 75 when it was asked to stop and can be gone on with.
        expected: digest of the first run's weights.
        found: of the second's; empty before its end.
        changed: what was not the same for both, as far as it is recorded.
        unknown: what of it is not recorded, and why.
    """

    run_dir: Path
    code: int
    expected: str
    found: str
    changed: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether both runs have the same weights, to the bit."""
        return self.found == self.expected


def find_run(folder: Path, trial: str | None, overrides: Sequence[str] = ()) -> RunFolder:
    """The run that is to be repeated.

    Args:
        folder: of a run, or of a sweep.
        trial: of the sweep: its number, its name, or ``best``; None for the folder of a run.
        overrides: ``key.path=value`` for what may change, such as where the data lies now.

    Raises:
        ConfigError: no trial where one is needed, one where none can be, or one that is not there.
        StorageError: the folder holds no run.
    """
    runs = read_runs([folder], overrides)
    alone = config_file(folder).is_file()
    if alone and trial is not None:
        raise ConfigError(
            f"--trial {trial}: {folder} is the folder of one run, not of a sweep. Next: leave "
            "--trial out"
        )
    if alone:
        return runs[0]
    if trial is None:
        raise ConfigError(
            f"{folder}: holds {len(runs)} runs, {runs[0].name} to {runs[-1].name}. Next: say which "
            "one, --trial best or --trial N"
        )
    if trial == "best":
        return _best(folder, runs)
    wanted = trial_name(int(trial)) if trial.isdecimal() else trial
    for run in runs:
        if run.path.name == wanted:
            return run
    raise ConfigError(
        f"--trial {trial}: {folder} has no {wanted}; it holds {len(runs)} runs, {runs[0].name} to "
        f"{runs[-1].name}"
    )


def _best(folder: Path, runs: Sequence[RunFolder]) -> RunFolder:
    """The trial that the sweep ranks first: those that were given up come after all others."""
    metric = _metric(folder)
    scored = [
        ((run.state == "done", run.curve(metric)[-1][1]), run)
        for run in runs
        if run.curve(metric) and run.state in FINAL
    ]
    if not scored:
        raise StorageError(
            f"{folder}: no trial has ended with a value of {metric}. Next: let the sweep come to "
            "the end of one, or name a trial by its number"
        )
    # The first of equals.
    return max(scored, key=lambda pair: pair[0])[1]


def _metric(folder: Path) -> str:
    try:
        tree: Any = read_json(folder / SWEEP_RESULT)
    except FileNotFoundError:
        return _METRIC
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / SWEEP_RESULT}: cannot be read ({error})") from error
    return str(tree.get("metric", _METRIC)) if isinstance(tree, dict) else _METRIC


def rerun(
    run: RunFolder,
    *,
    name: str | None = None,
    storage: Path | None = None,
    overrides: Sequence[str] = (),
) -> Rerun:
    """Train again what a run folder describes, into another one.

    A run that did not come to the end of its schedule is repeated as far as it came. A member of a
    population is repeated stretch by stretch, each with the values that its weights were trained
    with then, whosever they were. Doing the same again goes on with, or looks at, the second run
    that is there already.

    Args:
        run: it has ended at least once.
        name: of the second run; None for that of the first and ``-rerun``, preceded by the name of
            its sweep.
        storage: folder it lies in; None for that beside the first run, or beside its sweep.
        overrides: ``key.path=value`` for what decides no result.

    Raises:
        ConfigError: an override that would make it another experiment.
        StorageError: the run has no result.
        OrchestratorError: whatever training raises.
    """
    expected = run.result.get("weights_sha256")
    if not expected:
        raise StorageError(
            "\n".join(
                (
                    f"{run.path}: has no result.json with the digest of its weights, so there is "
                    "nothing to compare with. Next: let the run come to its end",
                    *run.troubles,
                )
            )
        )
    stored = _stored_digest(run)
    if stored not in (None, expected):
        raise StorageError(
            f"{run.path / RESULT}: says that the weights of step {run.steps} have sha256 "
            f"{expected}, and the checkpoint of that step has {stored}. Next: restore the file "
            "from a copy, or correct it"
        )
    # Its journal has the same name and one letter more, and is there before the sweep has ended.
    trial_of = run.path.parent if any(run.path.parent.glob(f"{SWEEP_RESULT}*")) else None
    if name is None:
        name = f"{run.path.name}-rerun"
        if trial_of is not None:
            name = f"{trial_of.name}-{name}"
    folder = storage or (trial_of or run.path).parent
    changes = [f"name={name}", f"storage={folder}"]
    if run.state != "done":
        changes.append(f"train.max_steps={run.steps}")
    template = read_template(config_file(run.path), [*overrides, *changes])
    resolved = template.resolve()
    first = load_experiment(config_file(run.path))
    others = diff(identity_tree(first.tree), identity_tree(resolved.tree))
    if others:
        paths = ", ".join(one.path for one in others)
        raise ConfigError(
            f"{paths}: decides the result, so the run would be another one. Next: leave the "
            "override out, or start a new experiment with orchestrator run"
        )
    run_dir = folder.resolve() / name
    if run_dir == run.path:
        raise ConfigError(
            f"{run_dir}: is the run that is to be repeated. Next: give the repetition another "
            "--name or --storage"
        )
    before = _before(run) if trial_of is not None else []
    for one in before:
        say(
            Console(soft_wrap=True),
            f"up to step {one.end} as {trial_name(one.member)}, with {describe(one.values)}",
        )
    parts = [template.resolve({**one.values, "train.max_steps": one.end}) for one in before]
    code = _drive([*parts, resolved], [one.end for one in before], run_dir)
    again = read_runs([run_dir])[0]
    changed = _changed(run, again)
    workers = run.result.get("workers"), again.result.get("workers")
    if workers[0] != workers[1]:
        changed.append(f"workers: {workers[0]} then, {workers[1]} now")
    return Rerun(
        run_dir=run_dir,
        code=code,
        expected=str(expected),
        found="" if code else str(again.result.get("weights_sha256")),
        changed=tuple(changed),
        unknown=tuple(f"{one.path}: {line}" for one in (run, again) for line in one.troubles),
    )


def _stored_digest(run: RunFolder) -> str | None:
    """Digest of the weights that the run ended with, by its checkpoint; None where that is gone."""
    store = CommitStore(LocalStorage(run.path))
    if not any(commit.step == run.steps for commit in store.commits()):
        return None
    try:
        return weights_digest(store.load(run.steps))
    except StorageError:
        return None  # Damaged itself.


def _before(run: RunFolder) -> list[Stretch]:
    """What a member of a population was before it became what it was last; else nothing."""
    entries = read_journal(run.path.parent)
    numbers = [e.content["trial"] for e in entries if e.kind == "trial"]
    member = next((number for number in numbers if trial_name(number) == run.path.name), None)
    return [] if member is None else lineage(entries, member, run.steps)[:-1]


def _drive(parts: Sequence[ResolvedExperiment], ends: Sequence[int], run_dir: Path) -> int:
    """Train one part after the other in the same folder, each from the end of the one before.

    Args:
        parts: they differ in what may change while a run goes on.
        ends: steps after which each of them but the last is over.
        run_dir: gone on with where it holds one of the parts.

    Returns:
        The exit code of the last one that was started.
    """
    recorded = recorded_identity(run_dir)
    first = 0
    if recorded is not None and recorded.config_digest in {
        config_digest(part.tree, initial=recorded.initial) for part in parts
    }:
        newest = CommitStore(LocalStorage(run_dir)).latest().commit
        first = sum(newest is not None and end <= newest.step for end in ends)
    code = 0
    for index in range(first, len(parts)):
        code = drive(parts[index], run_dir, force_resume=index > 0)
        if code:
            break
    return code


def _changed(run: RunFolder, again: RunFolder) -> list[str]:
    """What decides a result and is not the same for both runs."""
    then, now = run.identity, again.identity
    if then is None or now is None:
        return []
    lines = []
    for what, old, new in (
        ("data", then.data_digest, now.data_digest),
        ("initial weights", then.initial or "none", now.initial or "none"),
    ):
        if old != new:
            lines.append(f"{what}: sha256 {old[:12]} then, {new[:12]} now")
    if then.numerics != now.numerics:
        lines.append(f"numerics version: {then.numerics} then, {now.numerics} now")
    files = changed_sources(then.sources, now.sources)
    if files is not None:
        lines.append(f"program: {files}")
    return lines
