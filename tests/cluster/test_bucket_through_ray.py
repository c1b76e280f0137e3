"""The user's command with ``storage: s3://...``: killed, its folder deleted, it goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.storage.address import below
from orchestrator.storage.bucket import open_storage
from tests.support.buckets import fresh_location
from tests.support.experiments import experiment
from tests.support.user_command import finish, kill_after, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXPERIMENT = experiment("""\
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
""")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    return tmp_path


def begin(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    return start(folder, "tiny.yaml", *overrides)


def lose_machine(driver: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Kill everything the driver has started, after ``step``, and delete what it worked in."""
    kill_after(driver, folder / "work" / "tiny" / "events.jsonl", step)
    shutil.rmtree(folder / "work")


def test_a_run_survives_its_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = fresh_location(monkeypatch)
    finish(begin(folder, "name=whole", "storage=runs", "tracking.mlflow=null"), timeout=600.0)
    whole = json.loads((folder / "runs" / "whole" / "result.json").read_text())
    # Evaluations after epochs 2, 4 and 6 of 6 steps; the second without a rise ends it.
    assert (whole["steps"], whole["early_stopping"]["best_step"]) == (36, 12)
    lose_machine(begin(folder, f"storage={location}"), folder, 15)
    lose_machine(begin(folder, f"storage={location}"), folder, 27)
    output = finish(begin(folder, f"storage={location}"), timeout=600.0)
    storage = open_storage(below(location, "tiny"))
    assert f"kept in: {storage.describe('')}" in output

    result: dict[str, Any] = json.loads(storage.read_file("result.json", limit=10**6))
    # The commit of step 26 may have been under way; it waited for that of step 24.
    assert 24 <= result["resumed_from"] < 36
    same = ("state", "steps", "weights_sha256", "metrics", "best_metrics", "early_stopping")
    assert {name: result[name] for name in same} == {name: whole[name] for name in same}
    assert result["best_checkpoint"].startswith("ckpt/")
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
