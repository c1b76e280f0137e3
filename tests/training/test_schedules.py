"""Learning rates against values worked out by hand from the seeds' formulas."""

from __future__ import annotations

import math

import pytest

from orchestrator.config.schema import ConstantSchedule, CosineSchedule, MultistepSchedule
from orchestrator.training.schedules import Extension, LearningRate


def test_ssd_seed_cosine_with_warmup() -> None:
    # SSD card 5: batch 256, 458 steps an epoch, 500 epochs, lr .05, warm-up 2 epochs from .001,
    # end factor .001.
    rate = LearningRate(
        schedule=CosineSchedule(
            name="cosine", warmup_epochs=2, warmup_start=0.001, end_factor=0.001
        ),
        base=0.05,
        steps_per_epoch=458,
        total_steps=500 * 458,
    )
    assert rate.warmup_steps == 916
    assert rate(0) == pytest.approx(0.001, abs=0)
    assert rate(458) == pytest.approx(0.001 + 0.049 * 0.5)
    assert rate(916) == pytest.approx(0.05)
    halfway = 916 + (500 * 458 - 916) // 2
    assert rate(halfway) == pytest.approx((0.05 + 0.00005) / 2, rel=1e-4)
    last = 500 * 458 - 1
    expected = 0.00005 + (0.05 - 0.00005) * (1 + math.cos(math.pi * (last - 916) / 228084)) / 2
    assert rate(last) == pytest.approx(expected)


def test_faster_rcnn_seed_cosine_that_stops_before_its_end() -> None:
    # Faster R-CNN card 7: 7,393 steps an epoch, 12 epochs, warm-up of 500 steps from lr / 16, and a
    # cosine over 13 epochs.
    rate = LearningRate(
        schedule=CosineSchedule(
            warmup_steps=500, warmup_start=0.0025, end_factor=0.0, period_epochs=13.0
        ),
        base=0.04,
        steps_per_epoch=7393,
        total_steps=12 * 7393,
    )
    steps = (0, 100, 250, 500, 7393, 44_358, 88_715)
    published = [0.0025, 0.01, 0.02125, 0.04, 0.039494, 0.022735, 6.62e-4]
    assert [rate(step) for step in steps] == pytest.approx(published, rel=5e-4)


def test_m2det_seed_milestones() -> None:
    # M2Det card 4: 4e-3, 2e-3, 4e-4, 4e-5, 4e-6 after epochs 90, 110, 130, 150.
    rate = LearningRate(
        schedule=MultistepSchedule(
            name="multistep",
            milestones=(90, 110, 130, 150),
            factors=(0.5, 0.1, 0.01, 0.001),
            warmup_epochs=5,
            warmup_start=1e-6,
        ),
        base=4e-3,
        steps_per_epoch=100,
        total_steps=16_000,
    )
    assert rate(0) == 1e-6
    assert rate(250) == pytest.approx(1e-6 + (4e-3 - 1e-6) * 0.5)
    assert [rate(s) for s in (500, 8999, 9000, 10_999, 11_000, 13_000, 15_999)] == pytest.approx(
        [4e-3, 4e-3, 2e-3, 2e-3, 4e-4, 4e-5, 4e-6]
    )


def test_m2det_mindspore_warmup_reaches_the_base_rate_with_its_last_step() -> None:
    # M2Det card 4, MindSpore: lr = (i + 1) / warm-up x base, then x .5, .2, .1, .1 in turn at
    # epochs 90, 110, 130, 150; 1e-3 x 8 devices, 118,287 images in batches of 56.
    rate = LearningRate(
        schedule=MultistepSchedule(
            milestones=(90, 110, 130, 150),
            factors=(0.5, 0.1, 0.01, 0.001),
            warmup_epochs=5,
            warmup_ends="with",
        ),
        base=8e-3,
        steps_per_epoch=2112,
        total_steps=160 * 2112,
    )
    assert rate.warmup_steps == 10_560
    assert rate(0) == pytest.approx(8e-3 / 10_560)
    assert rate(5279) == pytest.approx(4e-3)
    assert rate(10_559) == rate(10_560) == 8e-3
    assert [rate(epoch * 2112) for epoch in (89, 90, 110, 130, 150, 159)] == pytest.approx(
        [8e-3, 4e-3, 8e-4, 8e-5, 8e-6, 8e-6]
    )


def test_warmup_may_be_given_in_steps() -> None:
    rate = LearningRate(
        schedule=ConstantSchedule(name="constant", warmup_steps=4),
        base=1.0,
        steps_per_epoch=10,
        total_steps=20,
    )
    assert [rate(step) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_table_names_every_kink() -> None:
    rate = LearningRate(
        schedule=MultistepSchedule(name="multistep", milestones=(2, 3), factors=(0.1, 0.01)),
        base=1.0,
        steps_per_epoch=10,
        total_steps=40,
    )
    steps = [step for step, _, _ in rate.table()]
    assert steps == [0, 19, 20, 29, 30, 39]


def extended(*extensions: Extension, epochs: int, start: int = 0) -> list[float]:
    """Rates of a cosine from 1 to 0 with two steps an epoch."""
    rate = LearningRate(
        schedule=CosineSchedule(end_factor=0.0),
        base=1.0,
        steps_per_epoch=2,
        total_steps=2 * epochs,
        extensions=extensions,
    )
    return [rate(step) for step in range(start, 2 * epochs)]


def test_what_a_cosine_does_when_the_run_goes_on() -> None:
    """A fall over four steps is 1, (1 + cos 45) / 2, 1/2, (1 - cos 45) / 2."""
    fall = [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    whole = extended(epochs=2)
    assert whole == pytest.approx(fall)
    assert extended(Extension(2, "hold"), epochs=4) == [*whole, *[0.0] * 4]
    assert extended(Extension(2, "restart"), epochs=4) == pytest.approx([*fall, *fall])
    assert extended(Extension(2, "stretch"), epochs=4, start=4) == extended(epochs=4, start=4)
    twice = (Extension(2, "hold"), Extension(3, "restart"))
    assert extended(*twice, epochs=5) == pytest.approx([*fall, 0.0, 0.0, *fall])
    # The second cosine is stretched over six steps; the first one has long been what it was.
    twice = (Extension(2, "restart"), Extension(3, "stretch"))
    six = [0.5 + 0.5 * math.cos(math.pi * step / 6) for step in range(6)]
    assert extended(*twice, epochs=5) == pytest.approx([*fall, *six])
