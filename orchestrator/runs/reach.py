"""Which nodes of the cluster see what a run needs, and its folder: looked at before the first step.

A run folder need not be shared: where nodes do not see it, their workers send what they write
through the driver (:mod:`orchestrator.cluster.relay`). What they read they have to see. Nodes that
join later are looked at before the next start of workers, which may be put there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator.cluster.nodes import (
    Node,
    alive_nodes,
    leave_note,
    names_of,
    read_note,
    this_node,
)
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.cluster.survey import Needed, survey
from orchestrator.data.dataset import Dataset
from orchestrator.errors import StorageError
from orchestrator.runs.plan import Plan
from orchestrator.storage.address import is_remote


class Surroundings:
    """The nodes of a cluster that a run has looked at.

    Args:
        plan: of the run.
        marker: a file in its folder, by which workers know the folder; None where every worker
            runs on this node, and always will.
        say: told where the folder is not shared.
    """

    def __init__(self, plan: Plan, marker: Path | None, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._marker = marker
        self._say = say
        self._seen: set[str] = set()

    @property
    def marker(self) -> str | None:
        """Name of the file."""
        return None if self._marker is None else self._marker.name

    def look(self, done: int) -> None:
        """Look at the nodes that have joined since the last time; at first at all.

        Args:
            done: optimizer steps behind the newest commit.

        Raises:
            ConfigError: a node does not see what it needs, or two cannot talk to each other.
        """
        if self._marker is None:
            return
        joined = [node for node in alive_nodes() if node.cpus > 0 and node.id not in self._seen]
        if any(node.id != this_node() for node in joined):
            private = survey(joined, needed_by(self._plan, done), self._marker)
            if private and self._plan.job.bucket is None:
                leave_note(_note_of(self._marker.parent), this_node())
            if private:
                self._say(
                    f"run folder: {self._marker.parent} is on the driver's node alone; workers on "
                    f"{names_of(private)} send through it what they write"
                )
        self._seen |= {node.id for node in joined}


@contextmanager
def marked_folder(
    plan: Plan, run_dir: Path, *, done: int, say: Callable[[str], None]
) -> Iterator[Surroundings]:
    """Look around in the cluster; the run folder holds a mark by which workers know it.

    Args:
        plan: of the run.
        run_dir: its folder, or its working folder, on this node.
        done: optimizer steps behind its newest commit.
        say: told where the folder is not shared.

    Raises:
        ConfigError: a node does not see what it needs, or two cannot talk to each other.
        StorageError: the run has its folder on another node's disk.
    """
    for left in run_dir.glob(".here-*"):  # By a driver that was killed.
        left.unlink(missing_ok=True)
    if is_own_ray():
        yield Surroundings(plan, None, say)
        return
    _require_home(run_dir, {node.id: node for node in alive_nodes()}, done)
    # Its name was never looked up before, so no node has cached that it is not there.
    marker = run_dir / f".here-{uuid.uuid4().hex}"
    marker.touch()
    try:
        around = Surroundings(plan, marker, say)
        around.look(done)
        yield around
    finally:
        marker.unlink(missing_ok=True)


def _note_of(run_dir: Path) -> str:
    return f"home of {run_dir}"


def _require_home(run_dir: Path, nodes: Mapping[str, Node], done: int) -> None:
    """Refuse to begin anew what has its folder on another node's disk.

    Raises:
        StorageError: it has.
    """
    home = nodes.get(read_note(_note_of(run_dir)) or "")
    if home is None or done or home.id == this_node():
        return
    raise StorageError(
        f"{run_dir}: this run lives in the folder of that name on {home}, and here it has no "
        f"checkpoint. Next: start it on {home.host} to go on; or give this run another name; with "
        "a bucket as storage, any node goes on"
    )


def needed_by(plan: Plan, done: int) -> list[Needed]:
    """What every node that trains or reads has to see, where it is no bucket.

    Args:
        plan: of the run.
        done: optimizer steps behind its newest commit; initial weights are read before the first.
    """
    needed: list[Needed] = []
    for split, dataset in (("train", plan.batches.train), ("val", plan.batches.val)):
        needed += images_of(dataset, f"data.{split}")
    initial = plan.job.initial
    if initial is not None and not done:
        key = "train.continue_from" if initial.kind == "state" else "train.init_from"
        needed.append(Needed(key, initial.path))
    return needed


def images_of(dataset: Dataset, section: str) -> list[Needed]:
    """Where the pixels of a split are: its folder, and its first and last image if they are files.

    Args:
        dataset: the split.
        section: of the experiment that names it.
    """
    if is_remote(dataset.root):
        return []
    if dataset.shards is not None:
        return [Needed(f"{section}.shards", dataset.root)]
    last = (dataset.parts[0][0] if dataset.parts else len(dataset)) - 1
    ends = sorted({0, last}) if len(dataset) else []
    paths = [dataset.root, *(str(dataset.path(index)) for index in ends)]
    needed = [Needed(f"{section}.images", path) for path in paths]
    for number, (first, root) in enumerate(dataset.parts):
        key = f"data.sources.{number}.images"
        needed += [Needed(key, root), Needed(key, str(dataset.path(first)))]
    return needed
