"""In how many parts a batch is computed, and what another number of workers means for the bits.

``train.virtual_shards: auto`` stands for the number of workers that a run began with. Every commit
holds that number, so that a later start computes the same parts on whatever workers there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config.schema import TrainConfig
from orchestrator.errors import ConfigError


@dataclass(frozen=True)
class Shards:
    """How the batches of one start of a run are cut, beside ``train.accumulate``.

    Attributes:
        count: equal parts of a batch whose gradients are added in order, each with batch statistics
            of its own; None where every worker computes its share at once.
        began: workers that the run began with, which is what ``auto`` stands for; for the commits.
        threads: CPU threads that each of them had; None where it does not matter or is not known.
        text: what this means for the bits, for people; empty where the file decides.
    """

    count: int | None
    began: int
    threads: int | None = None
    text: str = ""

    def to_json(self, threads: int | None) -> dict[str, int | None]:
        """What a commit holds of it, for a start whose workers have so many threads."""
        return {"began": self.began, "threads": self.threads or threads}


def shards_of(
    train: TrainConfig,
    workers: int,
    recorded: dict[str, Any] | None = None,
    *,
    least: int | None = None,
) -> Shards:
    """Decide for one start of a run.

    Args:
        train: its section.
        workers: of this start; the most of them where their number follows the cluster.
        recorded: what :meth:`Shards.to_json` left in the newest commit; None without any.
        least: workers where their number follows the cluster; None where it does not.

    Raises:
        ConfigError: a part of a batch cannot be computed in as many pieces as the file wants.
    """
    found = _decided(train, workers, recorded, least)
    parts = found.count or workers
    share = train.batch_size // parts
    if share % train.accumulate:
        raise ConfigError(
            f"train.accumulate is {train.accumulate}, and the run, which began with "
            f"{_workers(found.began)}, computes each batch of {train.batch_size} in {parts} "
            f"parts of {share} images, which do not divide into so many pieces. Next: set "
            f"train.accumulate to {_divisors(share)}"
        )
    return found


def _decided(
    train: TrainConfig, workers: int, recorded: dict[str, Any] | None, least: int | None
) -> Shards:
    began = workers if recorded is None else int(recorded["began"])
    threads = None if recorded is None else recorded["threads"]
    if train.virtual_shards != "auto":
        return Shards(train.virtual_shards, began)
    if train.sync_batch_norm:
        # Statistics over all workers at once leave nothing that is a shard's own.
        return Shards(None, began)
    if began == workers == 1:
        text = "auto, 1: batches are computed whole; more workers would end in other bits"
        return Shards(None, began, text=text)
    if recorded is None:
        text = f"auto, {workers}: any number of workers that divides it ends in the same bits"
        return Shards(workers, began, text=text)
    if began % workers == 0:
        text = f"auto, {began}: the run began with {_workers(began)}"
        if began != workers:
            text += f", and {workers} end{'s' if workers == 1 else ''} in the same bits"
        return Shards(began, began, threads, text)
    same = [n for n in range(least or workers, workers + 1) if began % n == 0]
    # Where it began with one, whoever names a range wants more.
    if same and began > 1:
        text = (
            f"auto, {began}: the run began with {_workers(began)}, so of {least} to {workers} it "
            f"takes {' or '.join(map(str, same))}, which end in the same bits. Next, for more: "
            "begin another run with its state by train.continue_from"
        )
        return Shards(began, began, threads, text)
    text = (
        f"auto, {workers}: the run began with {_workers(began)}, which {workers} do not divide. "
        f"From here on it ends in other bits than with {began}: sums round in another order, and "
        "batch normalisation sees other images together. Next, if that matters: set "
        f"cluster.workers to {_divisors(began)}"
    )
    return Shards(None if workers == 1 else workers, began, text=text)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _divisors(count: int) -> str:
    return " or ".join(str(n) for n in range(1, count + 1) if count % n == 0)
