"""The recipes of RetinaNet on SpineNet against the figures of their sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.retinanet.config import RetinaNetConfig
from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import MultistepSchedule, ScaleJitterAugmentation, SGDOptimizer
from orchestrator.training.schedules import LearningRate

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("file", "size", "base", "batch", "rate", "warmup", "scales"),
    [
        ("49s", 640, 3.0, 256, 0.28, 2000, (0.5, 2.0)),
        ("49", 640, 3.0, 128, 0.14, 4000, (0.5, 2.0)),
        ("49_896", 896, 3.0, 128, 0.14, 4000, (0.5, 2.0)),
        ("96", 1024, 3.0, 64, 0.07, 8000, (0.5, 2.0)),
        ("143", 1280, 4.0, 24, 0.02625, 21333, (0.1, 1.9)),
    ],
)
def test_published_values(
    file: str,
    size: int,
    base: float,
    batch: int,
    rate: float,
    warmup: int,
    scales: tuple[float, float],
) -> None:
    experiment = load_experiment(EXPERIMENTS / f"retinanet_spinenet{file}.yaml").experiment
    detector, train = experiment.detector, experiment.train
    assert isinstance(detector, RetinaNetConfig)
    assert detector.variant == f"retinanet_spinenet{file.partition('_')[0]}"
    assert (detector.input_size, detector.anchors.base) == ((size, size), base)
    assert detector.title == detector.variant
    augmentation = experiment.data.augmentation
    assert isinstance(augmentation, ScaleJitterAugmentation)
    assert (augmentation.min_scale, augmentation.max_scale) == scales
    assert experiment.data.max_boxes == 100
    assert isinstance(train.optimizer, SGDOptimizer)
    assert (train.batch_size, train.optimizer.lr) == (batch, rate)
    assert (train.optimizer.momentum, train.optimizer.weight_decay) == (0.9, 4e-5)
    assert (train.precision, train.loss_scale, train.clip_norm) == ("fp16", 256.0, None)
    # The linear rule of tensorflow/tpu: 0.28 and 2,000 steps for 256 images.
    assert rate == pytest.approx(0.28 * batch / 256)
    assert warmup == round(2000 * 256 / batch)
    schedule = train.schedule
    assert isinstance(schedule, MultistepSchedule)
    assert schedule.warmup_steps == warmup
    assert schedule.warmup_start == pytest.approx(0.1 * rate)


def test_learning_rates_of_spinenet_49() -> None:
    train = load_experiment(EXPERIMENTS / "retinanet_spinenet49.yaml").experiment.train
    # COCO's 117,266 images with boxes in batches of 128.
    steps = 117_266 // 128
    assert steps == 916
    rate = LearningRate(
        schedule=train.schedule,
        base=train.optimizer.lr,
        steps_per_epoch=steps,
        total_steps=train.epochs * steps,
    )
    assert train.epochs == 350
    table = {
        0: 0.014,
        1000: 0.014 + 0.126 / 4,
        2000: 0.077,
        4000: 0.14,
        320 * steps - 1: 0.14,
        320 * steps: 0.014,
        340 * steps - 1: 0.014,
        340 * steps: 0.0014,
        350 * steps - 1: 0.0014,
    }
    assert {step: rate(step) for step in table} == pytest.approx(table)


def test_the_quick_run_says_what_it_reduces() -> None:
    experiment = load_experiment(EXPERIMENTS / "retinanet_spinenet_bccd.yaml").experiment
    detector = experiment.detector
    assert isinstance(detector, RetinaNetConfig)
    assert "at width 0.375" in detector.title
    assert "with 2 head convolutions" in detector.title
    assert "w0375-256" in experiment.name
