"""The user's command with ``storage: s3://...``: killed, its folder deleted, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from buckets import fresh_location, needs_bucket
from mlflow.tracking import MlflowClient

from orchestrator.data.digits import Recipe, build_digits
from orchestrator.tracking.events import read_events
from orchestrator.training.object_storage import below, open_storage

pytestmark = [pytest.mark.ray, pytest.mark.slow, needs_bucket]

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: digits
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 8
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  evaluate_every_epochs: 2
  checkpoint: {every_steps: 2, keep_last: 3, keep_best: 2}
  log_every_steps: 1
  early_stopping: {patience: 2, min_delta: 0.9}
scratch: work
tracking: {mlflow: "sqlite:///mlflow.db", experiment: tests}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return tmp_path


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.run", "tiny.yaml", *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def lose_machine(driver: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Kill everything the driver has started, after ``step``, and delete what it worked in."""
    log = folder / "work" / "tiny" / "events.jsonl"
    deadline = time.monotonic() + 400
    while max((event.step for event in read_events(log)), default=0) < step:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.05)
    main = psutil.Process(driver.pid)
    everything = [*main.children(recursive=True), main]
    for process in everything:
        if process.is_running():
            process.kill()
    psutil.wait_procs(everything, timeout=60)
    driver.communicate()
    shutil.rmtree(folder / "work")


def test_a_run_survives_its_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = fresh_location(monkeypatch)
    finish(start(folder, "name=whole", "storage=runs", "tracking.mlflow=null"))
    whole = json.loads((folder / "runs" / "whole" / "result.json").read_text())
    # Evaluations after epochs 2, 4 and 6 of 6 steps; the second without a rise ends it.
    assert (whole["steps"], whole["early_stopping"]["best_step"]) == (36, 12)
    lose_machine(start(folder, f"storage={location}"), folder, 15)
    lose_machine(start(folder, f"storage={location}"), folder, 27)
    output = finish(start(folder, f"storage={location}"))
    storage = open_storage(below(location, "tiny"))
    assert f"kept in: {storage.describe('')}" in output

    result: dict[str, Any] = json.loads(storage.read_file("result.json", limit=10**6))
    # The commit of step 26 may have been under way; it waited for that of step 24.
    assert 24 <= result["resumed_from"] < 36
    same = ("state", "steps", "weights_sha256", "metrics", "best_metrics", "early_stopping")
    assert {name: result[name] for name in same} == {name: whole[name] for name in same}
    assert result["best_checkpoint"].startswith(storage.describe("ckpt/"))
    names = {entry.name for entry in storage.list("")}
    assert {"events.jsonl", "run.json", "config", "eval", "run_card.md", "report.html"} <= names
    assert len(storage.list("ckpt")) <= 5
    # The best checkpoint is at hand for other commands.
    (best,) = (folder / "work" / "tiny" / "ckpt").iterdir()
    assert result["best_checkpoint"].endswith(best.name)

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.get_run(result["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in losses) == list(range(1, 37))
    experiment = client.get_experiment_by_name("tests")
    assert len(client.search_runs([experiment.experiment_id])) == 1
