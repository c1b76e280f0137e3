"""Two steps and an evaluation batch of detectors, on the CPU and on the simulated NPU.

    python -m tests.support.simulated_npu.steps CASES

CASES is json, a list of objects with ``fields`` of a detector's configuration, ``optimizer``,
``precision`` and, for a model of card, ``card``. Prints json: for each what differed and what was
counted. Both devices compute in the same layout, and the CPU pools as an NPU does, so that what is
compared is the program and not the order of a sum.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "detectors"))

from small_detectors import CLASSES, build

from detectors import roi_align
from detectors.config import DetectorConfig, PostprocessConfig
from detectors.registry import DETECTORS
from detectors.structures import Targets
from orchestrator import accelerators
from orchestrator.accelerators import Accelerator, Kind
from orchestrator.config.schema import AdamWOptimizer, EmaConfig, SGDOptimizer, TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.evaluation.detections import Detections
from orchestrator.training.collective import Collective
from orchestrator.training.feeding import fed
from orchestrator.training.predictor import images_to_device, predict_share
from orchestrator.training.stepper import Stepper
from tests.support import simulated_npu

_IMAGES, _SLOTS = 2, 4


def batch_of(step: int, size: tuple[int, int], *, images: int = _IMAGES) -> Batch:
    """Drawn images with one to three boxes of a third of their sides and more."""
    rng = np.random.default_rng(step)
    batch = Batch.unfilled(images, size, _SLOTS)
    low = rng.uniform(0, 0.5, (images, _SLOTS, 2))
    corners = np.concatenate([low, low + rng.uniform(0.3, 0.5, low.shape)], axis=2)
    batch.images[:] = rng.integers(0, 256, batch.images.shape)
    batch.valid[:] = np.arange(_SLOTS) < rng.integers(1, _SLOTS, (images, 1))
    batch.boxes[:] = corners * np.array([size[1], size[0]] * 2) * batch.valid[..., None]
    batch.labels[:] = rng.integers(0, CLASSES, batch.labels.shape) * batch.valid
    batch.sample_ids[:] = batch.image_ids[:] = np.arange(images)
    batch.sizes[:] = size
    batch.transforms[:] = 1.0, 1.0, 0.0, 0.0
    return replace(batch, step=step)


def build_config(fields: dict[str, Any]) -> DetectorConfig:
    """The configuration of a case."""
    return DETECTORS[fields["name"]].config.model_validate(fields)


class Side:
    """A detector on one kind of device."""

    def __init__(self, kind: Kind, case: dict[str, Any]) -> None:
        self.accelerator = Accelerator(kind)
        self.precision = self.accelerator.resolve_precision(case.get("precision", "fp32"))
        device = self.accelerator.device()
        model = build(case["fields"])
        if kind == "npu":
            model = self.accelerator.place(model, device)
        self.model = model.train()
        for module in model.modules():
            # After two steps the mean of statistics would be that of none, and the maps of a deep
            # network in evaluation without bounds.
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        rule: Any = AdamWOptimizer if case["optimizer"] == "adamw" else SGDOptimizer
        self.stepper = Stepper(
            self.model,
            TrainConfig(
                epochs=1,
                batch_size=_IMAGES,
                optimizer=rule(lr=1e-3),
                ema=EmaConfig(decay=0.9, warmup_steps=4),
            ),
            seed=7,
            accelerator=self.accelerator,
            precision=self.precision,
            collective=Collective(device),
        )
        self.device = device

    def step(self, number: int) -> dict[str, float]:
        """Do a step and wait for its losses."""
        batch = batch_of(number, self.model.input_size)
        return dict(self.stepper.run(batch, learning_rate=1e-3, stop=False).losses)

    def begin(self, number: int) -> None:
        """Give the device a step whose input it has, in memory it fetched it from."""
        batch = batch_of(number, self.model.input_size)
        for name in ("images", "boxes", "labels", "valid"):
            pinned = self.accelerator.host_array(
                getattr(batch, name).shape, getattr(batch, name).dtype
            )
            pinned[...] = getattr(batch, name)
            batch = replace(batch, **{name: pinned})
        ((batch, inputs),) = fed([batch], self.device)
        self.stepper.begin(batch, learning_rate=1e-3, stop=False, inputs=inputs)

    def detections(self, config: PostprocessConfig) -> Detections:
        return predict_share(
            self.model,
            [batch_of(9, self.model.input_size)],
            config,
            accelerator=self.accelerator,
            precision=self.precision,
            device=self.device,
        )

    def as_if_trained(self, recipe: PostprocessConfig) -> PostprocessConfig:
        """The recipe with a threshold that a thousand candidates of an image pass.

        Of a trained network some hundreds do; of a fresh one, whose scores are all alike, all or
        none.
        """
        self.model.eval()
        with torch.inference_mode(), self.accelerator.autocast(self.precision):
            images = images_to_device(batch_of(9, self.model.input_size), self.device)
            scores = self.model.decode(self.model(images)).scores.flatten(1)
        self.model.train()
        last = scores.float().topk(min(1000, scores.shape[1]), dim=1).values.min().item()
        return recipe.model_copy(update={"score_threshold": max(0.0, last)})

    def forward_and_backward(self) -> None:
        """What a step gives the device between the arrival of its input and its gradients."""
        batch = batch_of(5, self.model.input_size)
        images = images_to_device(batch, self.device)
        targets = Targets(
            *(torch.from_numpy(a).to(self.device) for a in (batch.boxes, batch.labels, batch.valid))
        )
        simulated_npu.reset()
        torch.manual_seed(3)
        with self.accelerator.autocast(self.precision):
            terms = self.model.loss_terms(images, targets)
        total = torch.stack([term.over(term.divisor) for term in terms.values()]).sum()
        total.backward()


def run(case: dict[str, Any]) -> dict[str, Any]:
    """What a case showed."""
    npu = Side("npu", case)
    cpu = Side("cpu", {**case, "precision": "fp32"})
    losses = [(cpu.step(number), npu.step(number)) for number in range(2)]
    compared: dict[str, Any] = {"losses": losses}
    if npu.precision == "fp32":
        here, there = cpu.model.state_dict(), npu.model.state_dict()
        apart = {
            name: float((there[name].cpu().double() - value.double()).abs().max())
            for name, value in here.items()
            if not torch.equal(there[name].cpu(), value)
        }
        loose = cpu.as_if_trained(PostprocessConfig())
        # Scores of the deepest network are all the same at first, and none is above itself.
        threshold = max(0.0, loose.score_threshold - 1e-6)
        loose = loose.model_copy(update={"score_threshold": threshold})
        mine, theirs = npu.detections(loose), cpu.detections(loose)
        compared |= {
            "weights_apart": apart,
            "detections": len(mine),
            "detections_equal": all(
                np.array_equal(getattr(mine, name), getattr(theirs, name))
                for name in ("images", "image_ids", "labels", "boxes", "scores")
            ),
        }
    recipe = npu.as_if_trained(build_config(case["fields"]).postprocess)
    simulated_npu.reset()
    npu.detections(recipe)
    evaluation = simulated_npu.counts()
    simulated_npu.reset()
    npu.begin(2)
    step = simulated_npu.counts()
    npu.forward_and_backward()
    core = simulated_npu.counts()
    unknown = core.unknown() | step.unknown() | evaluation.unknown()
    return {
        **compared,
        "precision": npu.precision,
        "step": {"host_reads": step.host_reads, "awaited_copies": step.awaited_copies},
        "core": {"host_reads": core.host_reads, "awaited_copies": core.awaited_copies},
        "evaluation": {
            "host_reads": evaluation.host_reads,
            "bytes_an_image": evaluation.bytes_to_host / _IMAGES,
        },
        "operators": sorted(set(step.operators) | set(evaluation.operators)),
        "unknown": sorted(unknown),
    }


def main() -> None:
    """Run the cases that the command line holds."""
    cases = json.loads(sys.argv[1])
    simulated_npu.install(cases[0].get("card", "Ascend910B2"))
    torch.use_deterministic_algorithms(True)
    # The CPU like an NPU: contiguous maps, and a gradient of pooling made of additions.
    accelerators._CHANNELS_LAST = frozenset()
    roi_align.BAG_GRADIENT = set()
    for case in cases:
        print(json.dumps(run(case)), flush=True)


if __name__ == "__main__":
    main()
