"""Evaluation beside training on a local Ray, by the user's command and by the actor alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from mlflow.tracking import MlflowClient
from test_run_through_ray import EXPERIMENT

from orchestrator.accelerators import Accelerator
from orchestrator.cluster.evaluator import RayEvaluator
from orchestrator.cluster.relay import Way
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.tracking.events import metric_history, read_events
from orchestrator.training.commit_evaluator import CommitEvaluator
from orchestrator.training.session import run_rank
from orchestrator.training.validation import EvaluatorLostError, Scored
from tests.support import waiting
from tests.support.user_command import finish, result, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CPU = Accelerator("cpu")
SAME = ("state", "steps", "metrics", "best_metrics", "weights_sha256", "config_digest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(
        EXPERIMENT.replace("evaluate_every_epochs: 3", "evaluate_every_epochs: 2")
    )
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_evaluates_beside_training_ends_as_one_in_the_loop(
    workers: int, folder: Path
) -> None:
    logs, results = [], []
    for where, said in (("in_loop", "training pauses for it, as train"), ("beside", "beside tr")):
        name = f"{where}{workers}"
        words = (f"name={name}", f"train.evaluation={where}", f"cluster.workers={workers}")
        assert f"evaluation: {said}" in finish(start(folder, "tiny.yaml", *words), timeout=900.0)
        results.append(result(folder, name))
        logs.append(folder / "runs" / name / "events.jsonl")
        assert not [e for e in read_events(logs[-1]) if e.kind == "evaluation"]
    for field in SAME:
        assert results[0][field] == results[1][field], field
    assert [Path(found["best_checkpoint"]).name for found in results[:1]] * 2 == [
        Path(found["best_checkpoint"]).name for found in results
    ]
    for key in ("val/AP", "val/AR100", "val/epoch"):
        mine, theirs = ([(p.step, p.value) for p in metric_history(log, key)] for log in logs)
        assert mine == theirs, key
    assert [p.step for p in metric_history(logs[1], "val/epoch")] == [12, 24, 36]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    shipped = client.get_metric_history(results[1]["mlflow_run_id"], "val/epoch")
    assert sorted(point.step for point in shipped) == [12, 24, 36]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Plan:
    """A run in this process, of two epochs with a commit each."""
    run_dir = folder / "plain"
    run_dir.mkdir()
    words = (
        f"data.root={folder / 'digits'}",
        "tracking.mlflow=null",
        "train.max_steps=12",
        "train.evaluate_every_epochs=1",
    )
    plan = make_plan(load_experiment(folder / "tiny.yaml", words), run_dir, threads=1)
    run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
    return plan


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def wait_for(evaluator: RayEvaluator) -> Scored | str:
    try:
        return evaluator.result()
    except EvaluatorLostError as error:
        return str(error)


def test_the_actor_scores_commits_until_it_is_killed(
    trained: Plan, cluster: None, tmp_path: Path
) -> None:
    resources = {"CPU": 1.0}
    way = Way(trained.job.run_dir, "")
    evaluator = RayEvaluator(trained.job, ray.put(trained.batches), CPU, resources, tmp_path, way)
    expected = CommitEvaluator(trained.job, trained.batches, CPU)
    for step in (6, 12):
        evaluator.submit(step)
        scored, alone = evaluator.result(), expected.score(step)
        assert scored.scores == alone.scores
        assert scored.found.boxes.tobytes() == alone.found.boxes.tobytes()
        assert scored.found.scores.tobytes() == alone.found.scores.tobytes()
    # A commit that is not there is told, not waited for.
    evaluator.submit(7)
    assert "no checkpoint of step 7" in str(wait_for(evaluator))
    # After that it starts anew, and meets its end.
    evaluator.submit(6)
    pid = ray.get(evaluator._actor.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    evaluator.submit(12)
    assert "ActorDiedError" in str(wait_for(evaluator))
    evaluator.close()
    # The place is given back.
    waiting.wait_for(lambda: ray.available_resources().get("CPU", 0.0) >= 1.0, every=0.1)


def test_an_actor_without_a_place_is_given_up(
    trained: Plan, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.evaluator._START_SECONDS", 1.0)
    job = replace(trained.job, evaluates_beside=True)
    way = Way(job.run_dir, "")
    evaluator = RayEvaluator(job, ray.put(trained.batches), CPU, {"CPU": 2.0}, tmp_path, way)
    outcome = run_rank(
        replace(job, run_dir=str(trained.job.path.with_name("placeless"))),
        LocalStream(trained.batches),
        accelerator=CPU,
        evaluator=evaluator,
    )
    assert outcome.state == "done"
    log = trained.job.path.with_name("placeless") / "events.jsonl"
    (note,) = [e for e in read_events(log) if e.kind == "evaluation"]
    assert "has had no place for it" in note.text
    logs = (log, trained.job.path / "events.jsonl")
    mine, theirs = ([(p.step, p.value) for p in metric_history(x, "val/AR100")] for x in logs)
    assert mine == theirs
    assert [step for step, _ in mine] == [6, 12]
