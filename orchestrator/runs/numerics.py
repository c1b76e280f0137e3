"""The version of this program's numbers, which is part of what a run is.

Two starts of a run give the same bits only if the code between them computes the same. Comparing
the code itself would end every running experiment at every comment, so the version is raised by
hand, in the change that alters a result. ``tests/reference/test_reference_digests.py`` fails where
that was forgotten, or where the changelog does not say what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.config.scalars import Json


@dataclass(frozen=True)
class NumericsChange:
    """A change of the program after which some experiments end in other bits.

    Attributes:
        version: the first version that has it.
        what: what is computed differently, as a phrase that stands alone.
        affects: whether an experiment, as its resolved tree, computes anything differently because
            of it.
    """

    version: int
    what: str
    affects: Callable[[Mapping[str, Json]], bool]


def _cuts_batches(tree: Mapping[str, Json]) -> bool:
    """Whether a batch of the experiment is computed in more than one piece."""
    train, cluster = tree.get("train"), tree.get("cluster")
    pieces = train.get("accumulate", 1) if isinstance(train, dict) else 1
    shards = train.get("virtual_shards") if isinstance(train, dict) else None
    workers = cluster.get("workers", 1) if isinstance(cluster, dict) else 1
    return pieces != 1 or workers != 1 or isinstance(shards, int)


def _shards_by_workers(tree: Mapping[str, Json]) -> bool:
    """Whether the shards of the experiment are its workers, of which there are several."""
    train, cluster = tree.get("train"), tree.get("cluster")
    shards = train.get("virtual_shards") if isinstance(train, dict) else None
    shared = train.get("sync_batch_norm") if isinstance(train, dict) else None
    workers = cluster.get("workers", 1) if isinstance(cluster, dict) else 1
    return shards == "auto" and not shared and workers != 1


def _claims_proposals(tree: Mapping[str, Json]) -> bool:
    """Whether boxes claim proposals, as in the MindSpore zoo's Faster R-CNN."""
    found: object = tree
    for name in ("detector", "head", "assignment", "claims"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found not in (None, "none")


def _chooses_levels(tree: Mapping[str, Json]) -> bool:
    """Whether images of more than 8 bits have other grey levels than all of theirs."""
    data = tree.get("data")
    return isinstance(data, dict) and data.get("levels", "full") != "full"


#: Every change, oldest first. Version 1 is that of all runs recorded before there were versions.
CHANGES: Final[Sequence[NumericsChange]] = (
    NumericsChange(
        2,
        "losses of a batch in several pieces are divided by the counts of the whole batch, and "
        "random numbers go by an image's place in it",
        _cuts_batches,
    ),
    NumericsChange(
        3,
        "gradients of several workers are added in the order of the workers, and batch-norm "
        "statistics are the mean of theirs; train.virtual_shards: null is what it was",
        _shards_by_workers,
    ),
    NumericsChange(
        4,
        "boxes join the proposals of the MindSpore zoo's Faster R-CNN after they have claimed some",
        _claims_proposals,
    ),
    NumericsChange(
        5,
        "with data.levels, 16-bit TIFFs of colours, or counting from white, have their own pixels",
        _chooses_levels,
    ),
)

NUMERICS_VERSION: Final = CHANGES[-1].version if CHANGES else 1


def changes_since(version: int, tree: Mapping[str, Json]) -> list[str]:
    """What has changed since ``version`` for an experiment; empty where its bits are the same.

    Args:
        version: recorded with a run.
        tree: the resolved experiment.
    """
    return [
        f"numerics version {change.version}: {change.what}"
        for change in CHANGES
        if change.version > version and change.affects(tree)
    ]
