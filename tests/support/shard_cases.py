"""Shards without Ray, for tests of what is in them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.data.dataset import Dataset
from orchestrator.data.shards.writer import Shard, Written, put_shard, write_shards
from orchestrator.storage.folders import open_folder


def shard_here(
    data: Dataset, location: str, *, per: int = 4, stop_after: int | None = None
) -> Written:
    """Write shards in this process; ``stop_after`` of them everything breaks off."""

    def in_process(data: Dataset, location: str, per: int, count: int) -> Iterator[Shard]:
        for number in range(count):
            if number == stop_after:
                raise KeyboardInterrupt
            yield put_shard(data, open_folder(location), number, per)

    return write_shards(data, location, images_per_shard=per, run=in_process)
