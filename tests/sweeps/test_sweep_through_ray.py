"""The user's command on a sweep: unbroken, killed again and again, and with trials added."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.inference.small_run import make_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXPERIMENT = """
name: whole
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: squares
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
  augmentation: {name: none}
train:
  epochs: 3
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: cosine}
  log_every_steps: 1
tracking: {mlflow: "sqlite:///mlflow.db", experiment: tests}
sweep:
  trials: 3
  scheduler: asha
  asha: {reduction_factor: 2}
  space:
    train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
    train.schedule.warmup_epochs: {uniform: [0, 1]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep-through-ray")
    make_data(folder / "squares")
    (folder / "sweep.yaml").write_text(EXPERIMENT)
    return folder


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run", "sweep.yaml", *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> str:
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == code, output
    return output


def summary(folder: Path, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "runs" / name / "sweep.json").read_text())
    return tree


def journal(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "sweep.jsonl").read_text().splitlines()
    return [entry for line in lines if (entry := json.loads(line))["kind"] == kind]


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[str, dict[str, Any]]:
    """Output and summary of an unbroken sweep."""
    output = finish(start(folder))
    return output, summary(folder, "whole")


def test_trials_are_distinct_runs_nested_in_mlflow(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    output, found = whole
    assert "at a time: one trial takes 1 worker x 1 CPU, plus 1 CPU for reading data" in output
    assert found["state"] == "finished"
    assert len({trial["digest"] for trial in found["trials"]}) == 3
    assert {trial["state"] for trial in found["trials"]} <= {"done", "stopped"}
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs["whole"]
    assert parent.data.tags["best_trial"] == found["best"]
    assert parent.data.tags["best_run_id"] == runs[found["best"]].info.run_id
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "best")} == {
        "best/resolved.yaml",
        "best/checkpoint",
    }
    for trial in found["trials"]:
        run = runs[trial["name"]]
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["trial"] == trial["name"]
        assert tags["ended"] == trial["state"]
        assert tags["config_digest"] == trial["config_digest"]
        assert tags["data_digest"] == trial["data_digest"]
        rate = trial["values"]["train.optimizer.lr"]
        assert float(run.data.params["train.optimizer.lr"]) == rate


def test_a_killed_driver_changes_nothing(whole: tuple[str, dict[str, Any]], folder: Path) -> None:
    for trial, step in (("trial-000", 2), ("trial-001", 2)):
        process = start(folder, "name=broken")
        log = folder / "runs" / "broken" / trial / "events.jsonl"
        deadline = time.monotonic() + 900
        while f'"step":{step},' not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline, "no step was taken"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(folder, "name=broken"))
    broken = summary(folder, "broken")
    kept = ("name", "state", "values", "score", "weights_sha256", "steps")
    assert [{k: t[k] for k in kept} for t in broken["trials"]] == [
        {k: t[k] for k in kept} for t in whole[1]["trials"]
    ]
    assert broken["ranking"] == whole[1]["ranking"]
    assert sorted(entry["trial"] for entry in journal(folder, "broken", "end")) == [0, 1, 2]
    assert journal(folder, "broken", "judged") == journal(folder, "whole", "judged")


def test_trials_are_added_to_a_finished_sweep_and_other_sweeps_refused(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    refused = finish(start(folder, "sweep.scheduler=none"), code=64)
    assert "holds another sweep" in refused
    assert "sweep.scheduler" in refused
    finish(start(folder, "sweep.trials=4"))
    found = summary(folder, "whole")
    assert found["trials"][:3] == whole[1]["trials"]
    assert found["trials"][3]["state"] in ("done", "stopped")
