"""Which nodes of the cluster see what a run needs, and its folder: looked at before the first step.

A run folder need not be shared: where nodes do not see it, their workers send what they write
through the driver (:mod:`orchestrator.cluster.relay`). What they read they have to see.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cluster.connection import is_own_ray
from orchestrator.cluster.nodes import alive_nodes, names_of, this_node
from orchestrator.cluster.survey import Needed, survey
from orchestrator.data.dataset import Dataset
from orchestrator.runs.plan import Plan
from orchestrator.storage.address import is_remote


@contextmanager
def marked_folder(
    plan: Plan, run_dir: Path, *, done: int, say: Callable[[str], None]
) -> Iterator[str | None]:
    """Look around in the cluster; the run folder holds a mark by which workers know it.

    Args:
        plan: of the run.
        run_dir: its folder, or its working folder, on this node.
        done: optimizer steps behind its newest commit.
        say: told where the folder is not shared.

    Yields:
        Name of the mark; None where every worker runs on this node.

    Raises:
        ConfigError: a node does not see what it needs, or two cannot talk to each other.
    """
    if is_own_ray():
        yield None
        return
    # Its name was never looked up before, so no node has cached that it is not there.
    marker = run_dir / f".here-{uuid.uuid4().hex}"
    marker.touch()
    try:
        nodes = [node for node in alive_nodes() if node.cpus > 0]
        if any(node.id != this_node() for node in nodes):
            private = survey(nodes, needed_by(plan, done), marker)
            if private:
                say(
                    f"run folder: {run_dir} is on the driver's node alone; workers on "
                    f"{names_of(private)} send through it what they write"
                )
        yield marker.name
    finally:
        marker.unlink(missing_ok=True)


def needed_by(plan: Plan, done: int) -> list[Needed]:
    """What every node that trains or reads has to see, where it is no bucket.

    Args:
        plan: of the run.
        done: optimizer steps behind its newest commit; initial weights are read before the first.
    """
    needed: list[Needed] = []
    for split, dataset in (("train", plan.batches.train), ("val", plan.batches.val)):
        what = "images" if dataset.shards is None else "shards"
        needed += [Needed(f"data.{split}.{what}", path) for path in _paths(dataset)]
    initial = plan.job.initial
    if initial is not None and not done:
        needed.append(Needed("train.init_from", initial.path))
    return needed


def _paths(dataset: Dataset) -> list[str]:
    """The folder, and the first and the last image of a set that has them as files."""
    if is_remote(dataset.root):
        return []
    if dataset.shards is not None or not len(dataset):
        return [dataset.root]
    ends = {0, len(dataset) - 1}
    return [dataset.root, *(str(dataset.path(index)) for index in sorted(ends))]
