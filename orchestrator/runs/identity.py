"""Which experiment a run folder belongs to: ``run.json``, and refusing to mix two in one folder.

A run is its name and what decides its result: the digests of configuration and data, and the
version of the program's numbers. The same again goes on where it stopped; anything else is refused
with the differences, because continuing one experiment's weights under another's name is worse than
not running.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.checkpoints.manifest import Commit, checked_commits, published
from orchestrator.checkpoints.retention import was_cut_off
from orchestrator.config.resolve import Absent, MaybeScalar, diff, load_experiment
from orchestrator.config.scalars import Json
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, OrchestratorError, StorageError
from orchestrator.runs.digests import INITIAL, config_digest, deciding_tree, source_digests
from orchestrator.runs.extension import EXTENSIONS, extended_run
from orchestrator.runs.numerics import NUMERICS_VERSION, changes_since
from orchestrator.storage.address import TEMPORARY
from orchestrator.storage.local import LocalStorage, Storage, make_private
from orchestrator.storage.run_files import (
    EVALUATION,
    EVENTS,
    IDENTITY,
    LABEL_MAP,
    MLFLOW,
    RESOLVED,
    SWEEP_JOURNAL,
)
from orchestrator.storage.sealed import UnusableError, seal, unseal
from orchestrator.tracking.events import read_events
from orchestrator.training.schedules import Extension

#: Layout of ``run.json``. Format 1 had no version of the numbers and refused all changes of code.
FORMAT = 2
_READABLE = (1, FORMAT)
_MAX_BYTES = 16 * 2**20
#: How many changed files a message names.
_NAMED = 8
#: Key of the digests of configuration and data that a run had before, changed or forced.
_EARLIER = "earlier"
#: The first version of the numbers whose records have ``auto`` where the file says nothing.
_AUTO_SHARDS_SINCE = 3


@dataclass(frozen=True)
class Identity:
    """What decides a run's result.

    Attributes:
        config_digest: see :func:`config_digest`.
        data_digest: of the data sets.
        initial: digest of the weights that the run begins with; None if it begins with none.
        numerics: version of the program's numbers; see :mod:`orchestrator.runs.numerics`.
        sources: digests of the source files by path, which decide nothing: for the log.
    """

    config_digest: str
    data_digest: str
    initial: str | None = None
    numerics: int = NUMERICS_VERSION
    sources: Mapping[str, str] = field(default_factory=source_digests)


@dataclass(frozen=True)
class RunState:
    """What :func:`open_run` found.

    Attributes:
        kind: ``new``, or ``resume`` when the folder holds this run already.
        notes: what changed since its last start, allowed or forced; for the log.
        extensions: how the run was made longer since it began.
        earlier: digests of configuration and data that it had before; its commits have one of
            these, or its present ones.
    """

    kind: Literal["new", "resume"]
    notes: tuple[str, ...] = ()
    extensions: tuple[Extension, ...] = ()
    earlier: tuple[tuple[str, str], ...] = field(default=(), compare=False)


def open_run(
    run_dir: str | Path,
    identity: Identity,
    resolved_tree: Mapping[str, Json],
    *,
    force: bool = False,
    commits: Storage | None = None,
) -> RunState:
    """Claim a run folder for an experiment: :func:`examine_run`, then :func:`record_run`."""
    state = examine_run(run_dir, identity, resolved_tree, force=force, commits=commits)
    record_run(run_dir, identity, resolved_tree, state)
    return state


def examine_run(
    run_dir: str | Path,
    identity: Identity,
    resolved_tree: Mapping[str, Json],
    *,
    label_map: LabelMap | None = None,
    force: bool = False,
    commits: Storage | None = None,
) -> RunState:
    """Find out whether a run folder is free for an experiment, or its already; changes nothing.

    A folder without a commit and without an event is free, whatever a start that came to nothing
    has left there. One whose commits are all damaged is not: they may come back from a copy.

    Call it while holding the folder's :class:`~orchestrator.storage.folder_lock.RunLock`.

    Args:
        run_dir: may be missing.
        identity: of the experiment.
        resolved_tree: its whole configuration, for the differences.
        label_map: its classes, which must be those of the commits, forced or not; None where that
            is seen to elsewhere.
        force: go on although configuration, data or numbers differ. What was forced is in the
            notes.
        commits: where the run's commits are; None for the run folder.

    Raises:
        ConfigError: the folder holds another experiment, or a sweep.
        DataError: its weights are for other classes, or for the same in another order.
        StorageError: the folder cannot be read.
    """
    storage = LocalStorage(run_dir)
    commits = commits or storage
    try:
        _require_no_sweep(commits)
        checked = checked_commits(commits)
        begun = any(not was_cut_off(commits, key) for key in published(commits))
        if not begun and next(read_events(storage.root / EVENTS), None) is None:
            return RunState("new")
        if label_map is not None and checked:
            _require_classes(commits, checked[0], label_map)
        found = _compare(storage, identity, resolved_tree, checked)
    except OSError as error:
        raise _unusable(storage, error) from error
    if found.refused and not force:
        first = "do what the line says" if found.length_alone else "undo the changes"
        raise ConfigError(
            f"{storage.root}: this run folder holds another experiment:\n"
            + "\n".join(f"  {line}" for line in found.refused)
            + f"\nNext: give this experiment another name (name=...), {first}, or pass "
            "--force-resume to go on with them from the last checkpoint"
        )
    notes = (*(f"forced: {line}" for line in found.refused), *found.notes)
    return RunState(found.kind, notes, found.extensions, found.earlier)


def record_run(
    run_dir: str | Path, identity: Identity, resolved_tree: Mapping[str, Json], state: RunState
) -> None:
    """Let a run folder belong to the experiment as it is now.

    Args:
        run_dir: made if need be.
        identity: of the experiment.
        resolved_tree: its whole configuration.
        state: what :func:`examine_run` found.

    Raises:
        StorageError: the folder cannot be written.
    """
    storage = LocalStorage(run_dir)
    record = {
        "format": FORMAT,
        "config_digest": identity.config_digest,
        "data_digest": identity.data_digest,
        "numerics_version": identity.numerics,
        "sources": dict(identity.sources),
        INITIAL: identity.initial,
        EXTENSIONS: [[one.epochs, one.how] for one in state.extensions],
        _EARLIER: [list(digests) for digests in state.earlier],
        "config": dict(resolved_tree),
    }
    try:
        make_private(storage.root)
        for folder in ("", "config", EVALUATION):
            for entry in storage.list(folder):
                if _is_left(entry.name):
                    storage.unlink(f"{folder}/{entry.name}".lstrip("/"))
        storage.replace_file(IDENTITY, seal("run", record))
    except OSError as error:
        raise _unusable(storage, error) from error


def _is_left(name: str) -> bool:
    """Whether a killed process left this; what ships a run may still be writing its record."""
    unfinished = name.startswith(".") and TEMPORARY in name and not name.startswith(f".{MLFLOW}")
    return unfinished or name.startswith(IDENTITY + TEMPORARY)


def _unusable(storage: LocalStorage, error: OSError) -> StorageError:
    return StorageError(
        f"{storage.root}: cannot open the run folder: {error}. Next: see that `storage` names a "
        "folder that can be written"
    )


def _require_no_sweep(storage: Storage) -> None:
    """Raise where a sweep lies: the run would write into its event log and its MLflow run."""
    names = {entry.name for entry in storage.list("")}
    if SWEEP_JOURNAL in names and IDENTITY not in names:
        raise ConfigError(
            f"{storage.describe(SWEEP_JOURNAL)}: a sweep has this name. Next: give the run another "
            "one (name=...)"
        )


def _require_classes(storage: Storage, commit: Commit, label_map: LabelMap) -> None:
    """Refuse to go on with weights whose outputs stand for other classes."""
    try:
        text = storage.read_file(f"{commit.key}/{LABEL_MAP}", limit=_MAX_BYTES).decode()
        theirs = LabelMap.from_json(text)
    except (ValueError, KeyError, TypeError):
        return  # Whoever loads the commit compares its bytes, and says what is wrong with them.
    try:
        label_map.require_equal(theirs, here="the data now", there=f"commit {commit.step}")
    except DataError as error:
        raise DataError(
            f"{error}\nIts outputs stand for the classes of {commit.path}, so --force-resume does "
            "not go on with others. Next: give this experiment another name (name=...), and begin "
            "with those weights by train.init_from"
        ) from error


def changed_sources(then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Names of the source files that differ, on one line; None where none does."""
    changed = sorted(path for path in {*then, *now} if then.get(path) != now.get(path))
    if not changed:
        return None
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return ", ".join(changed[:_NAMED]) + more


def _beginning(tree: Mapping[str, Json]) -> str:
    """The key that says what a run begins with."""
    train = tree.get("train")
    continues = isinstance(train, dict) and train.get("continue_from") is not None
    return "train.continue_from" if continues else "train.init_from"


def recorded_initial(run_dir: str | Path) -> str | None:
    """Digest of the weights that the run in this folder began with; None if there is no record."""
    initial = _record(run_dir).get(INITIAL)
    return initial if isinstance(initial, str) else None


def recorded_beginning(run_dir: str | Path) -> str | None:
    """The run or file that the run in this folder began with, as its file named it; or None."""
    train = _record(run_dir).get("config", {}).get("train", {})
    keys = ("continue_from", "init_from") if isinstance(train, dict) else ()
    named = (train.get(key) for key in keys)
    return next((location for location in named if isinstance(location, str)), None)


def recorded_identity(run_dir: str | Path) -> Identity | None:
    """What decided the result of the run in this folder; None if there is no record."""
    record = _record(run_dir)
    try:
        return Identity(
            str(record["config_digest"]),
            str(record["data_digest"]),
            recorded_initial(run_dir),
            int(record.get("numerics_version", 1)),
            dict(record["sources"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def experiment_trouble(run_dir: str | Path) -> str | None:
    """What in ``config/resolved.yaml`` is not what the run was trained with; None where nothing is.

    A file that was cut between two keys, or corrected by hand, still reads as an experiment.

    Raises:
        ConfigError: it does not.
    """
    recorded = recorded_identity(run_dir)
    if recorded is None or recorded.numerics != NUMERICS_VERSION:
        return None  # Missing, which is said elsewhere, or digested in another way.
    tree = load_experiment(Path(run_dir) / RESOLVED).tree
    if config_digest(tree, initial=recorded.initial) == recorded.config_digest:
        return None
    before = _record(run_dir).get("config", {})
    lines = [
        f"{path}: {_value(there)} in {IDENTITY}, {_value(here)} there"
        for path, there, here in diff(deciding_tree(before), deciding_tree(tree))
    ]
    return f"{RESOLVED} is not what the run was trained with: {'; '.join(lines[:_NAMED])}"


def recorded_seed(run_dir: str | Path) -> int | None:
    """Seed of the run in this folder; None if there is no record."""
    record = _record(run_dir)
    if not record and (Path(run_dir) / RESOLVED).is_file():
        # Its checkpoints are of no use to anybody who draws another one.
        with suppress(OrchestratorError):
            return load_experiment(Path(run_dir) / RESOLVED).experiment.seed
    seed = record.get("config", {}).get("seed")
    return seed if isinstance(seed, int) else None


def _record(run_dir: str | Path) -> dict[str, Any]:
    """What ``run.json`` says; nothing where it is missing or damaged."""
    try:
        return unseal("run", LocalStorage(run_dir).read_file(IDENTITY, limit=_MAX_BYTES))
    except (OSError, UnusableError):
        return {}


class _Comparison(NamedTuple):
    kind: Literal["new", "resume"]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extensions: tuple[Extension, ...] = ()
    #: Whether the number of epochs is all that is refused, whose line says what to do about it.
    length_alone: bool = False
    #: Digests of configuration and data that the run had at its starts until now.
    earlier: tuple[tuple[str, str], ...] = ()


def _compare(
    storage: LocalStorage,
    identity: Identity,
    tree: Mapping[str, Json],
    commits: Sequence[Commit],
) -> _Comparison:
    try:
        stored = unseal("run", storage.read_file(IDENTITY, limit=_MAX_BYTES))
    except FileNotFoundError:
        return _compare_with_commits(commits, identity, "is missing")
    except UnusableError as error:
        return _compare_with_commits(commits, identity, str(error))
    if stored["format"] not in _READABLE:
        raise StorageError(
            f"{storage.describe(IDENTITY)}: format {stored['format']!r}; this program reads "
            f"{FORMAT} and older. Next: go on with the version of the program that wrote it"
        )
    before = stored["config"]
    extended = extended_run(before, stored.get(EXTENSIONS, ()), tree)
    version = int(stored.get("numerics_version", 1))
    theirs = extended.before
    if version < _AUTO_SHARDS_SINCE:
        theirs = _with_shards_of(tree, theirs)
    refused = _differences(deciding_tree(theirs), deciding_tree(tree))
    refused += extended.refused
    notes = [line for line in _differences(theirs, tree) if line not in refused]
    notes += extended.notes
    if stored["data_digest"] != identity.data_digest:
        refused.append(_digests("data", stored["data_digest"], identity.data_digest))
    before_initial = stored.get(INITIAL)
    if before_initial != identity.initial:
        refused.append(
            _digests(
                _beginning(before if identity.initial is None else tree),
                before_initial or "none",
                identity.initial or "none",
            )
        )
    if version > identity.numerics:
        refused.append(
            f"program: numerics version {version} there, {identity.numerics} now, which is older"
        )
    refused += [f"program: {line}" for line in changes_since(version, tree)]
    changed = changed_sources(stored["sources"], identity.sources)
    if changed is not None:
        notes.append(f"the program changed, its numbers did not: {changed}")
    earlier = {(str(stored["config_digest"]), str(stored["data_digest"]))}
    earlier |= {(str(config), str(data)) for config, data in stored.get(_EARLIER, ())}
    if _EARLIER in stored:  # Not by older programs, which forgot.
        refused += _foreign(commits, {*earlier, (identity.config_digest, identity.data_digest)})
    return _Comparison(
        "resume",
        tuple(refused),
        tuple(notes),
        extended.extensions,
        length_alone=bool(extended.refused) and tuple(refused) == extended.refused,
        earlier=tuple(sorted(earlier)),
    )


def _foreign(commits: Sequence[Commit], own: Collection[tuple[str, str]]) -> list[str]:
    """Lines about commits that no start of the run has made, whoever put them there."""
    manifests = [commit.manifest for commit in commits]
    return [
        f"the checkpoint of step {one.step} was made by another: configuration "
        f"{one.config_digest[:16]}, data {one.data_digest[:16]}"
        for one in manifests
        if (one.config_digest, one.data_digest) not in own
    ]


def _with_shards_of(tree: Mapping[str, Json], before: Mapping[str, Json]) -> Mapping[str, Json]:
    """A configuration recorded when nobody could write ``auto``, as it would be recorded now."""
    train, now = before.get("train"), tree.get("train")
    if not isinstance(train, dict) or not isinstance(now, dict):
        return before
    there, here = train.get("virtual_shards"), now.get("virtual_shards", 0)
    if there is not None or isinstance(here, int):
        return before
    return {**before, "train": {**train, "virtual_shards": here}}


def _compare_with_commits(
    commits: Sequence[Commit], identity: Identity, damage: str
) -> _Comparison:
    """Without a usable ``run.json`` the newest commit says whose folder this is."""
    if not commits:
        return _Comparison("new")
    manifest = commits[0].manifest
    refused = [
        _digests(what, there, here)
        for what, there, here in (
            ("configuration", manifest.config_digest, identity.config_digest),
            ("data", manifest.data_digest, identity.data_digest),
        )
        if there != here
    ]
    note = f"{IDENTITY} {damage}; made again after the commit of step {manifest.step}"
    return _Comparison("resume", tuple(refused), (note,))


def _differences(before: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    return [
        f"{path}: {_value(a)} there, {_value(b)} now"
        for path, a, b in diff(dict(before), dict(now))
    ]


def _value(value: MaybeScalar) -> str:
    return str(value) if isinstance(value, Absent) else json.dumps(value)


def _digests(what: str, there: str, here: str) -> str:
    return f"{what}: sha256 {there[:16]} there, {here[:16]} now"
