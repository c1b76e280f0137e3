"""Three steps of every recipe in small: what the stored digests of this program's numbers are of.

Run with the environment in ``PORTABLE``, so that kernels of one kind serve on every processor of an
architecture::

    python tests/reference/reference_run.py             prints losses and digests as json
    python tests/reference/reference_run.py --record    stores them beside this file

Recording is for a change of results that was meant: raise the version in
``orchestrator/runs/numerics.py`` and describe the change there and in CHANGELOG.md first.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("digests.json")

#: No instruction set that some processor of the architecture lacks, one thread, and no choice of
#: kernels by the processor's make. Read when libraries are imported, so set before Python starts.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}

#: Of three steps each: warm-ups of thousands of steps have to come to an end.
_LONG = "train.epochs=1000"
_FASTER_RCNN = (
    "detector.input_size=[128, 128]",
    "detector.train_canvas=null",
    "detector.width=0.125",
    "detector.norm=batch",
    _LONG,
)
#: A recipe for each detector, optimizer, schedule and augmentation, with what makes it small.
RECIPES: dict[str, tuple[str, ...]] = {
    "faster_rcnn": _FASTER_RCNN,
    "faster_rcnn_torchvision": _FASTER_RCNN,
    "m2det": ("detector.variant=m2det320_vgg16", "detector.width=0.0625", "detector.levels=2"),
    "quickstart": (),
    "retinanet_spinenet49s": (
        "detector.input_size=[128, 128]",
        "detector.width=0.125",
        _LONG,
    ),
    "ssd300_mobilenet_v2_coco": ("detector.width=0.25",),
}
STEPS = 3


def kind_of_processor() -> str:
    """Architecture and make, as ``x86_64 GenuineIntel``."""
    make = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text())
        make = found[1] if found else ""
    return f"{platform.machine()} {make}".strip()


def run_recipe(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """Losses and the SHA-256 of the weights after ``STEPS`` steps of a recipe."""
    from orchestrator.accelerators import Accelerator
    from orchestrator.config.resolve import load_experiment
    from orchestrator.data.stream.local import LocalStream
    from orchestrator.runs.plan import make_plan
    from orchestrator.tracking.events import metric_history
    from orchestrator.training.session import run_rank

    overrides = {
        "data.root": data,
        "data.format": "coco",
        "data.train.images": "images",
        "data.train.annotations": "annotations/instances_train.json",
        "data.val.images": "images",
        "data.val.annotations": "annotations/instances_val.json",
        "cluster.workers": 1,
        "cluster.accelerator": "cpu",
        "train.precision": "fp32",
        "train.loss_scale": "dynamic",
        "train.batch_size": 4,
        "train.max_steps": STEPS,
        "train.log_every_steps": 1,
        "train.evaluate_every_epochs": 10_000,
        "tracking.mlflow": "null",
    }
    words = [f"{key}={value}" for key, value in overrides.items()]
    resolved = load_experiment(ROOT / "experiments" / f"{name}.yaml", [*words, *RECIPES[name]])
    plan = make_plan(resolved, folder, threads=1)
    stream = LocalStream(plan.batches)
    images = hashlib.sha256()
    for batch in LocalStream(plan.batches).train_batches(0, STEPS):
        images.update(batch.images.tobytes() + batch.boxes.tobytes() + batch.labels.tobytes())
    outcome = run_rank(plan.job, stream, accelerator=Accelerator("cpu"))
    losses = [point.value for point in metric_history(folder / "events.jsonl", "train/loss")]
    return {
        "losses": losses,
        "batches": images.hexdigest()[:16],
        "weights": outcome.weights_sha256[:16],
    }


def run_all() -> dict[str, Any]:
    """:func:`run_recipe` of every recipe, by name, with the version of torch that ran it."""
    import torch

    from orchestrator.data.demo.digits import Recipe, build_digits

    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "digits"
        build_digits(data, Recipe(train=12, val=2, seed=3))
        runs = {name: run_recipe(name, data, Path(temporary) / name) for name in RECIPES}
    return {"torch": torch.__version__.partition("+")[0], "runs": runs}


def run_portably() -> dict[str, Any]:
    """:func:`run_all` in a process of its own with the environment in ``PORTABLE``."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, **PORTABLE, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def record() -> None:
    """Store what this machine gives: digests for its kind of processor, losses for all kinds."""
    from orchestrator.runs.numerics import NUMERICS_VERSION

    now = run_portably()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"digests": {}}
    if stored.get("numerics_version") != NUMERICS_VERSION or stored.get("torch") != now["torch"]:
        stored = {"digests": {}}
    stored |= {"numerics_version": NUMERICS_VERSION, "torch": now["torch"]}
    stored["losses"] = {name: run.pop("losses") for name, run in now["runs"].items()}
    stored["digests"][kind_of_processor()] = now["runs"]
    STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        print(json.dumps(run_all()))
