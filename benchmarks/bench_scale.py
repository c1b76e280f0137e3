"""Memory of the processes of a run as its data set grows: tables alone, no image is made.

``python benchmarks/bench_scale.py --images 100000 1000000 10000000`` writes manifests of so many
images with seven boxes each, beside empty shards, and looks at processes of their own:

- *driver*: reads the splits and lays out the run (``BatchPlan.from_config``);
- *sent*: bytes of the plan that go into the object store of every node, as Ray pickles it;
- *reader*: takes the plan and finds samples and boxes of 300 batches of 64.

Of each process: its own memory (``RssAnon`` of proc(5), the peak for the driver) beyond what its
imports take, and the mapped pages of the manifest that it has looked at (``RssFile``), which all
processes of a node share and the system may drop. The exponent is that of a power law through the
smallest and the largest number of images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

BOXES, PER_SHARD, SHARD_BYTES = 7, 512, 80 << 20
BATCH, STEPS = 64, 300


def write_split(folder: Path, images: int) -> None:
    """The manifest of a split, its index, and shards that hold nothing."""
    import numpy as np
    import pyarrow as pa

    from orchestrator.data.columns import ManifestFile
    from orchestrator.data.label_map import LabelMap
    from orchestrator.data.sharded_images import shard_name
    from orchestrator.data.shards.manifest import ROW_FIELDS, decode
    from orchestrator.data.shards.split import _PLACE_TYPES, Index

    folder.mkdir(parents=True)
    rng = np.random.Generator(np.random.PCG64(1))
    boxes = images * BOXES
    offsets = pa.array(np.arange(0, boxes + 1, BOXES, dtype=np.int32))
    low = rng.integers(0, 300, (boxes, 2)).astype(np.float64)
    xywh = pa.array(np.concatenate([low, low % 97 + 4], axis=1).ravel())
    # train2017/000000000000.jpg and so on, without a string of each.
    names = np.tile(np.frombuffer(b"train2017/000000000000.jpg", np.uint8), (images, 1))
    for digit in range(12):
        names[:, 21 - digit] += (np.arange(images) // 10**digit % 10).astype(np.uint8)
    ends = np.arange(images + 1, dtype=np.int32) * names.shape[1]
    columns = [
        pa.StringArray.from_buffers(images, pa.py_buffer(ends), pa.py_buffer(names.ravel())),
        pa.array(np.arange(images)),
        pa.array(np.full(images, 640, np.int32)),
        pa.array(np.full(images, 480, np.int32)),
        pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(xywh, 4)),
        pa.ListArray.from_arrays(offsets, pa.array(rng.integers(0, 80, boxes))),
        pa.ListArray.from_arrays(offsets, pa.array(rng.random(boxes) * 1e4)),
        pa.ListArray.from_arrays(offsets, pa.array(np.zeros(boxes, bool))),
        pa.array((np.arange(images) // PER_SHARD).astype(np.int32)),
        pa.array(np.arange(images) % PER_SHARD * 150_000),
        pa.array(np.full(images, 150_000)),
        pa.array(np.zeros(images, np.uint32)),
        pa.array(np.ones(images, bool)),
    ]
    places = [pa.field(name, kind, nullable=False) for name, kind in _PLACE_TYPES.items()]
    schema = pa.schema([*ROW_FIELDS, *places])
    path = folder / "manifest.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    del columns, xywh, low, names
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    shards = -(-images // PER_SHARD)
    for number in range(shards):
        with (folder / shard_name(number)).open("wb") as file:
            file.truncate(SHARD_BYTES)
    label_map = LabelMap(tuple(f"class {n}" for n in range(80)), tuple(range(1, 81)))
    index = Index("", "", label_map, images, PER_SHARD, True, sha)
    (folder / "index.json").write_bytes(index.to_json())
    data = decode(ManifestFile(str(folder), sha).columns(), label_map, str(folder))
    sizes, digests = (SHARD_BYTES,) * shards, ("0" * 64,) * shards
    index = Index(
        data.digest, data.content_digest, label_map, images, PER_SHARD, True, sha, sizes, digests
    )
    (folder / "index.json").write_bytes(index.to_json())


def rss() -> dict[str, float]:
    """Megabytes of this process: its own, and mapped."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


class Peak:
    """The most memory of its own that this process has while it runs, beyond that at its begin."""

    def __enter__(self) -> Peak:
        self._before = rss()
        self.own = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._over.set()
        self._thread.join()
        now = rss()
        self.kept = now["RssAnon"] - self._before["RssAnon"]
        self.mapped = now["RssFile"] - self._before["RssFile"]

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.own = max(self.own, rss()["RssAnon"] - self._before["RssAnon"])


def driver(folder: Path, order: str) -> dict[str, Any]:
    """What the driver does with the tables."""
    from orchestrator.config.schema import DataConfig, SplitConfig
    from orchestrator.data.readers.split import read_splits
    from orchestrator.data.stream.assemble import BatchPlan
    from orchestrator.training.job import TrainingJob  # Brings torch, as in a driver.

    splits = {name: SplitConfig(shards=str(folder / name)) for name in ("train", "val")}
    config = DataConfig(root="/", order=order, **splits)
    imports = rss()["RssAnon"]
    with Peak() as peak:
        train, val = (read.dataset for read in read_splits(config))
        plan = BatchPlan.from_config(
            config,
            train,
            val,
            seed=1,
            epochs=3,
            batch_size=BATCH,
            workers=1,
            input_size=(512, 512),
        )
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(plan, protocol=5, buffer_callback=buffers.append)
    assert TrainingJob is not None
    with (folder / "plan.pickle").open("wb") as file:
        pickle.dump((stream, [bytes(buffer.raw()) for buffer in buffers]), file)
    sent = len(stream) + sum(len(buffer.raw()) for buffer in buffers)
    return {
        "imports": imports,
        "peak": peak.own,
        "kept": peak.kept,
        "mapped": peak.mapped,
        "seconds": peak.seconds,
        "sent": sent / 2**20,
    }


def reader(folder: Path) -> dict[str, Any]:
    """What a data task does with the tables; Ray maps the buffers, which are left out here."""
    import orchestrator.data.stream.ray_stream  # noqa: F401
    from orchestrator.data.stream.assemble import BatchPlan

    imports = rss()["RssAnon"]
    with (folder / "plan.pickle").open("rb") as file:
        stream, buffers = pickle.load(file)
    with Peak() as peak:
        began = time.perf_counter()
        plan: BatchPlan = pickle.loads(stream, buffers=buffers)
        first = 0.0
        for step in range(STEPS):
            for sample in plan.schedule.rank_samples(step, 0, 1).tolist():
                plan.train.training_boxes(sample)
            first = first or time.perf_counter() - began
    return {
        "imports": imports,
        "peak": peak.own,
        "kept": peak.kept,
        "mapped": peak.mapped,
        "first": first,
    }


def child(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--order", default="computed", choices=("computed", "sorted"))
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, folder, *rest = arguments.child
        if what == "write":
            write_split(Path(folder), int(rest[0]))
            print("{}")
            return
        print(
            json.dumps(driver(Path(folder), rest[0]) if what == "driver" else reader(Path(folder)))
        )
        return
    print("in MB: | images | driver, peak (kept) | mapped | s | sent | reader, peak | mapped |")
    found: list[tuple[int, float, float]] = []
    for images in arguments.images:
        with tempfile.TemporaryDirectory(prefix="scale-") as name:
            folder = Path(name)
            child("--child", "write", str(folder / "val"), "5000")
            child("--child", "write", str(folder / "train"), str(images))
            one = child("--child", "driver", str(folder), arguments.order)
            other = child("--child", "reader", str(folder))
        print(
            f"| {images:,} | {one['peak']:.0f} ({one['kept']:.0f}) | {one['mapped']:.0f} "
            f"| {one['seconds']:.1f} | {one['sent']:.1f} | {other['peak']:.1f} "
            f"| {other['mapped']:.0f} |",
            flush=True,
        )
        print(
            f"imports: driver {one['imports']:.0f} MB, reader {other['imports']:.0f} MB; first "
            f"batch's tables after {other['first'] * 1000:.0f} ms",
            file=sys.stderr,
        )
        found.append((images, one["imports"] + one["peak"], other["imports"] + other["peak"]))
    if len(found) > 1:
        (low, *before), (high, *after) = found[0], found[-1]
        exponents = [
            math.log(y / x) / math.log(high / low) for x, y in zip(before, after, strict=True)
        ]
        print(f"exponent of memory by images: driver {exponents[0]:.3f}, reader {exponents[1]:.3f}")


if __name__ == "__main__":
    main()
