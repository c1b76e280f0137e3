"""What one optimizer step of a small detector needs: four drawn images, and a stepper."""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.base import Detector
from orchestrator.accelerators import Accelerator
from orchestrator.config.schema import TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.training.collective import Collective
from orchestrator.training.stepper import Stepper


def batch_of(step: int, *, side: int = 16, spoilt: float | None = None) -> Batch:
    """Four square images with two boxes each; ``spoilt`` takes the place of one coordinate."""
    rng = np.random.default_rng(step)
    boxes = rng.uniform(0, side, (4, 2, 4)).astype(np.float32)
    if spoilt is not None:
        boxes[1, 0, 2] = spoilt
    return Batch(
        step=step,
        images=rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8),
        boxes=boxes,
        labels=np.zeros((4, 2), np.int64),
        valid=np.ones((4, 2), np.bool_),
        sample_ids=np.arange(4),
        image_ids=np.arange(4) + 100,
        sizes=np.full((4, 2), side, np.int32),
        transforms=np.tile(np.array([1.0, 1.0, 0.0, 0.0]), (4, 1)),
    )


def stepper_for(model: Detector, config: TrainConfig, kind: Accelerator, **more: Any) -> Stepper:
    """One process that trains a model in single precision, if ``more`` says nothing else."""
    options: dict[str, Any] = {"precision": "fp32", "seed": 1, **more}
    return Stepper(model, config, accelerator=kind, collective=Collective(kind.device()), **options)
