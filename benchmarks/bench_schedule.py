"""The order of sharded samples: how well a window mixes them, and what a million of them cost.

``python benchmarks/bench_schedule.py`` prints two tables. The first compares windows with the full
permutation on a set of COCO train2017's size:

- *moved*: mean distance of a sample from its place in the shards laid out one after the other;
- *neighbours*: how many images have the one stored after them in the same batch;
- *shard mates*: how likely two images of a batch are of one shard;
- *shards*: of a batch, mean; and *in reach*: shards that a node keeps at most.

The second takes ``--rows`` samples: CPU time to the first step of a fresh schedule, that of any
later step, and peak memory of the process beyond the sample ids. The order is made whole, as a
permutation of 8 bytes a sample; what is bounded by the window are the images that are read ahead.
``--computed`` measures ``data.order: computed`` instead, which makes no permutation.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time

import numpy as np

from orchestrator.data.stream.schedule import Schedule, windowed_order

IMAGES, PER_SHARD, BATCH = 118_287, 512, 64
WINDOWS = (512, 2048, 8192, 16_384, 65_536, None)


def plan(n: int, window: int | None, computed: bool) -> Schedule:
    return Schedule(
        seed=1,
        sample_ids=np.arange(n),
        batch_size=BATCH,
        epochs=2,
        window=window,
        bounds=np.append(np.arange(0, n, PER_SHARD), n),
        computed=computed,
    )


def quality(window: int | None, computed: bool) -> dict[str, float]:
    schedule = plan(IMAGES, window, computed)
    found = schedule.order(0)
    shard = np.arange(IMAGES) // PER_SHARD
    laid_out = np.empty(IMAGES, dtype=np.int64)
    laid_out[windowed_order(1, 0, shard, 1)] = np.arange(IMAGES)
    batches = found[: schedule.steps_per_epoch * BATCH].reshape(-1, BATCH)
    batch_of = np.full(IMAGES + 1, -1)
    batch_of[batches] = np.arange(len(batches))[:, None]
    used = np.flatnonzero(batch_of >= 0)
    shards = np.sort(shard[batches], axis=1)
    mates = sum(int((shards[:, gap:] == shards[:, :-gap]).sum()) for gap in range(1, BATCH)) / (
        len(batches) * BATCH * (BATCH - 1) / 2
    )
    return {
        "moved": float(np.abs(laid_out[found] - np.arange(IMAGES)).mean()),
        "neighbours": float((batch_of[used] == batch_of[used + 1]).mean()),
        "shard_mates": mates,
        "shards": float((np.diff(shards, axis=1) > 0).sum(axis=1).mean() + 1),
        "in_reach": float(schedule.shards_in_reach or -(-IMAGES // PER_SHARD)),
    }


def cost(rows: int, window: int, computed: bool) -> dict[str, float]:
    schedule = plan(rows, window, computed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    schedule.samples(schedule.steps_per_epoch // 2)
    first = time.process_time() - begin
    begin = time.process_time()
    for step in range(1000):
        schedule.samples(step)
    later = (time.process_time() - begin) / 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"first_step_s": first, "later_step_us": later * 1e6, "peak_mb": peak / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=16_384)
    parser.add_argument("--computed", action="store_true")
    options = parser.parse_args()
    # Memory first: its peak is that of the process.
    costs = cost(options.rows, options.window, options.computed)
    heads = ("window", 8), ("moved", 8), ("neighbours", 11), ("shard mates", 12), ("shards", 7)
    print(" ".join(f"{name:>{width}}" for name, width in (*heads, ("in reach", 9))))
    rows = {}
    for window in WINDOWS:
        row = rows[str(window or "all")] = quality(window, options.computed)
        print(
            f"{window or 'all':>8} {row['moved']:8.0f} {row['neighbours']:11.3%} "
            f"{row['shard_mates']:12.2%} {row['shards']:7.1f} {row['in_reach']:9.0f}"
        )
    print(
        f"\n{options.rows} rows, window {options.window}: first step {costs['first_step_s']:.2f} s "
        f"of CPU time, later ones {costs['later_step_us']:.0f} us, peak {costs['peak_mb']:.0f} MB"
    )
    settings = {"machine": platform.machine(), "numpy": np.__version__, **vars(options)}
    print(json.dumps({"settings": settings, "quality": rows, "cost": costs}))


if __name__ == "__main__":
    main()
