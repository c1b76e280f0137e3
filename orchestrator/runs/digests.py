"""What of an experiment decides its result, as digests: of its settings and of its sources.

Both go into ``run.json``; :mod:`orchestrator.runs.identity` compares them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from orchestrator.config.resolve import digest
from orchestrator.config.scalars import Json, Scalar
from orchestrator.errors import StorageError

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

#: Key of the initial weights' digest, in ``run.json`` and in the configuration's digest.
INITIAL = "initial_weights"

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
    return _digested(deciding_tree(tree))


def deciding_tree(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """A resolved configuration without the keys in ``NOT_IDENTITY``, and as its run wrote it.

    Args:
        tree: the configuration, or what lies below ``prefix`` of it.
        prefix: path of the tree within the configuration, with a dot at its end.
    """
    kept: dict[str, Json] = {}
    for name, value in tree.items():
        path = prefix + name
        later = path in _LATER_KEYS and value == _LATER_KEYS[path]
        if path not in NOT_IDENTITY and not later:
            kept[name] = deciding_tree(value, f"{path}.") if isinstance(value, dict) else value
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


def config_digest(tree: Mapping[str, Json], *, initial: str | None = None) -> str:
    """SHA-256, in hex, of what in a resolved configuration decides the result.

    Args:
        tree: the configuration.
        initial: digest of the weights that the run begins with, if it begins with any.
    """
    kept = identity_tree(tree)
    return digest(kept if initial is None else {**kept, INITIAL: initial})


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
