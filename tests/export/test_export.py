"""Export and its parity gate: what comes out is the detector, and what is not is caught."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from orchestrator.cli.main import main
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError
from orchestrator.export import export as exporting
from orchestrator.export.artifact import ExportedDetector
from orchestrator.export.export import ParityError, export
from orchestrator.export.parity import Tolerance, compare
from orchestrator.predict.loading import load_detector
from orchestrator.predict.scoring import read_split

_WHY = "not installed; it is in the extra `export`"
onnx = pytest.importorskip("onnx", reason=f"onnx is {_WHY}")
pytest.importorskip("onnxruntime", reason=f"onnxruntime is {_WHY}")
pytest.importorskip("onnxscript", reason=f"onnxscript is {_WHY}")


@pytest.fixture(scope="module")
def loaded(small_run):
    return load_detector(small_run)


@pytest.fixture(scope="module")
def dataset(loaded):
    return read_split(loaded.resolved.experiment, "val")


@pytest.fixture(scope="module")
def onnx_file(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    assert main(["export", str(small_run), "--output", str(path), "--nms", "--images", "7"]) == 0
    return path


def test_the_file_is_the_detector(onnx_file, loaded):
    parity = json.loads((onnx_file.parent / "tiny.onnx.parity.json").read_text())
    assert parity["failures"] == []
    assert parity["images"] == 7
    assert max(parity["raw"].values()) < 1e-4
    assert set(parity["raw"]) == {"images", "boxes", "scores", "raw_cls", "raw_loc"}
    assert parity["detections"] > 20
    assert parity["unmatched"] == 0
    assert parity["ap_torch"] == pytest.approx(parity["ap_exported"], abs=5e-4)
    assert parity["ap_torch"] > 0
    assert not list(onnx_file.parent.glob(".unproven*"))


def test_metadata_tell_all_a_user_needs(onnx_file, loaded):
    model = onnx.load(onnx_file)
    (entry,) = model.metadata_props
    tree = json.loads(entry.value)
    assert tree["input_size"] == [300, 300]
    assert (tree["resize"], tree["interpolation"]) == ("stretch", "bilinear")
    assert json.loads(tree["label_map"]) == {"names": ["dark", "bright"], "ids": [3, 70]}
    assert tree["weights_sha256"] == loaded.weights_sha256
    assert tree["mean"] == pytest.approx(loaded.model.pixel_mean.flatten().tolist())
    assert tree["opset"] == 18 == model.opset_import[0].version
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size(onnx_file, loaded, batch):
    images = np.random.default_rng(batch).integers(0, 256, (batch, 300, 300, 3)).astype(np.uint8)
    found = ExportedDetector(onnx_file)(images)
    with torch.no_grad():
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = loaded.model.decode(loaded.model(tensor))
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def altered(path, tmp_path, change):
    """A copy of the file whose metadata were changed."""
    model = onnx.load(path)
    tree = json.loads(model.metadata_props[0].value)
    change(tree)
    model.metadata_props[0].value = json.dumps(tree)
    onnx.save(model, tmp_path / "altered.onnx")
    return tmp_path / "altered.onnx"


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"interpolation": "nearest"}, "the prepared image differs by"),
        ({"input_size": [200, 300]}, "states an input of 200x300, the detector takes 300x300"),
    ],
    ids=["interpolation", "size"],
)
def test_a_wrong_resize_rule_is_caught(onnx_file, loaded, dataset, tmp_path, change, failure):
    file = altered(onnx_file, tmp_path, lambda tree: tree.update(change))
    failures = compare(loaded, ExportedDetector(file), dataset, Tolerance()).failures
    assert re.search(failure, "\n".join(failures)), failures


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree.update(resize="letterbox"),
        lambda tree: tree.update(version=99),
        lambda tree: tree.pop("label_map"),
    ],
)
def test_metadata_that_cannot_be_followed_are_refused(onnx_file, tmp_path, change):
    with pytest.raises(DataError):
        ExportedDetector(altered(onnx_file, tmp_path, change))


def test_swapped_mean_and_deviation_fail_and_leave_no_file(loaded, dataset, tmp_path, monkeypatch):
    class Swapped(exporting.ExportModule):
        def __init__(self, model):
            model = copy.deepcopy(model)
            model.pixel_mean, model.pixel_std = model.pixel_std, model.pixel_mean
            super().__init__(model)

    monkeypatch.setattr(exporting, "ExportModule", Swapped)
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"an older file")
    with pytest.raises(ParityError, match="output raw_cls differs by"):
        export(loaded, path, format="pt2", dataset=dataset)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.pt2"]
    assert path.read_bytes() == b"an older file"


def test_pt2_is_the_detector_too(loaded, dataset, tmp_path):
    done = export(loaded, tmp_path / "tiny.pt2", format="pt2", dataset=dataset)
    assert done.parity.failures == ()
    assert max(done.parity.raw.values()) < 1e-5
    again = ExportedDetector(done.path)
    assert again.metadata == done.metadata
    assert again.label_map == loaded.label_map


def test_tolerances_are_of_use(loaded, onnx_file, dataset):
    exact = Tolerance(raw=0.0, score=0.0, unmatched=0.0, ap=0.0)
    parity = compare(loaded, ExportedDetector(onnx_file), dataset, exact)
    assert any("output" in line for line in parity.failures)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "pt2", "--nms"], "--format is pt2, not onnx"),
        (["detector.postprocess.nms=soft_linear", "--nms"], "nms is soft_linear, not hard"),
        (["--output", "x.pt"], "ends in .onnx"),
    ],
)
def test_what_cannot_be_exported_is_refused(small_run, capsys, words, message):
    assert main(["export", str(small_run), *words]) == ConfigError.exit_code
    assert message in capsys.readouterr().err


def test_files_of_others_are_refused(tmp_path, onnx_file):
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(DataError, match="no metadata of this program"):
        ExportedDetector(tmp_path / "bare.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(DataError, match="is no ONNX model"):
        ExportedDetector(tmp_path / "noise.onnx")


def test_other_classes_are_refused(loaded, onnx_file, dataset):
    other = dataclasses.replace(dataset, label_map=LabelMap(("a", "b"), (3, 70)))
    with pytest.raises(DataError, match="label maps differ"):
        compare(loaded, ExportedDetector(onnx_file), other, Tolerance())
