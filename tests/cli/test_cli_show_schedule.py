"""``orchestrator config show-schedule`` against published schedules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.data.demo.digits import Recipe, build_digits

#: M2Det of the MindSpore zoo: COCO, 8 devices of 7 images.
EXPERIMENT = """
name: m2det-like
detector: {name: ssd}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 160
  batch_size: 56
  accumulate: 2
  optimizer:
    name: sgd
    lr: 4.0e-3
    weight_decay: 5.0e-4
    groups: [{kind: bias, lr_factor: 2, weight_decay: 0}]
  schedule:
    name: multistep
    milestones: [90, 110, 130, 150]
    factors: [0.5, 0.1, 0.01, 0.001]
    warmup_epochs: 5
    warmup_start: 1.0e-6
  clip_norm: 4.0
  ema: {decay: 0.999, warmup_steps: 0}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    path = tmp_path / "e.yaml"
    path.write_text(EXPERIMENT % json.dumps(str(tmp_path / "digits")))
    return str(path)


def test_the_table_of_a_published_recipe(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["config", "show-schedule", experiment, "--images", "118287"]
    assert main([*command, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert (table["steps_per_epoch"], table["total_steps"]) == (2112, 337_920)
    assert table["warmup_steps"] == 10_560
    rates = {row["step"]: row["lr"] for row in table["rows"]}
    assert rates == pytest.approx(
        {
            0: 1e-6,
            10_560: 4e-3,
            90 * 2112 - 1: 4e-3,
            90 * 2112: 2e-3,
            110 * 2112 - 1: 2e-3,
            110 * 2112: 4e-4,
            130 * 2112 - 1: 4e-4,
            130 * 2112: 4e-5,
            150 * 2112 - 1: 4e-5,
            150 * 2112: 4e-6,
            337_919: 4e-6,
        }
    )
    assert [row["phase"] for row in table["rows"]].count("warm-up") == 1
    assert all(row["group_lrs"] == [2 * row["lr"]] for row in table["rows"])
    assert {(row["momentum"], row["ema_decay"]) for row in table["rows"]} == {(0.9, 0.999)}

    assert main(command) == 0
    shown = capsys.readouterr().out
    facts = dict(line.split("  ", 1) for line in shown.splitlines() if line[:1].isalpha())
    assert facts["steps"].strip() == "337920 in 160 epochs of 2112"
    assert facts["batch"].strip() == "56 over all workers, in 2 pieces each"
    assert facts["group 0"].strip() == "bias *: rate x 2, weight decay 0"
    assert facts["clipping"].strip() == "norm 4"
    assert "warm-up of 10560 steps from 1e-06" in facts["schedule"]
    head, first, *_, last = shown.splitlines()[len(table["facts"]) :]
    assert re.split(r"\s{2,}", head.strip()) == [
        *("step", "epoch", "lr", "lr of group 0", "momentum", "ema decay")
    ]
    assert first.split() == ["0", "0.00", "1e-06", "2e-06", "0.9", "0.999", "warm-up"]
    assert last.split() == ["337919", "160.00", "4e-06", "8e-06", "0.9", "0.999"]


def test_without_a_number_the_data_set_is_counted(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show-schedule", experiment]) == 65
    assert "With --images N the data set is not needed" in capsys.readouterr().err
    build_digits(tmp_path / "digits", Recipe(train=13, val=4, seed=3))
    command = ["config", "show-schedule", experiment, "train.batch_size=4"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 13
    assert main([*command, "train.batch_size=28"]) == 64
    assert "there are 13 training images" in capsys.readouterr().err
