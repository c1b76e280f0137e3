"""Shards written by Ray Data, one task each, on whatever nodes there are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import numpy as np
import ray
import ray.data
from ray.data import TaskPoolStrategy

from orchestrator.data.dataset import Dataset
from orchestrator.data.ray_rows import Rows, hush_ray_data, require_rows, rows_or_error
from orchestrator.data.shards.writer import Shard, put_shard
from orchestrator.storage.folders import open_folder


def shards_by_ray(
    data: Dataset, location: str, images_per_shard: int, count: int, *, tasks: int
) -> Iterator[Shard]:
    """Put ``count`` shards in their places; Ray must have been initialised.

    Args:
        data: to write; its image files must be reachable from every node.
        location: folder of the shards, a path that all nodes share or a URI.
        images_per_shard: images of every shard but the last.
        count: of shards.
        tasks: shards written at a time.

    Raises:
        DataError: the folder holds shards of another data set.
        StorageError: it cannot be written.
    """
    hush_ray_data()
    work = partial(
        _put_rows, data_ref=ray.put(data), location=location, images_per_shard=images_per_shard
    )
    blocks = [np.array([number]) for number in range(count)]
    dataset = ray.data.from_numpy(blocks).map_batches(
        work,
        batch_size=None,
        batch_format="numpy",
        compute=TaskPoolStrategy(size=min(tasks, count)),
        num_cpus=1,
    )
    dataset.context.enable_progress_bars = False
    for rows in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        require_rows(rows)
        for text in rows["shard"]:
            yield Shard(**json.loads(text))


def _put_rows(
    rows: Rows, *, data_ref: ray.ObjectRef[Dataset], location: str, images_per_shard: int
) -> Rows:
    """The map stage."""
    data: Dataset = ray.get(data_ref)

    def put() -> Rows:
        folder = open_folder(location)
        shards = [put_shard(data, folder, int(i), images_per_shard) for i in rows["data"]]
        return {"shard": np.array([json.dumps(vars(shard)) for shard in shards])}

    return rows_or_error(put)
