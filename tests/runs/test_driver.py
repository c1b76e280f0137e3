"""The driver's parts without a cluster: placement, retries, signals, progress."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, TrainingFailedError, WorkerGroupError

from orchestrator.accelerators import Accelerator, from_resources
from orchestrator.cluster import placement, trainer
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.placement import place, wait_for_room
from orchestrator.cluster.spares import Spares
from orchestrator.cluster.stop_wish import StopWish
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError, DataError, OrchestratorError, PreemptedError
from orchestrator.tracking.events import EventLog

# Placement


@pytest.fixture
def resources(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Of the one node, all of them free."""
    found: dict[str, float] = {"CPU": 4.0}
    monkeypatch.setattr(placement, "alive_nodes", lambda: [Node("n", "host", "10.0.0.1", found)])
    monkeypatch.setattr(placement, "free_resources", lambda: {"n": dict(found)})
    return found


def test_workers_that_cannot_fit_are_refused_with_the_arithmetic(
    resources: dict[str, float],
) -> None:
    with pytest.raises(ConfigError) as refused:
        place(ClusterConfig(workers=4))
    assert "4 workers x 1 CPU + 1 CPU for reading data = 5 CPU, but the cluster has 4" in str(
        refused.value
    )
    assert place(ClusterConfig(workers=3)).resources_per_worker == {"CPU": 1.0}


def test_an_accelerator_is_taken_where_there_is_one(resources: dict[str, float]) -> None:
    assert place(ClusterConfig()).accelerator.kind == "cpu"
    resources["NPU"] = 2.0
    placed = place(ClusterConfig(workers=2))
    assert placed.accelerator.kind == "npu"
    assert placed.accelerator.backend == "hccl"
    assert placed.resources_per_worker == {"CPU": 1.0, "NPU": 1.0}
    assert placed.threads is None
    with pytest.raises(ConfigError, match=r"2 CPU|3 NPU, but the cluster has 2"):
        place(ClusterConfig(workers=3))
    with pytest.raises(ConfigError, match=r"'gpu', but the cluster offers only npu, cpu"):
        place(ClusterConfig(accelerator="gpu"))


def test_precision_is_what_the_device_does_well() -> None:
    cpu = from_resources("auto", {"CPU": 1.0})
    assert cpu.resolve_precision("auto") == "fp32"
    assert cpu.resolve_precision("bf16") == "bf16"
    with pytest.raises(ConfigError, match="fp16 on cpu"):
        cpu.resolve_precision("fp16")


def test_a_static_loss_scale_stays() -> None:
    scaler = Accelerator("cpu").scaler("fp16", 32.0)
    assert scaler.get_scale() == 32.0
    assert Accelerator("cpu").scaler("fp32", "dynamic").is_enabled() is False


def test_room_that_others_hold_is_waited_for(
    resources: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = place(ClusterConfig(workers=2))
    monkeypatch.setattr(placement, "_MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(placement, "_POLL_SECONDS", 0.01)
    free = iter([{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 3.0}])
    monkeypatch.setattr(placement, "free_resources", lambda: {"n": next(free)})
    said: list[str] = []
    wait_for_room(2, placed, said.append)
    short = "2 workers x 1 CPU + 1 CPU for reading data = 3 CPU, but the cluster has {} free"
    assert said == [f"waiting for room on the cluster, up to 10 min: {short.format(1)}"]
    monkeypatch.setattr(placement, "free_resources", lambda: {"n": {"CPU": 0.5}})
    monkeypatch.setattr(placement, "ROOM_SECONDS", 0.05)
    with pytest.raises(PreemptedError) as refused:
        wait_for_room(2, placed, said.append)
    assert short.format(0.5) in str(refused.value)


# Retries


class Attempts:
    """Stands for Ray: fails as told, and commits as told before it does.

    Attributes:
        meanwhile: called in every attempt.
        look: at nodes that have joined, before every attempt; told how many steps are done.
    """

    def __init__(self, *plan: tuple[Any, int]) -> None:
        self.plan = list(plan)
        self.commit: int | None = None
        self.fences: list[Any] = []
        self.patience: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.look: Callable[[int], None] = lambda done: None

    def __call__(
        self,
        job: Any,
        streams: Any,
        placement: Any,
        patience: float,
        way: Any,
        expected: int,
        variables: dict[str, str],
    ) -> Any:
        assert expected == (self.commit or 0)
        assert variables == {"A": "1"}
        assert way.is_shared()
        self.fences.append(job.fence)
        self.patience.append(patience)
        self.meanwhile()
        failure, commits = self.plan.pop(0)
        if commits:
            self.commit = (self.commit or 0) + commits
        if isinstance(failure, TrainingFailedError | trainer.HungError):
            raise failure
        if isinstance(failure, SimpleNamespace):
            return failure
        if failure is not None:
            raise WorkerGroupError("workers failed", {0: failure})
        return "outcome"


@pytest.fixture
def stop(tmp_path: Path) -> StopWish:
    return StopWish(tmp_path)


@pytest.fixture
def fit(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], stop: StopWish
) -> Callable[[Attempts], Any]:
    def call(attempts: Attempts) -> Any:
        monkeypatch.setattr(trainer, "_attempt", attempts)
        spares = Spares({"A": "1"}, ahead=False, kept=False)
        monkeypatch.setattr(trainer.Spares, "of", lambda job: spares)
        monkeypatch.setattr(
            trainer.dataclasses,
            "replace",
            lambda job, fence: SimpleNamespace(fence=fence, run_dir=job.run_dir),
        )
        numbers = iter(range(100))
        job = SimpleNamespace(
            experiment=SimpleNamespace(
                train=SimpleNamespace(max_failures=3),
                cluster=SimpleNamespace(workers=1, min_workers=None),
            ),
            run_dir="run",
            sampled={},
            initial=None,
        )
        lock: Any = SimpleNamespace(advance=lambda: next(numbers), fence=lambda: None)
        return trainer.fit(
            job,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            place(ClusterConfig()),
            trainer.Hold(lambda: attempts.commit, lock, lock, None, attempts.look),
            stop,
        )

    return call


def test_failures_are_free_while_commits_advance(fit: Callable[[Attempts], Any]) -> None:
    lost = RuntimeError("a worker died")
    attempts = Attempts(*[(lost, 1)] * 6, (None, 1))
    assert fit(attempts) == "outcome"
    assert attempts.fences == list(range(7))


def test_three_failures_without_a_commit_end_the_run(fit: Callable[[Attempts], Any]) -> None:
    attempts = Attempts((RuntimeError("first"), 1), *[(RuntimeError("same bug"), 0)] * 3)
    with pytest.raises(OrchestratorError, match=r"3 times without a new commit.*same bug"):
        fit(attempts)
    assert attempts.plan == []


def test_a_node_that_is_taken_back_costs_no_attempt(fit: Callable[[Attempts], Any]) -> None:
    died = RayActorError(preempted=True)
    unhealthy = RuntimeError("a health check failed")
    unhealthy.health_check_failure = died  # type: ignore[attr-defined]  # As Ray Train wraps it.
    losses: list[BaseException] = [died, unhealthy]
    if hasattr(ray.train, "PreemptionError"):
        info = ray.train.PreemptionInfo(None, {"node": [0]})
        losses.append(ray.train.PreemptionError(info))
    bug = RuntimeError("same bug")
    attempts = Attempts(*[(loss, 0) for loss in losses * 3], *[(bug, 0)] * 2, (died, 0), (bug, 0))
    with pytest.raises(OrchestratorError, match=r"3 times without a new commit.*same bug"):
        fit(attempts)
    assert attempts.plan == []
    # Ray itself restarts nothing, so that every start of the workers is fenced.
    config = FailureConfig(**trainer._NO_RESTARTS)
    assert config.max_failures == getattr(config, "max_preemption_failures", 0) == 0


def test_what_was_taken_for_hung_gets_more_time_the_next_time(
    fit: Callable[[Attempts], Any],
) -> None:
    hung, lost = trainer.HungError("no progress"), RuntimeError("a worker died")
    attempts = Attempts((hung, 1), (hung, 0), (hung, 0), (lost, 1), (hung, 0), (None, 1))
    assert fit(attempts) == "outcome"
    assert attempts.patience == [1, 1, 2, 4, 1, 2]


def test_what_is_wrong_with_the_data_is_not_tried_again(fit: Callable[[Attempts], Any]) -> None:
    attempts = Attempts((DataError("image 7 is missing"), 0), (None, 1))
    with pytest.raises(DataError, match="image 7 is missing"):
        fit(attempts)
    assert len(attempts.plan) == 1


def test_nodes_are_looked_at_before_every_attempt(fit: Callable[[Attempts], Any]) -> None:
    attempts = Attempts((RuntimeError("its node is gone"), 2), (None, 1))
    done: list[int] = []

    def look(steps: int) -> None:
        done.append(steps)
        if steps:
            raise ConfigError("data.train.images: /data cannot be read on 10.0.0.9")

    attempts.look = look
    with pytest.raises(ConfigError, match=r"cannot be read on 10\.0\.0\.9"):
        fit(attempts)
    assert done == [0, 2]
    assert len(attempts.plan) == 1


def test_a_wish_to_stop_ends_the_run_between_two_attempts(
    fit: Callable[[Attempts], Any], stop: StopWish
) -> None:
    attempts = Attempts((RuntimeError("the whole job was ended"), 0), (None, 1))
    attempts.meanwhile = stop.ask
    with pytest.raises(PreemptedError, match="no worker was training"):
        fit(attempts)
    assert len(attempts.plan) == 1


def test_a_wish_is_heard_of_while_nodes_are_waited_for(
    fit: Callable[[Attempts], Any],
    stop: StopWish,
    resources: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(placement, "_MOMENT_SECONDS", 0.0)
    monkeypatch.setattr(placement, "_POLL_SECONDS", 0.01)
    attempts = Attempts((RuntimeError("its node is gone"), 1), (None, 1))
    attempts.meanwhile = lambda: resources.update(CPU=1.0)
    threading.Timer(0.3, stop.ask).start()
    with pytest.raises(PreemptedError, match="no worker was training"):
        fit(attempts)
    assert len(attempts.plan) == 1
    assert "waiting for room on the cluster, up to 10 min: 1 workers x 1 CPU" in caplog.text


@pytest.mark.parametrize(("commits", "waits"), [(1, False), (0, True)])
def test_what_others_hold_is_waited_for_once_an_attempt_was_in_vain(
    commits: int,
    waits: bool,
    fit: Callable[[Attempts], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the run itself had is about to be free."""
    monkeypatch.setattr(placement, "free_resources", lambda: {"n": {"CPU": 0.0}})
    monkeypatch.setattr(placement, "ROOM_SECONDS", -1.0)
    attempts = Attempts((RuntimeError("a worker died"), commits), (None, 1))
    if waits:
        with pytest.raises(PreemptedError, match="but the cluster has 0 free"):
            fit(attempts)
    else:
        assert fit(attempts) == "outcome"


class Growing:
    """Stands for the search for room, which finds some in the attempts that are named."""

    def __init__(self, *attempts: int) -> None:
        self.attempts = attempts
        self.vain: list[int] = []

    def __call__(
        self, numbers: Any, now: int, placement: Any, ask: Any, *, look: Any, vain: int
    ) -> Any:
        asks = len(self.vain) in self.attempts
        self.vain.append(vain)
        if asks:
            ask()
        return SimpleNamespace(asked=asks, now=now, watching=nullcontext)


def test_more_workers_take_over_whatever_becomes_of_the_fewer(
    fit: Callable[[Attempts], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = iter([1, 1, 1, 2, 2, 2])
    monkeypatch.setattr(trainer, "numbers_of_workers", lambda job: [1, 2])
    monkeypatch.setattr(trainer, "most_that_fit", lambda *_, **__: next(numbers))
    monkeypatch.setattr(trainer, "with_workers", lambda job, workers: job)
    growing = Growing(0, 1, 2)
    monkeypatch.setattr(trainer, "Growth", growing)
    stopped = SimpleNamespace(state="preempted")
    done = SimpleNamespace(state="done")
    bug = RuntimeError("a worker died")
    # The first two fail, one of them after a commit; only the third is stopped for others.
    attempts = Attempts((bug, 0), (bug, 0), (stopped, 1), (bug, 0), (bug, 0), (done, 1))
    seen: list[bool] = []
    attempts.meanwhile = lambda: seen.append((tmp_path / "stop-requested").exists())
    # Two failures, a commit, and two more are not three without a commit between them.
    assert fit(attempts) is done
    # Nobody's wish is left for those who come after.
    assert seen == [True, True, True, False, False, False]
    # Twice there was no room after all.
    assert growing.vain == [0, 1, 2, 0, 0, 0]


def test_workers_that_have_not_begun_are_told_from_those_that_have(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.note("attempt", "{}", step=0)
    stop = StopWish(tmp_path)
    stop.begin_attempt(for_others=False)
    assert stop.is_before_training()
    log.note("attempt", "{}", step=0)
    assert not stop.is_before_training()
    # Half a line is what a kill leaves of one; whoever goes on with the log cuts it off.
    with log.path.open("a") as file:
        file.write('{"seq":')
    stop.begin_attempt(for_others=False)
    assert stop.is_before_training()
    log.close()
    log = EventLog(log.path)
    log.note("attempt", "{}", step=0)
    assert not stop.is_before_training()
    # Somebody has cut the log; what is measured from then on says it as well.
    os.truncate(log.path, 0)
    log.metrics({"train/loss": 1.0}, step=1)
    assert not stop.is_before_training()
    log.close()


# Progress
