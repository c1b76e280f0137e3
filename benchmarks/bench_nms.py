"""Soft-NMS and NMS beside their peers: a plain C port of the published one, NumPy, torchvision.

    python benchmarks/bench_nms.py [--rounds 5] [--quick]

Times are CPU time of the process, the median of rounds in which all take turns, on one thread.
The C port is compiled here with -O3 -march=native and is timed without the grouping by class; ours
is called from Python and timed with all its checks. Results are compared before they are timed:
Soft-NMS must equal the port bit for bit. ensemble-boxes joins in if it is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results import keep
from timing import median_ms, table
from torchvision.ops import batched_nms

import native
from native import reference
from native.rules import make_rule
from native.types import Float32, Int64

try:
    ensemble_nms: Any = importlib.import_module("ensemble_boxes.ensemble_boxes_nms").nms_method
except ImportError:
    ensemble_nms = None

METHODS: tuple[native.Method, ...] = ("linear", "gaussian", "hard")
IOU, SIGMA, CUT = 0.3, 0.5, 0.001


class Scene(NamedTuple):
    boxes: Float32
    scores: Float32
    labels: Int64


def make_scene(count: int, classes: int) -> Scene:
    """Forty candidates around each object of a 512-pixel image; few high scores, none equal."""
    rng = np.random.default_rng(count + classes)
    objects = max(count // 40, 1)
    centers = rng.uniform(0, 512, (objects, 2))
    sizes = np.exp(rng.uniform(np.log(12), np.log(300), (objects, 2)))
    of = rng.integers(0, objects, count)
    center = centers[of] + rng.normal(0, 0.15, (count, 2)) * sizes[of]
    half = sizes[of] * np.exp(rng.normal(0, 0.2, (count, 2))) / 2
    boxes = np.concatenate([center - half, center + half], 1).clip(0, 512).astype(np.float32)
    ranks = rng.permutation(count) / count
    scores = (0.01 + 0.98 * ranks**2).astype(np.float32)
    return Scene(boxes, scores, rng.integers(0, classes, count))


class Classic:
    """The C port, given its classes already apart."""

    def __init__(self, folder: Path, *flags: str) -> None:
        source = Path(__file__).with_name("classic_soft_nms.c")
        library = folder / f"classic{len(flags)}.so"
        compiler = shutil.which("cc") or sys.exit("the C port needs a compiler: no cc on PATH")
        options = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", *flags]
        subprocess.run([compiler, *options, source, "-o", library, "-lm"], check=True)
        self._run = ctypes.CDLL(str(library)).classic_soft_nms
        self._run.restype = ctypes.c_long
        real = ctypes.c_float
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int, real, real, real]

    def prepare(self, scene: Scene, method: native.Method) -> Callable[[], list[Float32]]:
        rows = np.concatenate(
            [scene.boxes, scene.scores[:, None], np.arange(len(scene.boxes))[:, None]], axis=1
        ).astype(np.float32)
        groups = [rows[scene.labels == label] for label in np.unique(scene.labels)]
        code = METHODS.index(method)

        def run() -> list[Float32]:
            work = [group.copy() for group in groups]
            counts = [
                self._run(part.ctypes.data, len(part), code, IOU, SIGMA, CUT) for part in work
            ]
            return [part[:count] for part, count in zip(work, counts, strict=True)]

        return run


def soft(
    scene: Scene,
    method: native.Method,
    *,
    max_per_class: int | None = None,
    max_total: int | None = None,
) -> tuple[Int64, Float32]:
    keep, decayed, _ = native.soft_nms_batch(
        *scene,
        np.array([0, len(scene.boxes)]),
        method=method,
        iou_threshold=IOU,
        sigma=SIGMA,
        score_threshold=CUT,
        max_per_class=max_per_class,
        max_total=max_total,
        threads=1,
    )
    return keep, decayed


def hard(scene: Scene, *, max_total: int | None = None) -> Int64:
    offsets = np.array([0, len(scene.boxes)])
    return native.nms_batch(*scene, offsets, iou_threshold=0.5, max_total=max_total, threads=1)[0]


def check_soft(classic: Classic, scene: Scene, method: native.Method) -> None:
    expected = np.concatenate(classic.prepare(scene, method)())
    keep, decayed = soft(scene, method)
    order = np.lexsort((expected[:, 5], -expected[:, 4]))
    if not np.array_equal(expected[order, 5], keep) or not np.array_equal(
        expected[order, 4], decayed
    ):
        sys.exit(f"{method}, {len(scene.boxes)} boxes: not the result of the C port")


def rounded(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


#: Times as fast as the peer, by what was measured.
RATIOS: dict[str, float] = {}


def soft_row(scene: Scene, method: native.Method, classic: Classic, rounds: int) -> dict[str, str]:
    times = median_ms(
        {
            "C": classic.prepare(scene, method),
            "all": lambda: soft(scene, method),
            "50 a class": lambda: soft(scene, method, max_per_class=50),
            "top 100": lambda: soft(scene, method, max_total=100),
        },
        rounds,
    )
    rule = make_rule(
        method=method,
        iou_threshold=IOU,
        sigma=SIGMA,
        score_threshold=CUT,
        plus_one=False,
        top_k_per_class=None,
        max_per_class=None,
        max_total=None,
    )
    whole = np.array([0, len(scene.boxes)])
    slow: dict[str, Callable[[], object]] = {
        "NumPy": lambda: reference.suppress(*scene, whole, rule, 1)
    }
    if ensemble_nms is not None:
        unit = scene.boxes / 512
        slow["ensemble-boxes"] = lambda: ensemble_nms(
            [unit], [scene.scores], [scene.labels], METHODS.index(method) + 1, IOU, SIGMA, CUT
        )
    times |= median_ms(slow, 1)
    row = {name: rounded(value) for name, value in times.items()}
    for name in ("all", "50 a class", "top 100"):
        row[name] += f" ({times['C'] / times[name]:.1f}x)"
        RATIOS[f"{method}, {scene_name(scene)}, {name}"] = times["C"] / times[name]
    return row


def hard_row(scene: Scene, rounds: int) -> dict[str, str]:
    tensors = [torch.from_numpy(part) for part in scene]
    kept = batched_nms(*tensors, 0.5).numpy()
    ours = hard(scene)
    times = median_ms(
        {
            "torchvision": lambda: batched_nms(*tensors, 0.5),
            "all": lambda: hard(scene),
            "top 100": lambda: hard(scene, max_total=100),
        },
        rounds,
    )
    row = {name: rounded(value) for name, value in times.items()}
    for name in ("all", "top 100"):
        row[name] += f" ({times['torchvision'] / times[name]:.1f}x)"
        RATIOS[f"NMS, {scene_name(scene)}, {name}"] = times["torchvision"] / times[name]
    return row | {"kept differently": str(len(np.setxor1d(kept, ours)))}


def scene_name(scene: Scene) -> str:
    return f"{len(scene.boxes)} boxes, {int(scene.labels.max()) + 1} classes"


def show(title: str, rows: list[dict[str, str]]) -> None:
    print(f"\n{title}\n")
    table(*rows[0])
    for row in rows:
        print(f"| {' | '.join(row.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="only 1000 and 5000 boxes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if native.backend() != "native":
        sys.exit("the kernels are not compiled here: nothing to measure")
    soft_rows, hard_rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        fast = Classic(Path(folder))
        exact = Classic(Path(folder), "-DEXACT_EXP")
        for count in (1000, 5000) if arguments.quick else (1000, 5000, 20000):
            for classes in (80, 1):
                scene = make_scene(count, classes)
                size = {"boxes": str(count), "classes": str(classes)}
                for method in METHODS[:2]:
                    check_soft(exact, scene, method)
                    row = soft_row(scene, method, fast, arguments.rounds)
                    soft_rows.append({**size, "method": method, **row})
                hard_rows.append({**size, **hard_row(scene, arguments.rounds)})
    show("Soft-NMS, ms CPU (times as fast as C)", soft_rows)
    show("NMS, ms CPU (times as fast as torchvision)", hard_rows)
    keep("nms", RATIOS)


if __name__ == "__main__":
    main()
