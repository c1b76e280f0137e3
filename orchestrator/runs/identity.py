"""Which experiment a run folder belongs to: ``run.json``, and refusing to mix two in one folder.

A run is its name and what decides its result: the digests of configuration and data, and the
version of the program's numbers. The same again goes on where it stopped; anything else is refused
with the differences, because continuing one experiment's weights under another's name is worse than
not running.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.checkpoints.manifest import Commit, checked_commits
from orchestrator.config.resolve import Absent, MaybeScalar, diff, digest, load_experiment
from orchestrator.config.scalars import Json, Scalar
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.runs.extension import EXTENSIONS, extended_run
from orchestrator.runs.numerics import NUMERICS_VERSION, changes_since
from orchestrator.storage.address import TEMPORARY
from orchestrator.storage.local import LocalStorage, Storage, make_private
from orchestrator.storage.run_files import EVALUATION, EVENTS, IDENTITY, LABEL_MAP, MLFLOW, RESOLVED
from orchestrator.storage.sealed import UnusableError, seal, unseal
from orchestrator.tracking.events import read_events
from orchestrator.training.schedules import Extension

#: Layout of ``run.json``. Format 1 had no version of the numbers and refused all changes of code.
FORMAT = 2
_READABLE = (1, FORMAT)
_MAX_BYTES = 16 * 2**20
#: How many changed files a message names.
_NAMED = 8

#: Keys, with everything below them, that may change between two starts of a run: they decide where
#: and how it computes and when it gives up, not what the result is.
#:
#: ``cluster`` is one of them: the objective of a step is that of its whole batch, whatever the
#: number of workers, and a run that could not go on with the machines that are left would not
#: survive the loss of one. ``train.virtual_shards: auto`` keeps the parts that the run began with
#: as long as the number of workers divides them; a start says what any other means for the bits.
NOT_IDENTITY = (
    "name",
    "storage",
    "scratch",
    "tracking",
    "sweep",  # A trial is a run like any other, whatever else was tried.
    "cluster",
    "data.root",  # The data's digest is part of the identity, the place it lies at is not.
    "data.prefetch",
    "data.tasks",
    "data.tasks_on",
    "data.cache",
    "data.keep_decoded",
    "data.follow_links",
    "data.max_bad_fraction",
    "train.init_from",  # Likewise: the digest of the weights is, and not where they lie.
    "train.continue_from",
    "train.evaluation",
    "train.max_steps",  # The schedule is that of the whole run, so a quick look can be continued.
    "train.log_every_steps",
    "train.max_failures",
    "train.nonfinite_limit",
    "train.checkpoint.every_epochs",
    "train.checkpoint.every_steps",
    "train.checkpoint.keep_last",
    "train.checkpoint.keep_best",
    "train.continue",  # What it did to the rate is recorded when it does.
)

#: Keys that runs begun before them do not have, and the values that change nothing.
_LATER_KEYS: Mapping[str, Json] = {
    "detector.class_weights": None,
    "detector.train_canvas": None,
    "detector.loss.prior_score": None,
    "data.orientation": "stored",
    "data.levels": "full",
    "data.sources": [],
    "data.weight": 1.0,
    "data.repeat_threshold": None,
    "data.tiles": None,
    "data.max_pixels": 89_478_485,
    "data.order": "sorted",
    "data.lanes": 1,
    "train.lr_reference_batch": None,
    "train.lr_rule": "linear",
    "train.compile": "auto",
}

#: What values are in a digest, by key. A default became another one: both have one digest, so that
#: the same file stays the same run where :mod:`orchestrator.runs.numerics` does not object, and the
#: old value, when somebody writes it, has a digest of its own.
_IN_DIGEST: Mapping[str, Mapping[Scalar, Json]] = {
    "train.virtual_shards": {"auto": None, None: "none"}
}
#: The first version of the numbers whose records have ``auto`` where the file says nothing.
_AUTO_SHARDS_SINCE = 3

#: Key of the initial weights' digest, in ``run.json`` and in the configuration's digest.
_INITIAL = "initial_weights"

#: Sources that can decide the result; what changed among them is noted, and refuses nothing.
_SOURCES = (
    "detectors",
    "native",
    "orchestrator.accelerators",
    "orchestrator.checkpoints",
    "orchestrator.data",
    "orchestrator.evaluation",
    "orchestrator.training",
)
_SUFFIXES = {".py", ".cpp", ".hpp", ".inl"}


def identity_tree(tree: Mapping[str, Json]) -> dict[str, Json]:
    """A resolved configuration without the keys in ``NOT_IDENTITY``, as it is digested."""
    return _digested(_deciding(tree))


def _deciding(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    kept: dict[str, Json] = {}
    for name, value in tree.items():
        path = prefix + name
        later = path in _LATER_KEYS and value == _LATER_KEYS[path]
        if path not in NOT_IDENTITY and not later:
            kept[name] = _deciding(value, f"{path}.") if isinstance(value, dict) else value
    return kept


def _digested(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found[name] = _digested(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found[name] = value
        else:
            found[name] = _IN_DIGEST.get(prefix + name, {}).get(value, value)
    return found


def _with_shards_of(tree: Mapping[str, Json], before: Mapping[str, Json]) -> Mapping[str, Json]:
    """A configuration recorded when nobody could write ``auto``, as it would be recorded now."""
    train, now = before.get("train"), tree.get("train")
    if not isinstance(train, dict) or not isinstance(now, dict):
        return before
    there, here = train.get("virtual_shards"), now.get("virtual_shards", 0)
    if there is not None or isinstance(here, int):
        return before
    return {**before, "train": {**train, "virtual_shards": here}}


def config_digest(tree: Mapping[str, Json], *, initial: str | None = None) -> str:
    """SHA-256, in hex, of what in a resolved configuration decides the result.

    Args:
        tree: the configuration.
        initial: digest of the weights that the run begins with, if it begins with any.
    """
    kept = identity_tree(tree)
    return digest(kept if initial is None else {**kept, _INITIAL: initial})


@cache
def source_digests() -> dict[str, str]:
    """First 16 hex digits of the SHA-256 of each source file that can decide the result."""
    found = {}
    for name in _SOURCES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise StorageError(f"{name}: its source cannot be found, so a run has no identity")
        origin = Path(spec.origin)
        files = origin.parent.rglob("*") if spec.submodule_search_locations else [origin]
        base = origin.parents[name.count(".") + bool(spec.submodule_search_locations)]
        for file in files:
            if file.suffix in _SUFFIXES:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                found[file.relative_to(base).as_posix()] = content[:16]
    return dict(sorted(found.items()))


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
    """

    kind: Literal["new", "resume"]
    notes: tuple[str, ...] = ()
    extensions: tuple[Extension, ...] = ()


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
    has left there.

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
        ConfigError: the folder holds another experiment.
        DataError: its weights are for other classes, or for the same in another order.
        StorageError: the folder cannot be read.
    """
    storage = LocalStorage(run_dir)
    try:
        checked = checked_commits(commits or storage)
        if not checked and next(read_events(storage.root / EVENTS), None) is None:
            return RunState("new")
        if label_map is not None and checked:
            _require_classes(commits or storage, checked[0], label_map)
        found = _compare(storage, identity, resolved_tree, checked)
    except OSError as error:
        raise _unusable(storage, error) from error
    if found.refused and not force:
        raise ConfigError(
            f"{storage.root}: this run folder holds another experiment:\n"
            + "\n".join(f"  {line}" for line in found.refused)
            + "\nNext: give this experiment another name (name=...), undo the changes, or pass "
            "--force-resume to go on with them from the last checkpoint"
        )
    notes = (*(f"forced: {line}" for line in found.refused), *found.notes)
    return RunState(found.kind, notes, found.extensions)


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
        _INITIAL: identity.initial,
        EXTENSIONS: [[one.epochs, one.how] for one in state.extensions],
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
    initial = _record(run_dir).get(_INITIAL)
    return initial if isinstance(initial, str) else None


def recorded_beginning(run_dir: str | Path) -> str | None:
    """The run whose state the run in this folder began with, as its file named it; or None."""
    train = _record(run_dir).get("config", {}).get("train", {})
    location = train.get("continue_from") if isinstance(train, dict) else None
    return location if isinstance(location, str) else None


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
        for path, there, here in diff(_deciding(before), _deciding(tree))
    ]
    return f"{RESOLVED} is not what the run was trained with: {'; '.join(lines[:_NAMED])}"


def recorded_seed(run_dir: str | Path) -> int | None:
    """Seed of the run in this folder; None if there is no record."""
    seed = _record(run_dir).get("config", {}).get("seed")
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
    refused = _differences(_deciding(theirs), _deciding(tree))
    refused += extended.refused
    notes = [line for line in _differences(theirs, tree) if line not in refused]
    notes += extended.notes
    if stored["data_digest"] != identity.data_digest:
        refused.append(_digests("data", stored["data_digest"], identity.data_digest))
    before_initial = stored.get(_INITIAL)
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
    return _Comparison("resume", tuple(refused), tuple(notes), extended.extensions)


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
