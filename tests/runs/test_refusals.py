"""What cannot work is refused before anything starts, with the arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from detectors.base import Targets
from detectors.registry import build_detector
from detectors.skeleton import skeleton
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.runs.plan import Plan, make_plan

#: The last map of SSD300 has one cell, and its extra layers normalise by their batch.
EXPERIMENT = """
name: refused
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 3
  batch_size: 4
  optimizer: {name: sgd, lr: 0.01}
tracking: {mlflow: null}
"""


@pytest.fixture
def file(tmp_path: Path, digits: Path) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(EXPERIMENT % json.dumps(str(digits)))
    return path


def plan(file: Path, *overrides: str) -> Plan:
    return make_plan(load_experiment(file, overrides), file.parent / "run", threads=1)


def trains(file: Path, images: int) -> bool:
    """Whether torch itself takes a piece of so many images."""
    model = build_detector(load_experiment(file).experiment.detector, num_classes=10).train()
    targets = Targets(
        torch.tensor([[[20.0, 20.0, 200.0, 200.0]]] * images),
        torch.zeros(images, 1, dtype=torch.int64),
        torch.ones(images, 1, dtype=torch.bool),
    )
    try:
        model.loss(torch.zeros(images, 3, 300, 300, dtype=torch.uint8), targets)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    return True


def test_one_image_in_a_piece_where_a_map_has_one_cell(file: Path) -> None:
    assert not trains(file, 1)
    assert trains(file, 2)
    plan(file)
    plan(file, "cluster.workers=2")
    for cut, pieces, words in (
        ("cluster.workers 4 x train.accumulate 1", 4, ["cluster.workers=4"]),
        ("cluster.workers 2 x train.accumulate 2", 4, ["cluster.workers=2", "train.accumulate=2"]),
        ("train.virtual_shards 4", 4, ["train.virtual_shards=4"]),
        ("cluster.workers 1 x train.accumulate 1", 1, ["train.batch_size=1"]),
    ):
        with pytest.raises(ConfigError) as refused:
            plan(file, *words)
        text = str(refused.value)
        assert f"in {pieces} pieces ({cut}): one image in each" in text
        assert f"Next: set train.batch_size to {2 * pieces} or more" in text
        assert ("sync_batch_norm" in text) == ("cluster.workers" in "".join(words))


def test_the_remedies_of_that_are_taken(file: Path) -> None:
    plan(file, "cluster.workers=4", "train.sync_batch_norm=true")
    with pytest.raises(ConfigError) as refused:
        plan(file, "cluster.workers=4")
    (first, more) = re.findall(r"normalisation (\S+) and (\d+) more", str(refused.value))[0]
    experiment = load_experiment(file).experiment
    names = dict(skeleton(experiment.detector, num_classes=10).named_modules())
    assert isinstance(names[first], torch.nn.BatchNorm2d)
    assert int(more) > 0
    plan(file, "cluster.workers=4", 'train.freeze={batch_norm: ["*"]}')
    # Where every map is larger, a single image has a variance.
    plan(file, "detector.variant=ssd512_vgg16", "cluster.workers=4")


def test_a_warm_up_that_the_run_does_not_leave(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """26 images make 6 steps an epoch, 18 in all."""
    plan(file, "train.schedule={name: constant, warmup_steps: 17}", "train.max_steps=2")
    words = "train.schedule={name: constant, warmup_steps: 18}"
    with pytest.raises(ConfigError) as refused:
        plan(file, words)
    assert str(refused.value) == (
        "train.schedule.warmup_steps is 18, and the whole run has 18 steps (3 epochs of 6), so the "
        "rate would never get to train.optimizer.lr. Next: set train.schedule.warmup_steps to less "
        "than 18, such as 6, or raise train.epochs"
    )
    assert main(["config", "show-schedule", str(file), words]) == 64
    assert str(refused.value) in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"warmup_epochs is 2.99, which are 18 steps"):
        plan(file, "train.schedule={name: constant, warmup_epochs: 2.99}")


def test_a_shipped_recipe_on_a_small_set(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / "experiments" / "retinanet_spinenet49.yaml"
    assert main(["config", "show-schedule", str(recipe), "--images", "1000"]) == 64
    assert "warmup_steps is 4000, and the whole run has 2450 steps" in capsys.readouterr().err


def test_an_end_before_what_is_done(file: Path) -> None:
    job = plan(file, "train.max_steps=7").job
    job.require_ahead(7)
    with pytest.raises(ConfigError) as refused:
        job.require_ahead(9)
    assert str(refused.value) == (
        f"train.max_steps is 7, but {job.run_dir} has 9 steps done already. Next: set "
        "train.max_steps to 9 or more to go on, or give this experiment another name (name=...)"
    )
    # 13 steps are two epochs of 6 and a bit.
    with pytest.raises(ConfigError, match=r"epochs is 2, which is 12 steps.* to 3 or more"):
        plan(file, "train.epochs=2").job.require_ahead(13)
