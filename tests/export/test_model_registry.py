"""An exported detector in MLflow's registry, loaded back as anybody would load it."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from orchestrator.accelerators import Accelerator
from orchestrator.cli.main import main
from orchestrator.data.decode import read_image
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.export.model_registry import COLUMNS, register
from orchestrator.predict.loading import load_detector
from orchestrator.predict.predictor import DetectOptions, TorchNetwork, detect
from orchestrator.predict.scoring import read_split


@pytest.fixture(scope="module")
def registered(small_run, tmp_path_factory):
    """Registered twice; the address of MLflow."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        # MLflow's default place of artifacts is the present folder.
        patch.chdir(folder)
        words = ["export", str(small_run), f"tracking.mlflow={uri}", "--format", "pt2"]
        words += ["--images", "2", "--output", str(folder / "tiny.pt2"), "--register", "tiny"]
        assert main(words) == 0
        assert main([*words, "--alias", "shipped"]) == 0
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def test_the_model_loaded_back_predicts_the_same_boxes(registered, small_run):
    model = mlflow.pyfunc.load_model("models:/tiny@shipped")
    loaded = load_detector(small_run)
    experiment = loaded.resolved.experiment
    dataset = read_split(experiment, "val", limit=3)
    network = TorchNetwork(loaded.model, Accelerator("cpu"), "fp32")
    how = DetectOptions(experiment.detector.postprocess)
    compared = 0
    for position in range(3):
        image = read_image(dataset.path(position))
        (expected,) = detect(network, [image], how, prepare=loaded.prepare, batch_size=1)
        found = model.predict(image[None])
        assert list(found.columns)[:2] == ["image", "x1"]
        boxes = torch.from_numpy(found[["x1", "y1", "x2", "y2"]].to_numpy())
        torch.testing.assert_close(boxes.float(), expected.boxes, atol=1e-2, rtol=0)
        scores = torch.from_numpy(found["score"].to_numpy())
        torch.testing.assert_close(scores.float(), expected.scores, atol=1e-4, rtol=0)
        ids = [loaded.label_map.ids[label] for label in expected.labels.tolist()]
        assert found["category_id"].tolist() == ids
        compared += len(ids)
    assert compared > 20


def test_versions_signature_and_example(registered):
    client = mlflow.MlflowClient(registered)
    assert client.get_model_version_by_alias("tiny", "latest-export").version in ("1", 1)
    assert client.get_model_version_by_alias("tiny", "shipped").version in ("2", 2)
    info = mlflow.models.get_model_info("models:/tiny@shipped")
    assert info.signature.inputs.inputs[0].shape == (-1, -1, -1, 3)
    assert info.signature.outputs.input_names()[-1] == "category"
    assert len(info.metadata["weights_sha256"]) == 64
    model = mlflow.pyfunc.load_model("models:/tiny@shipped")
    assert model.input_example is not None
    assert set(model.predict(np.asarray(model.input_example, np.uint8))["image"]) <= {0}


def test_other_inputs_are_refused(registered):
    model = mlflow.pyfunc.load_model("models:/tiny@shipped")
    with pytest.raises(MlflowException):
        model.predict(np.zeros((1, 8, 8, 3), np.float32))


def test_images_without_pixels_are_refused(registered):
    model = mlflow.pyfunc.load_model("models:/tiny@shipped")
    with pytest.raises(DataError, match=r"shape \(1, 0, 8, 3\)"):
        model.predict(np.zeros((1, 0, 8, 3), np.uint8))
    nothing = model.predict(np.zeros((0, 8, 8, 3), np.uint8))
    assert list(nothing.columns) == list(COLUMNS)
    assert not len(nothing)


def test_a_mirrored_array_is_the_image_it_shows(registered, small_run):
    """As BGR becomes RGB: an array whose strides are negative."""
    dataset = read_split(load_detector(small_run).resolved.experiment, "val", limit=1)
    image = read_image(dataset.path(0))
    model = mlflow.pyfunc.load_model("models:/tiny@shipped")
    bgr = np.ascontiguousarray(image[..., ::-1])
    found = model.predict(bgr[None][..., ::-1])
    assert found.equals(model.predict(image[None]))
    assert len(found)


@pytest.mark.parametrize("status", ["KILLED", "RUNNING"])
def test_the_run_of_the_training_ends_as_it_ended(registered, status):
    client = mlflow.MlflowClient(registered)
    run_id = client.create_run(client.get_experiment_by_name("Default").experiment_id).info.run_id
    if status != "RUNNING":
        client.set_terminated(run_id, status, 1_700_000_000_000)
    (file,) = Path(mlflow.artifacts.download_artifacts("models:/tiny@shipped")).rglob("*.pt2")
    made = register(
        file, "tiny", alias="again", tracking_uri=registered, experiment="other", run_id=run_id
    )
    assert made.run_id == run_id
    info = client.get_run(run_id).info
    assert info.status == status
    if status != "RUNNING":
        assert info.end_time == 1_700_000_000_000


def test_a_run_that_is_gone_is_no_bug_of_ours(registered):
    (file,) = Path(mlflow.artifacts.download_artifacts("models:/tiny@shipped")).rglob("*.pt2")
    with pytest.raises(StorageError, match="did not take the model 'tiny'"):
        register(file, "tiny", alias="x", tracking_uri=registered, experiment="e", run_id="0" * 32)


def test_no_registry_no_export(small_run, tmp_path, capsys):
    out = tmp_path / "tiny.pt2"
    words = ["export", str(small_run), "--format", "pt2", "--output", str(out), "--register", "x"]
    assert main(words) == ConfigError.exit_code
    assert "tracking.mlflow is null" in capsys.readouterr().err
    assert not out.exists()
