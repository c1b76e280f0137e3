"""Faster R-CNN that learns from wide and tall images apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from detectors.faster_rcnn.anchors import pyramid_anchors
from detectors.faster_rcnn.config import FasterRCNNConfig
from detectors.registry import build_detector
from detectors.structures import Targets
from orchestrator.config.resolve import load_experiment
from orchestrator.runs.digests import config_digest
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.storage.run_files import STOP
from orchestrator.training import session
from tests.support.data_cases import write_coco
from tests.support.local_runs import StoppingStream, train

EXPERIMENT = """
name: canvases
detector:
  name: faster_rcnn
  variant: faster_rcnn_torchvision
  input_size: [128, 128]
  train_canvas: [96, 128]
  width: 0.0625
  norm: batch
  frozen_parts: 0
data:
  root: %s
  train: {images: images, annotations: instances.json}
  val: {images: images, annotations: instances.json}
  augmentation: {name: resize_pad, legacy_boxes: false}
train:
  epochs: 1
  batch_size: 2
  optimizer: {name: sgd, lr: 0.001, momentum: 0.9}
  evaluate_every_epochs: 1
tracking: {mlflow: null}
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs") / "data"
    write_coco(folder, 13, seed=2)
    return folder


def plan_in(folder: Path, data: Path, *overrides: str) -> Plan:
    folder.mkdir(exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(EXPERIMENT % json.dumps(str(data)))
    return make_plan(load_experiment(file, overrides), folder, threads=1)


def test_a_run_that_is_stopped_between_canvases_ends_in_the_same_bits(
    tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise the file is looked at twice a second, and a fast machine is at the end by then.
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    whole = plan_in(tmp_path / "whole", photographs)
    canvases = [whole.job.schedule.canvas(step) for step in range(6)]
    assert set(canvases) == {0, 1}
    expected = train(whole)
    plan = plan_in(tmp_path / "run", photographs)
    at = canvases.index(1 - canvases[0])
    assert train(plan, stream=StoppingStream(plan, at)).state == "preempted"
    (plan.job.path / STOP).unlink()
    assert train(plan).weights_sha256 == expected.weights_sha256
    one = plan_in(tmp_path / "one", photographs, "detector.train_canvas=null")
    assert train(one).weights_sha256 != expected.weights_sha256


def test_a_canvas_is_part_of_what_a_run_is_and_none_is_what_it_was(
    tmp_path: Path, photographs: Path
) -> None:
    file = tmp_path / "some.yaml"
    text = EXPERIMENT % json.dumps(str(photographs))
    digests = {}
    for name, line in (("with", "[96, 128]"), ("null", "null"), ("other", "[64, 128]")):
        file.write_text(text.replace("[96, 128]", line))
        digests[name] = config_digest(load_experiment(file, ()).tree)
    tree = load_experiment(file, ()).tree
    detector = tree["detector"]
    assert isinstance(detector, dict)
    before = {name: value for name, value in detector.items() if name != "train_canvas"}
    assert config_digest({**tree, "detector": before}) == digests["null"]
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize("variant", ["faster_rcnn_mindspore", "faster_rcnn_torchvision"])
def test_losses_on_a_canvas_are_those_of_a_detector_of_that_size(variant: str) -> None:
    fields = {"variant": variant, "width": 0.0625, "norm": "batch"}
    config = FasterRCNNConfig.model_validate(
        {**fields, "input_size": (128, 128), "train_canvas": (96, 128)}
    )
    torch.manual_seed(0)
    model = build_detector(config, num_classes=2)
    assert model.input_size == (128, 128)
    assert model.train_canvases == ((96, 128), (128, 96))
    for size in ((96, 128), (128, 96), (128, 128)):
        own = FasterRCNNConfig.model_validate({**fields, "input_size": size})
        other = build_detector(own, num_classes=2)
        other.load_state_dict(model.state_dict())
        torch.manual_seed(1)
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        boxes = torch.tensor([[[8.0, 8.0, 60.0, 70.0]], [[20.0, 30.0, 90.0, 95.0]]])
        targets = Targets(boxes, torch.tensor([[0], [1]]), torch.ones(2, 1, dtype=torch.bool))
        losses = []
        for one in (model, other):
            torch.manual_seed(2)
            losses.append(one.loss(images, targets))
        assert losses[0] == losses[1]
    anchors = pyramid_anchors((128, 128), legacy=variant == "faster_rcnn_mindspore")
    assert torch.equal(model.prior_boxes(), anchors)
    with pytest.raises(ValueError, match="got a batch of shape"):
        model(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("canvas", [(128, 96), (128, 128), (96, 160)])
def test_a_canvas_that_does_not_turn_within_the_input_is_refused(canvas: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match=r"train_canvas is .*input_size, 128"):
        FasterRCNNConfig(
            variant="faster_rcnn_torchvision", input_size=(128, 160), train_canvas=canvas
        )
