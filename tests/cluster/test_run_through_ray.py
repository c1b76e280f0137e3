"""The user's command, as a process of its own, on a local Ray.

One run serves all of it: Ctrl-C stops it with two workers, and the same command goes on with one.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.runs.plan import make_plan
from tests.support.local_runs import train
from tests.support.user_command import finish, result, start

pytestmark = pytest.mark.ray

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: digits
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 6
  batch_size: 4
  virtual_shards: 2
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: cosine, warmup_epochs: 1}
  evaluate_every_epochs: 3
  log_every_steps: 1
tracking: {mlflow: "sqlite:///mlflow.db", experiment: tests}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("through-ray")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def stopped(folder: Path) -> tuple[str, dict[str, Any]]:
    """Output and result of two workers, stopped with Ctrl-C, who have no home and a long TMPDIR."""
    temporary = folder / "t".ljust(90 - len(str(folder)), "t")
    temporary.mkdir()
    # No user can make a folder below a device, not even root.
    surroundings = {"HOME": "/dev/null/home", "TMPDIR": str(temporary)}
    process = start(folder, "tiny.yaml", "cluster.workers=2", surroundings=surroundings)
    log = folder / "runs" / "tiny" / "events.jsonl"
    deadline = time.monotonic() + 200
    while '"step":5,' not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.05)
    with_torch = uses_torch(process.pid)
    process.send_signal(signal.SIGINT)
    output = finish(process, code=75)
    # Each start of workers waits for the controller, which has nothing to compute.
    assert with_torch["RayTrainWorker"]
    assert not with_torch["TrainController"]
    # Nobody calls ray.train.report.
    assert "SynchronizationActor" not in with_torch
    return output, result(folder, "tiny")


def uses_torch(driver: int) -> dict[str, bool]:
    """Whether any of Ray's processes with an actor of a class has loaded torch."""
    found: dict[str, bool] = {}
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error, IndexError):
            title = process.cmdline()[0]
            if title.startswith("ray::"):
                name = title.removeprefix("ray::").split(".")[0].strip()
                loaded = any("libtorch_cpu" in one.path for one in process.memory_maps())
                found[name] = found.get(name, False) or loaded
    return found


@pytest.fixture(scope="module")
def whole(stopped: tuple[str, dict[str, Any]], folder: Path) -> tuple[str, dict[str, Any]]:
    """Output and result of the same command, with one worker, which goes on to the end."""
    output = finish(start(folder, "tiny.yaml"))
    return output, result(folder, "tiny")


def test_ctrl_c_commits_and_the_same_command_goes_on(
    stopped: tuple[str, dict[str, Any]],
    whole: tuple[str, dict[str, Any]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, first = stopped
    assert "run the same command again" in output
    assert 5 <= first["steps"] < 36
    assert first["workers"] == 2
    resumed = whole[1]
    assert resumed["resumed_from"] == first["steps"]
    assert resumed["workers"] == 1
    assert resumed["mlflow_run_id"] == first["mlflow_run_id"]
    # The same as of a run that is never stopped, in one process, without Ray.
    monkeypatch.chdir(folder)
    alone = folder / "alone"
    alone.mkdir()
    outcome = train(make_plan(load_experiment("tiny.yaml"), alone, threads=1))
    assert resumed["weights_sha256"] == outcome.weights_sha256
    assert resumed["metrics"] == outcome.metrics


def test_a_run_says_what_it_did(whole: tuple[str, dict[str, Any]], folder: Path) -> None:
    output, found = whole
    assert found["state"] == "done"
    assert (found["steps"], found["samples"]) == (36, 144)
    assert list(found["metrics"]) == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
    ]  # fmt: skip
    checkpoint = folder / "runs" / "tiny" / found["best_checkpoint"]
    assert (checkpoint / "weights.safetensors").is_file()
    assert len(found["weights_sha256"]) == 64
    assert "24 images" in output
    assert str(folder / "runs" / "tiny") in output
    assert "AP50" in output
    # What only the workers and Ray had use for is gone.
    left = {path.name for path in (folder / "runs" / "tiny").iterdir()}
    assert {"beats", "ray", "stop-requested"}.isdisjoint(left)


def test_the_last_lines_open_the_runs_from_any_folder(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    output, found = whole
    *_, what, command, page, samples, hint, last = output.splitlines()
    python, *words, uri = shlex.split(command)
    assert words == ["-m", "mlflow", "ui", "--backend-store-uri"]
    assert Path(python).is_absolute()
    assert os.access(python, os.X_OK)
    assert uri == f"sqlite:///{folder / 'mlflow.db'}"
    # What is no command is a comment, so that a shell takes all three lines.
    assert what.startswith("# ")
    experiment = MlflowClient(uri).get_run(found["mlflow_run_id"]).info.experiment_id
    runs = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert page == f"# http://127.0.0.1:5000/{runs}"
    pictures = folder / "runs" / "tiny" / "samples" / "step-00000036.jpg"
    assert samples == f"# validation images with detections: {pictures}"
    assert pictures.is_file()
    assert hint.startswith("# ")
    program, verb, run, *_ = shlex.split(last)
    assert verb == "predict"
    assert os.access(program, os.X_OK)
    assert Path(run).is_absolute()


def test_mlflow_holds_the_run(whole: tuple[str, dict[str, Any]], folder: Path) -> None:
    _, found = whole
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.get_run(found["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.optimizer.lr"] == "0.001"
    assert run.data.tags["data_digest"] == found["data_digest"]
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, 37))
    scores = client.get_metric_history(run.info.run_id, "val/AP")
    assert sorted(point.step for point in scores) == [18, 36]
    assert run.data.metrics["val/AP"] == found["metrics"]["AP"]
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    files = {"label_map.json", "run_card.md", "report.html"}
    assert {"config", "eval", "checkpoints"} | files <= paths
    # What a colleague looks for: data, person, file; and nothing that only this machine needs.
    assert {(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs} == {
        ("digits-train", "training"),
        ("digits-val", "evaluation"),
    }
    assert run.data.tags["mlflow.source.name"] == "tiny.yaml"
    assert run.data.tags["mlflow.user"]
    assert "24 training" in run.data.tags["mlflow.note.content"]
    assert run.data.tags["storage"] == "runs"
    assert {"name", "storage", "tracking.mlflow"}.isdisjoint(run.data.params)
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "checkpoints/best")}
    assert "checkpoints/best/weights.safetensors" in kept
    assert "checkpoints/best/optimizer.safetensors" not in kept


def test_another_experiment_under_the_same_name_is_refused(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    output = finish(start(folder, "tiny.yaml", "train.optimizer.lr=0.5"), code=64)
    assert "train.optimizer.lr" in output
    assert "--force-resume" in output
