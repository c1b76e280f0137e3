"""What starting weights buy: a backbone in torchvision's published layout against random weights.

Nothing is downloaded. A detector is trained on generated scenes of handwritten digits, its backbone
written as torchvision publishes its MobileNetV2 classifier (``features.<i>``, by ``torch.save``),
and that file named by ``train.init_from`` of a run on other scenes. The same run from random
weights gets four times as many steps; each run has a schedule of its own length.

    python benchmarks/study_finetune.py --out docs/finetune.svg
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import tempfile
import time
from pathlib import Path

import small_runs
import torch
from safetensors.torch import load_file

from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.pages import charts
from orchestrator.storage.run_files import CHECKPOINTS, EVENTS
from orchestrator.tracking.events import read_events

EXPERIMENT = "experiments/quickstart.yaml"
#: Blocks of the first half of the backbone, which the model zoo cuts in two.
_FIRST_HALF = 14


def train(folder: Path, data: Path, steps: int, *overrides: str) -> list[tuple[float, float]]:
    """Train for a number of steps in this process; AP on val by step."""
    words = [
        f"data.root={data}",
        f"data.cache={folder.parent / 'cache'}",
        f"train.max_steps={steps}",
        "train.evaluate_every_epochs=1",
        "train.checkpoint.every_epochs=1",
        "cluster.accelerator=cpu",
        "train.schedule.warmup_epochs=0.5",
        # What a head that is drawn anew begins with; the steps are too few to learn it.
        "detector.loss.prior_score=0.01",
        "tracking.mlflow=null",
        *overrides,
    ]
    small_runs.train(load_experiment(EXPERIMENT, words), folder)
    return [
        (float(event.step), event.values["val/AP"])
        for event in read_events(folder / EVENTS)
        if "val/AP" in event.values
    ]


def as_torchvision(run: Path, target: Path) -> None:
    """Write the backbone of a run's newest checkpoint as torchvision names a classifier's."""
    newest = max((run / CHECKPOINTS).glob("0*"))
    state = load_file(newest / "ema.safetensors")
    tensors = {}
    for name, value in state.items():
        match = re.fullmatch(r"backbone\.features_([12])\.(\d+)\.(.+)", name)
        if match is None:
            continue
        index = int(match[2]) + (_FIRST_HALF if match[1] == "2" else 0)
        # A convolution with its normalisation has one more name there.
        rest = re.sub(r"^features\.", "", match[3])
        rest = re.sub(r"^conv\.(\d+)\.features\.", r"conv.\1.", rest)
        tensors[f"features.{index}.{rest}"] = value
    outputs = tensors["features.18.0.weight"].shape[0]
    tensors["classifier.1.weight"] = torch.zeros(1000, outputs)
    tensors["classifier.1.bias"] = torch.zeros(1000)
    torch.save(tensors, target)


def main() -> None:
    """Train three times, print the curves and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=int, default=1000, help="steps of the first run")
    parser.add_argument("--steps", type=int, default=320, help="steps from random weights")
    parser.add_argument("--out", type=Path, help="SVG file of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        build_digits(root / "first", Recipe(train=760, val=20, seed=1))
        build_digits(root / "other", Recipe(train=160, val=100, seed=7))
        train(
            root / "runs" / "first",
            root / "first",
            options.before,
            f"train.epochs={-(-options.before // 95)}",
        )
        file = root / "mobilenet_v2.pth"
        as_torchvision(root / "runs" / "first", file)
        quarter = options.steps // 4
        epochs = -(-options.steps // 20)
        curves = {
            "from the file": train(
                root / "runs" / "file",
                root / "other",
                quarter,
                f"train.epochs={-(-quarter // 20)}",
                f"train.init_from={file}",
            ),
            "from random weights": train(
                root / "runs" / "random", root / "other", options.steps, f"train.epochs={epochs}"
            ),
        }
    seconds = time.process_time() - started
    print(json.dumps({"curves": curves, "cpu_seconds": round(seconds)}, indent=1))
    if options.out is not None:
        uri = charts.lines(curves, y_label="AP on val")
        options.out.write_bytes(base64.b64decode(uri.partition(",")[2]))


if __name__ == "__main__":
    main()
