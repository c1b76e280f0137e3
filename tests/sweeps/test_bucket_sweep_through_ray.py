"""The user's command on a sweep in a bucket: its machine is lost, and it ends as it would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from sweep_runs import summary, write_experiment

from orchestrator.storage.address import below
from orchestrator.storage.bucket import open_storage
from tests.support.buckets import fresh_location
from tests.support.small_run import make_data
from tests.support.user_command import finish, kill_after, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECONDS = 1500.0
SECTION = """
trials: 2
scheduler: asha
asha: {reduction_factor: 2}
space:
  train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
"""
KEPT = ("name", "state", "values", "score", "metrics", "weights_sha256", "steps")


def test_a_sweep_survives_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = fresh_location(monkeypatch)
    make_data(tmp_path / "squares")
    write_experiment(tmp_path, SECTION, epochs=2, mlflow='"sqlite:///mlflow.db"')
    plain = ("sweep.yaml", "name=plain", "tracking.mlflow=null", "sweep.concurrency=1")
    finish(start(tmp_path, *plain), timeout=SECONDS)
    expected = summary(tmp_path, "plain")

    words = ("sweep.yaml", f"storage={location}", "scratch=work", "sweep.concurrency=1")
    log = tmp_path / "work" / "whole" / "trial-001" / "events.jsonl"
    kill_after(start(tmp_path, *words), log, 2)
    shutil.rmtree(tmp_path / "work")
    output = finish(start(tmp_path, *words), timeout=SECONDS)
    bucket = open_storage(below(location, "whole"))
    assert f"trials brought from {bucket.describe('')}: 1" in output
    found = json.loads(bucket.read_file("sweep.json", limit=10**7))
    for one, other in zip(expected["trials"], found["trials"], strict=True):
        assert {key: one[key] for key in KEPT} == {key: other[key] for key in KEPT}
    assert found["best"] == expected["best"]
    assert (found["state"], found["ranking"]) == ("finished", expected["ranking"])

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["trial-000", "trial-001", "whole"]
    tags = runs["whole"].data.tags
    assert tags["best_checkpoint"] == found["best_checkpoint"]
    assert found["best_checkpoint"].startswith(bucket.describe(found["best"]))
    inside = {item.path for item in client.list_artifacts(runs["whole"].info.run_id, "best")}
    assert inside == {"best/resolved.yaml", "best/checkpoint"}
