"""Values that exclude each other: both are named, where the one that is to blame stands."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Mistakes = Callable[..., list[str]]

CONFLICTS: dict[str, tuple[list[str], str, list[str]]] = {
    "batch over workers": (
        ["cluster.workers=3"],
        "e.yaml:8 train.batch_size:",
        ["cluster.workers x train.accumulate = 3 x 1", "15 or 18"],
    ),
    "batch over pieces": (
        ["train.accumulate=32"],
        "e.yaml:8 train.batch_size:",
        ["train.accumulate = 1 x 32; 32 would be"],
    ),
    "two lengths of warm-up": (
        ["train.schedule={name: cosine, warmup_steps: 5, warmup_epochs: 1}"],
        "override 'train.schedule={name: cosine, warmup_steps: 5, warmup_epoch…' "
        "train.schedule.warmup_steps:",
        ["train.schedule.warmup_steps is 5", "train.schedule.warmup_epochs is 1"],
    ),
    "warm-up as long as the run": (
        ["train.schedule.warmup_epochs=10"],
        "override 'train.schedule.warmup_epochs=10':",
        ["must be below train.epochs, which is 10"],
    ),
    "milestones fall": (
        ["train.schedule={name: multistep, milestones: [4, 4], factors: [1, 0]}"],
        "override 'train.schedule=",
        ["train.schedule.milestones [4.0, 4.0] must increase"],
    ),
    "factors do not match": (
        ["train.schedule={name: multistep, milestones: [4], factors: [1, 0]}"],
        "override 'train.schedule=",
        ["train.schedule.factors has 2 entries and train.schedule.milestones 1"],
    ),
    "milestone after the end": (
        ["train.schedule={name: multistep, milestones: [10], factors: [0.1]}"],
        "override 'train.schedule=",
        ["train.schedule.milestones ends at 10", "train.epochs, which is 10"],
    ),
    "two ways to see the batch": (
        ["train.sync_batch_norm=true", "train.virtual_shards=4"],
        "override 'train.sync_batch_norm=true':",
        ["train.sync_batch_norm takes", "train.virtual_shards, which is 4"],
    ),
    "loss scale without fp16": (
        ["train.loss_scale=128", "train.precision=bf16"],
        "override 'train.loss_scale=128':",
        ["train.loss_scale is 128", "train.precision is bf16"],
    ),
    "nesterov without momentum": (
        ["train.optimizer.nesterov=true", "train.optimizer.momentum=0"],
        "override 'train.optimizer.nesterov=true':",
        ["train.optimizer.momentum above 0"],
    ),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_values_that_exclude_each_other_are_both_named(
    case: str, mistakes: Mistakes, minimal: str
) -> None:
    overrides, where, names = CONFLICTS[case]
    (found,) = mistakes(minimal, *overrides)
    assert found.startswith(where)
    for name in names:
        assert name in found


def test_conflicts_of_one_section_are_reported_together(mistakes: Mistakes, minimal: str) -> None:
    schedule = "{name: multistep, milestones: [20, 30], factors: [0.1, 0.01], warmup_epochs: 11}"
    found = mistakes(
        minimal, f"train.schedule={schedule}", "train.loss_scale=1", "train.precision=fp32"
    )
    named = sorted(line.split(": ")[-1].split()[0] for line in found)
    assert named == [
        "train.loss_scale",
        "train.schedule.milestones",
        "train.schedule.warmup_epochs",
    ]
