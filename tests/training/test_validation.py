"""Evaluation beside training: the scores, commits and log of a run that evaluates in its loop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.cluster import placement as cluster_placement
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.placement import Placement, place_evaluation
from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import Experiment
from orchestrator.data.batch import Batch
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import ConfigError
from orchestrator.runs import processes
from orchestrator.runs.plan import Plan
from orchestrator.runs.processes import RankTask
from orchestrator.storage import bucket as object_storage
from orchestrator.storage.bucket_mirror import BucketMirror
from orchestrator.storage.run_files import STOP
from orchestrator.tracking.events import metric_history, read_events
from orchestrator.training import session
from orchestrator.training.interrupt import asked_to_stop
from orchestrator.training.job import Outcome
from orchestrator.training.session import open_store, run_rank
from tests.support.chaos_run import CPU, small_plan
from tests.support.child_processes import CHILDREN, start_server
from tests.support.evaluators import ThreadEvaluator, fickle_detector
from tests.support.faulty_storage import BucketStorage
from tests.support.local_runs import StoppingStream, train

#: 6 steps an epoch. Two commits are kept, so that one that waits for its scores is neither of them.
SETTINGS = (
    "train.epochs=4",
    "train.checkpoint={every_steps: 1, keep_last: 2, keep_best: 1}",
)
DUE = [6, 12, 18, 24]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    build_digits(folder, Recipe(train=26, val=9, seed=3))
    return folder


@pytest.fixture(autouse=True)
def fickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", fickle_detector)
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Plan, Outcome]:
    """A run that evaluates in its loop, whose scores all differ and are not best at the end.

    The scores go by the last bits of the weights, so which seed makes such a run is another on
    another processor; three of four do.
    """
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "build_detector", fickle_detector)
        for seed in range(1, 21):
            plan = small_plan(folder / f"{seed}", digits, *SETTINGS, f"seed={seed}")
            outcome = train(plan)
            values = [value for _, value in logged(plan.job.path)["val/AR100"]]
            if len(set(values)) == len(DUE) and best_step(outcome) != DUE[-1]:
                return plan, outcome
    pytest.fail("no seed of twenty makes scores that tell one commit from another")


@pytest.fixture
def settings(whole: tuple[Plan, Outcome]) -> tuple[str, ...]:
    """What makes another run the same as ``whole``."""
    return (*SETTINGS, f"seed={whole[0].job.experiment.seed}")


def best_step(outcome: Outcome) -> int:
    return int(Path(str(outcome.best_checkpoint)).name)


def beside(
    plan: Plan, stream: LocalStream | None = None, *, lost_at: int | None = None
) -> tuple[Outcome, ThreadEvaluator]:
    plan = replace(plan, job=replace(plan.job, evaluates_beside=True))
    evaluator = ThreadEvaluator(plan.job, plan.batches, lost_at)
    outcome = run_rank(
        plan.job, stream or LocalStream(plan.batches), accelerator=CPU, evaluator=evaluator
    )
    assert evaluator.closed
    return outcome, evaluator


def logged(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every score in the log of a run, by metric."""
    log = run_dir / "events.jsonl"
    keys = {key for event in read_events(log) for key in event.values if key.startswith("val/")}
    return {key: [(p.step, p.value) for p in metric_history(log, key)] for key in keys}


def commits(plan: Plan) -> dict[int, tuple[str, dict[str, float] | None]]:
    return {
        commit.step: (commit.manifest.files["weights.safetensors"].sha256, commit.metrics)
        for commit in open_store(plan.job).commits()
    }


def assert_same(plan: Plan, outcome: Outcome, whole: tuple[Plan, Outcome]) -> None:
    """The run has ended as the one in the loop did, wherever it was interrupted."""
    for field in ("state", "steps", "metrics", "best_metrics", "weights_sha256"):
        assert getattr(outcome, field) == getattr(whole[1], field), field
    assert best_step(outcome) == best_step(whole[1])
    assert logged(plan.job.path) == logged(whole[0].job.path)
    for name in ("coco_results.json", "per_class.csv"):
        files = [p.job.path / "eval" / name for p in (plan, whole[0])]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_the_best_commit_is_kept_for_its_scores(whole: tuple[Plan, Outcome]) -> None:
    kept = commits(whole[0])
    assert list(kept) == [best_step(whole[1]), 23, 24]
    assert [step for step, _ in logged(whole[0].job.path)["val/AR100"]] == DUE


def test_beside_training_everything_is_as_in_the_loop(
    tmp_path: Path, digits: Path, whole: tuple[Plan, Outcome], settings: tuple[str, ...]
) -> None:
    plan = small_plan(tmp_path / "run", digits, *settings)
    outcome, evaluator = beside(plan)
    assert evaluator.steps == DUE[:-1]  # The last one has no step to be beside.
    assert_same(plan, outcome, whole)
    assert commits(plan) == commits(whole[0])
    # Each has its place in the log: where the next one is due.
    events = read_events(plan.job.path / "events.jsonl")
    steps = [e.step for e in events if e.kind == "metrics" and "goodput" not in e.values]
    assert steps == [*range(1, 13), 6, *range(13, 19), 12, *range(19, 25), 18, 24]


def test_without_an_average_the_weights_themselves_are_scored(tmp_path: Path, digits: Path) -> None:
    plans = [
        small_plan(tmp_path / name, digits, "train.ema=null", "train.epochs=3")
        for name in ("whole", "run")
    ]
    whole = train(plans[0])
    assert_same(plans[1], beside(plans[1])[0], (plans[0], whole))


@pytest.mark.parametrize("at", [8, 12, 17])
def test_stopped_and_started_again_each_commit_is_scored_once(
    at: int,
    tmp_path: Path,
    digits: Path,
    whole: tuple[Plan, Outcome],
    settings: tuple[str, ...],
) -> None:
    """While commit 6 is being scored, with its scores taken, and where the next one is due."""
    plan = small_plan(tmp_path / "run", digits, *settings)
    stopped, _ = beside(plan, StoppingStream(plan, at))
    assert (stopped.state, stopped.steps) == ("preempted", at + 1)
    (plan.job.path / STOP).unlink()
    outcome, _ = beside(plan)
    assert_same(plan, outcome, whole)


def test_what_was_outstanding_is_made_up_for_in_the_loop(
    tmp_path: Path, digits: Path, whole: tuple[Plan, Outcome], settings: tuple[str, ...]
) -> None:
    """The cluster has become too small, say."""
    plan = small_plan(tmp_path / "run", digits, *settings)
    beside(plan, StoppingStream(plan, 11))
    # Two wait: the commit that was being scored, and that of the step after which it ended.
    unscored = [step for step, (_, metrics) in commits(plan).items() if metrics is None]
    assert {6, 12} <= set(unscored)
    (plan.job.path / STOP).unlink()
    assert_same(plan, train(plan), whole)


@pytest.mark.parametrize(("evaluating", "step"), [(0, 6), (3, 24)])
def test_an_evaluation_is_not_waited_for_by_whoever_stops_the_run(
    evaluating: int,
    step: int,
    tmp_path: Path,
    digits: Path,
    whole: tuple[Plan, Outcome],
    settings: tuple[str, ...],
) -> None:
    plan = small_plan(tmp_path / "run", digits, *settings)
    stopped = train(plan, StoppingStream(plan, None, evaluating=evaluating))
    assert (stopped.state, stopped.steps) == ("preempted", step)
    assert commits(plan)[step][1] is None
    # The next start is stopped while it makes up for that.
    again = train(plan, StoppingStream(plan, None, evaluating=0))
    assert (again.state, again.steps, again.resumed_from) == ("preempted", step, step)
    (plan.job.path / STOP).unlink()
    assert_same(plan, train(plan), whole)


def test_what_an_evaluation_was_of_is_committed_when_it_is_given_up(
    tmp_path: Path, digits: Path
) -> None:
    plan = small_plan(tmp_path / "run", digits, "train.checkpoint={every_epochs: 2}")
    stopped = train(plan, StoppingStream(plan, None, evaluating=0))
    assert (stopped.state, stopped.steps) == ("preempted", 6)
    assert list(commits(plan)) == [6]


class AskedStream(LocalStream):
    """Rank 1 is asked to stop by a signal, in its first evaluation."""

    def eval_batches(self) -> Iterator[Batch]:
        for batch in super().eval_batches():
            if self.rank == 1:
                asked_to_stop.set()
            yield batch


def one_is_asked(task: RankTask) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with (
        mock.patch.object(session, "build_detector", fickle_detector),
        mock.patch.object(processes, "LocalStream", AskedStream),
    ):
        processes.rank_main(task)


def test_all_ranks_give_up_when_one_is_asked(tmp_path: Path, digits: Path) -> None:
    start_server()
    plan = small_plan(tmp_path / "run", digits, "cluster.workers=2", "train.batch_size=2")
    with processes.LocalRanks(
        plan, accelerator=CPU, target=one_is_asked, context=CHILDREN
    ) as ranks:
        assert ranks.join(120) == [75, 75]
    assert commits(plan)[13][1] is None
    assert logged(plan.job.path) == {}


@pytest.mark.parametrize("lost_at", DUE[:-1])
def test_a_lost_evaluator_ends_nothing(
    lost_at: int,
    tmp_path: Path,
    digits: Path,
    whole: tuple[Plan, Outcome],
    settings: tuple[str, ...],
) -> None:
    plan = small_plan(tmp_path / "run", digits, *settings)
    outcome, evaluator = beside(plan, lost_at=lost_at)
    assert evaluator.steps[-1] == lost_at
    assert_same(plan, outcome, whole)
    notes = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "evaluation"]
    assert [(note.step, note.text) for note in notes] == [
        (lost_at, "the evaluator is lost (taken away by the test); from here on in the loop")
    ]


def test_a_commit_that_can_be_read_no_more_stays_without_scores(
    tmp_path: Path, digits: Path, whole: tuple[Plan, Outcome], settings: tuple[str, ...]
) -> None:
    plan = small_plan(tmp_path / "run", digits, *settings)
    beside(plan, StoppingStream(plan, 8))
    (plan.job.path / STOP).unlink()
    damaged = plan.job.path / "ckpt" / "000000006" / "ema.safetensors"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    outcome = train(plan)
    assert outcome.weights_sha256 == whole[1].weights_sha256
    assert outcome.metrics == whole[1].metrics
    assert [step for step, _ in logged(plan.job.path)["val/epoch"]] == DUE[1:]
    (note,) = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "evaluation"]
    assert "stays without scores" in note.text
    assert "does not match its digest" in note.text


def test_a_bucket_whose_folder_is_lost_meanwhile(
    tmp_path: Path,
    digits: Path,
    whole: tuple[Plan, Outcome],
    settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = BucketStorage(tmp_path / "bucket")
    monkeypatch.setattr(object_storage, "_opened", lambda location: storage)
    location, folder = "s3://bucket/runs/run", tmp_path / "here" / "run"
    outcome = None
    for at in (9, 12, None):
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        with BucketMirror(location, folder) as mirror:
            plan = small_plan(folder, digits, *settings)
            (folder / STOP).unlink(missing_ok=True)
            plan = replace(
                plan, job=replace(plan.job, bucket=location, fence=mirror.lock.advance())
            )
            outcome, _ = beside(plan, None if at is None else StoppingStream(plan, at))
            mirror.settle()
    assert outcome is not None
    assert outcome.resumed_from == 13
    assert logged(folder) == logged(whole[0].job.path)
    for field in ("metrics", "best_metrics", "weights_sha256"):
        assert getattr(outcome, field) == getattr(whole[1], field), field


# Where

EXPERIMENT = """
name: tiny
detector: {name: ssd}
data:
  train: {images: a, annotations: a.json}
  val: {images: a, annotations: a.json}
train: {epochs: 9, batch_size: 4, optimizer: {name: sgd, lr: 0.1}}
"""


def experiment(folder: Path, *overrides: str) -> Experiment:
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT)
    return load_experiment(file, overrides).experiment


def where(
    monkeypatch: pytest.MonkeyPatch,
    found: Experiment,
    have: Mapping[str, float],
    *,
    each: Mapping[str, float] | None = None,
    threads: int | None = 1,
    free: Mapping[str, float] | None = None,
    in_sweep: bool = False,
) -> str | None:
    node = Node("a1", "one", "10.0.0.1", have)
    monkeypatch.setattr(cluster_placement, "alive_nodes", lambda: [node])
    left = dict(have if free is None else free)
    monkeypatch.setattr(cluster_placement, "free_resources", lambda: {node.id: left})
    each = {"CPU": 1.0} if each is None else each
    placement = Placement(Accelerator("gpu" if "GPU" in each else "cpu"), dict(each), threads)
    return place_evaluation(found, placement, epochs=9, in_sweep=in_sweep)


def test_beside_where_there_is_room_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = experiment(tmp_path)
    assert auto.train.evaluation == "auto"
    assert where(monkeypatch, auto, {"CPU": 3.0}) is None
    assert where(monkeypatch, auto, {"CPU": 2.0}) == (
        "since one worker more, to evaluate beside it, would make (1 + 1) workers x 1 CPU + 1 CPU "
        "for reading data = 3 CPU, but the cluster has 2 free"
    )
    # Threads are as real as what has been reserved.
    assert "(1 + 1) workers x 3 CPU" in str(where(monkeypatch, auto, {"CPU": 4.0}, threads=3))
    # Others are at work there.
    assert "has 2 free" in str(where(monkeypatch, auto, {"CPU": 8.0}, free={"CPU": 2.0}))
    gpu = {"CPU": 1.0, "GPU": 1.0}
    eight = {"CPU": 64.0, "GPU": 8.0}
    seven, all_eight = (experiment(tmp_path, f"cluster.workers={n}", f"train.batch_size={n}")
                        for n in (7, 8))  # fmt: skip
    assert where(monkeypatch, seven, eight, each=gpu, threads=None) is None
    assert "(8 + 1) workers x 1 GPU = 9 GPU, but the cluster has 8" in str(
        where(monkeypatch, all_eight, eight, each=gpu, threads=None)
    )


@pytest.mark.parametrize(
    ("override", "in_sweep", "reason"),
    [
        ("train.evaluation=in_loop", False, "as train.evaluation says"),
        ("train.early_stopping={patience: 2}", False, "train.early_stopping waits for the scores"),
        ("train.checkpoint.every_epochs=2", False, "not every evaluation falls on a checkpoint"),
        ("train.evaluate_every_epochs=9", False, "all of it comes after the last step"),
        ("seed=1", True, "other trials share the cluster"),
    ],
)
def test_in_the_loop_for_a_reason(
    override: str, in_sweep: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = experiment(tmp_path, override)
    assert reason in str(where(monkeypatch, found, {"CPU": 99.0}, in_sweep=in_sweep))


def test_beside_where_it_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = experiment(tmp_path, "train.evaluation=beside")
    assert where(monkeypatch, told, {"CPU": 3.0}, threads=8, free={"CPU": 1.0}) is None
    with pytest.raises(ConfigError, match=r"takes one worker more: \(1 \+ 1\) workers x 1 CPU \+ "):
        where(monkeypatch, told, {"CPU": 2.0})
    for override, message in {
        "train.early_stopping={patience: 2}": "train.early_stopping waits for them",
        "train.checkpoint.every_epochs=2": "which is 1, must be divisible by",
        "sweep={metric: val/AP, trials: 2, space: {seed: {choice: [1, 2]}}}": "gives to another",
    }.items():
        with pytest.raises(ConfigError, match=message):
            experiment(tmp_path, "train.evaluation=beside", override)
