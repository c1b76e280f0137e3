"""Every detector goes through the parity gate, and what is done to it on the way is caught."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from detectors.postprocess import postprocess
from detectors.registry import DETECTORS
from orchestrator.export import export as exporting
from orchestrator.export.artifact import ExportedDetector
from orchestrator.export.export import OPSET, ParityError, export
from orchestrator.export.parity import graph_suppression
from orchestrator.predict.tta import prepared
from tests.export.networks import SMALL, drawn_detector, inputs

_WHY = "not installed; it is in the extra `export`"
onnx = pytest.importorskip("onnx", reason=f"onnx is {_WHY}")
pytest.importorskip("onnxruntime", reason=f"onnxruntime is {_WHY}")
pytest.importorskip("onnxscript", reason=f"onnxscript is {_WHY}")

PADDED = ("retinanet", "faster_rcnn")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def detector(small_run, tmp_path_factory):
    known = {}

    def get(variant):
        if variant not in known:
            known[variant] = drawn_detector(variant, small_run, tmp_path_factory.mktemp("drawn"))
        return known[variant]

    return get


def test_no_detector_is_forgotten():
    assert {fields["name"] for fields, _ in SMALL.values()} == DETECTORS.keys()


@pytest.mark.parametrize(
    ("variant", "format"),
    [
        ("retinanet_spinenet49s", "onnx"),
        ("faster_rcnn_torchvision", "onnx"),
        slow("faster_rcnn_mindspore", "onnx"),
        slow("m2det320_vgg16", "onnx"),
        slow("ssd300_vgg16", "onnx"),
        slow("ssd512_vgg16", "onnx"),
        ("tiny_fcos", "onnx"),
        ("tiny_fcos", "pt2"),
        ("faster_rcnn_mindspore", "pt2"),
        slow("faster_rcnn_torchvision", "pt2"),
        slow("m2det320_vgg16", "pt2"),
        slow("retinanet_spinenet49s", "pt2"),
        slow("ssd300_vgg16", "pt2"),
        slow("ssd512_vgg16", "pt2"),
    ],
)
def test_every_detector_passes_the_gate(detector, variant, format, tmp_path):
    loaded, dataset = detector(variant)
    nms = format == "onnx"
    path = tmp_path / f"{variant}.{format}"
    done = export(loaded, path, format=format, dataset=dataset, nms=nms)
    parity = done.parity
    assert (parity.images, parity.failures) == (len(dataset), ())
    assert parity.detections > 20
    assert max(parity.raw.values()) < 1e-3
    assert set(parity.raw) > {"images", "boxes", "scores"}
    assert max(parity.lone.values()) < 1e-3
    assert (done.metadata.resize == "pad") == variant.startswith(PADDED)
    assert done.metadata.opset == (OPSET if nms else None)

    # Another batch size than the one it was traced with.
    images = inputs(loaded, dataset)[1:2]
    found = ExportedDetector(path).outputs(images.permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        raw = loaded.model(images)
        expected = loaded.model.decode(raw)
    assert found["boxes"].shape == tuple(expected.boxes.shape)
    best = np.sort(found["scores"].ravel())[-20:]
    assert best == pytest.approx(np.sort(expected.scores.numpy().ravel())[-20:], abs=1e-4)
    if nms:
        config = graph_suppression(loaded.resolved.experiment.detector.postprocess)
        (own,) = postprocess(expected, config)
        left = list(range(len(found["selected"])))
        # Scores that differ by rounding alone come in any order.
        for score, label, box in zip(own.scores, own.labels, own.boxes, strict=True):
            alike = [
                place
                for place in left
                if found["selected"][place, 1] == int(label)
                and found["selected_scores"][place] == pytest.approx(float(score), abs=1e-4)
                and found["selected_boxes"][place] == pytest.approx(box.numpy(), abs=1e-2)
            ]
            assert alike, (float(score), int(label), box.tolist())
            left.remove(alike[0])
        assert left == []


def swapped_statistics(model):
    model.pixel_mean, model.pixel_std = model.pixel_std, model.pixel_mean


def other_channel_order(model):
    model.bgr = not model.bgr


def shifted_anchors(model):
    for name in ("anchors", "anchor_centers"):
        if hasattr(model, name):
            getattr(model, name).add_(4.0)
    if hasattr(model, "priors"):
        model.priors.add_(0.02)


SABOTAGES = {
    swapped_statistics: r"output raw_\w+ differs by [\d.e+]+ in image \d+, allowed is 0\.001",
    other_channel_order: r"output raw_\w+ differs by [\d.e+-]+ in image \d+, allowed is 0\.001",
    shifted_anchors: r"output boxes differs by|output raw_proposals is on one side only, allowed",
}


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda how: how.__name__)
@pytest.mark.parametrize(
    "variant",
    [
        "retinanet_spinenet49s",
        "faster_rcnn_torchvision",
        slow("ssd300_vgg16"),
        slow("m2det320_vgg16"),
    ],
)
def test_a_sabotaged_graph_is_caught_and_removed(
    detector, variant, sabotage, tmp_path, monkeypatch
):
    loaded, dataset = detector(variant)

    class Sabotaged(exporting.ExportModule):
        def __init__(self, model):
            super().__init__(copy.deepcopy(model))
            sabotage(self.model)

    monkeypatch.setattr(exporting, "ExportModule", Sabotaged)
    path = tmp_path / "bad.pt2"
    with pytest.raises(ParityError) as caught:
        export(loaded, path, format="pt2", dataset=dataset)
    assert list(tmp_path.iterdir()) == []
    text = str(caught.value)
    assert text.startswith(f"{path}: the exported detector is not the detector it was made from")
    assert re.search(SABOTAGES[sabotage], text), text
    assert "Next: " in text.splitlines()[-1]


@pytest.mark.parametrize(
    "lie",
    [
        {"resize": "stretch", "pad": None},
        {"interpolation": "nearest"},
        {"pad": {"short_side": None, "long_side": None, "fill": [200, 0, 0]}},
    ],
    ids=["stretched", "nearest", "filled"],
)
@pytest.mark.parametrize("variant", ["retinanet_spinenet49s", "faster_rcnn_torchvision"])
def test_a_wrong_resize_rule_is_caught(detector, variant, lie, tmp_path, monkeypatch):
    loaded, dataset = detector(variant)
    true = exporting.metadata_of
    monkeypatch.setattr(
        exporting, "metadata_of", lambda *words: dataclasses.replace(true(*words), **lie)
    )
    with pytest.raises(ParityError, match=r"the prepared image differs by [\d.]+ in image \d+"):
        export(loaded, tmp_path / "bad.pt2", format="pt2", dataset=dataset)
    assert list(tmp_path.iterdir()) == []


def test_a_padded_input_is_that_of_validation_and_a_new_process_opens_the_file(detector, tmp_path):
    loaded, dataset = detector("faster_rcnn_torchvision")
    done = export(loaded, tmp_path / "padded.pt2", format="pt2", dataset=dataset)
    file = ExportedDetector(done.path)
    rng = np.random.default_rng(2)
    for height, width in ((50, 200), (200, 50), (97, 96), (1, 300), (80, 80)):
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        sample = prepared(image, loaded.prepare)
        made, transform = file.prepare(image)
        assert np.array_equal(made, sample.image)
        assert transform == pytest.approx(sample.transform)

    # Operators of our own are known there without anyone's having imported a detector.
    program = """
import pathlib, sys
from orchestrator.export.artifact import ExportedDetector
ExportedDetector(pathlib.Path(sys.argv[1]))
"""
    subprocess.run(
        [sys.executable, "-c", program, str(done.path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        check=True,
    )
