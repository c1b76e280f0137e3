"""Through Ray: workers, data tasks, drivers and whole nodes are killed, stopped and terminated.

The user's command runs as a process on a cluster of fake nodes, one raylet each on this machine. A
node is killed as a power cut would: every process of it at once.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.chaos_cluster import (
    FakeCluster,
    Run,
    fake_cluster,
    kill_data_task,
    kill_driver,
    kill_node,
    kill_worker,
    make_folder,
)

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

#: Of four kills each: a worker, a data task of the start that follows, the driver and a node.
ROUNDS = int(os.environ.get("RAY_KILL_ROUNDS", "5"))
#: Of a kill of each process of a Ray that the run has started for itself.
OWN_ROUNDS = int(os.environ.get("OWN_KILL_ROUNDS", "2"))
#: Of a stop of each process that is watched.
STOP_ROUNDS = int(os.environ.get("STOP_ROUNDS", "2"))
#: From a kill to the next finished step.
RESTART_SECONDS = 45.0
STEPS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    """With room for the two workers; a killed node is replaced."""
    with fake_cluster(1, [2, 2]) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def _ray_folder() -> Iterator[None]:
    """Where a Ray of a run's own leaves its files, in a path that is short enough for sockets."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp,
    ):
        patch.setenv("RAY_TMPDIR", temp)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("chaos-ray"))


@pytest.fixture(scope="module")
def unbroken(folder: Path) -> Callable[[int], dict[str, Any]]:
    """Result of a run that nothing happens to, of so many times :data:`STEPS`."""

    @cache
    def of(times: int) -> dict[str, Any]:
        run = Run(folder, None, f"unbroken-{times}")
        run.start(f"train.epochs={10 * times}")
        result = run.finish(0)
        assert (result["state"], result["steps"]) == ("done", times * STEPS)
        return result

    return of


@pytest.fixture(scope="module")
def expected(unbroken: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """Result of an unbroken run."""
    return unbroken(1)


def test_kills_of_everything(
    folder: Path, cluster: FakeCluster, expected: dict[str, Any], record_property: Any
) -> None:
    run = Run(folder, cluster, "killed")
    run.start()
    strikes = [kill_worker, kill_driver, kill_node] * ROUNDS
    redone: list[int] = []
    seconds: list[float] = []
    for number, strike in enumerate(strikes):
        # From step 2 on there is a commit to go on from.
        run.wait_for_step(2 + number * (STEPS - 5) // len(strikes))
        starts = len(run.resumes())
        strike(run, number)
        struck, at = time.monotonic(), run.step()
        if strike is kill_worker:
            # Ray makes the lost batches again, and training never knows.
            kill_data_task(run)
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
        begun = run.resumes()[-1]
        redone.append(at - begun)
        run.wait(run.goes_on)
        seconds.append(time.monotonic() - struck)
        assert len(run.resumes()) == starts + 1
    result = run.finish(0)
    print(f"steps redone {redone}; seconds from kill to step {[round(s) for s in seconds]}")
    record_property("redone", redone)
    record_property("seconds", seconds)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]
    assert max(redone) <= 1
    assert max(seconds) <= RESTART_SECONDS
    left = {path.name for path in run.path.iterdir()}
    assert {"beats", "ray"}.isdisjoint(left)


@pytest.mark.parametrize("part", ["worker", "controller", "raylet", "gcs_server", "driver"])
def test_kills_on_a_ray_of_its_own(
    part: str, folder: Path, unbroken: Callable[[int], dict[str, Any]]
) -> None:
    expected = unbroken(OWN_ROUNDS)
    run = Run(folder, None, f"own-{part}")
    run.start(f"train.epochs={10 * OWN_ROUNDS}")
    family: list[psutil.Process] = []
    for number in range(OWN_ROUNDS):
        # Workers go on for seconds when their head is lost.
        run.wait_for_step(4 + number * STEPS)
        assert run.driver is not None
        family += run.every_process()
        starts = len(run.resumes())
        struck, at = time.time(), run.step()
        if part == "worker":
            kill_worker(run, number)
        elif part == "controller":
            run.controller().kill()
        else:
            own = psutil.Process(run.driver.pid) if part == "driver" else run.part(part)
            own.kill()
            assert run.driver.wait(120) == (-signal.SIGKILL if part == "driver" else 75)
            print(f"{part}: driver gone after {time.time() - struck:.1f} s")
            run.start()
        if part == "worker":
            kill_data_task(run)
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
        run.wait(run.goes_on)
        parts = ", ".join(f"{name} {at:.1f}" for name, at in run.since(struck).items())
        print(f"{part}: seconds from the kill to {parts}")
        assert at - run.resumes()[-1] <= 1
        assert len(run.resumes()) == starts + 1
    result = run.finish(0)
    # Whatever was started for a driver ends with it; agents of Ray's that outlive a killed one
    # look for their head for up to a minute.
    _, alive = psutil.wait_procs(family, timeout=120)
    assert alive == []
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]


@pytest.mark.parametrize("whom", ["driver", "worker"])
def test_sigterm_commits_and_exits_with_75(
    whom: str, folder: Path, cluster: FakeCluster, expected: dict[str, Any]
) -> None:
    run = Run(folder, cluster, f"terminated-{whom}")
    run.start()
    run.wait_for_step(5)
    assert run.driver is not None
    pid = run.driver.pid if whom == "driver" else run.all_workers()[1].process.pid
    os.kill(pid, signal.SIGTERM)
    stopped = run.finish(75)
    assert stopped["state"] == "preempted"
    assert run.step() == stopped["steps"]
    run.start()
    result = run.finish(0)
    assert result["resumed_from"] == stopped["steps"]
    assert result["weights_sha256"] == expected["weights_sha256"]


def test_a_stopped_worker_is_noticed_and_replaced(
    folder: Path, cluster: FakeCluster, expected: dict[str, Any], record_property: Any
) -> None:
    run = Run(folder, cluster, "stopped")
    run.start()
    noticed: list[float] = []
    for number in range(STOP_ROUNDS):
        run.wait_for_step(5 + number * (STEPS - 10) // STOP_ROUNDS)
        starts = len(run.resumes())
        process = psutil.Process(run.all_workers()[number % 2].process.pid)
        process.suspend()
        began = time.monotonic()
        run.wait(lambda p=process: not p.is_running() or p.status() == psutil.STATUS_ZOMBIE, 60)
        noticed.append(time.monotonic() - began)
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
    result = run.finish(0)
    record_property("noticed", noticed)
    print(f"noticed after {[round(each, 1) for each in noticed]} s")
    assert max(noticed) <= 30.0
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert run.output.read_text().count("gave no sign of life") >= STOP_ROUNDS


def kill(process: psutil.Process) -> None:
    process.kill()


def suspend(process: psutil.Process) -> None:
    process.suspend()


@pytest.mark.parametrize("strike", [kill, suspend])
def test_a_controller_that_is_gone_or_stopped_is_replaced(
    strike: Callable[[psutil.Process], None],
    folder: Path,
    cluster: FakeCluster,
    unbroken: Callable[[int], dict[str, Any]],
) -> None:
    """What it had reserved is free again: the next attempt needs all of the cluster."""
    expected = unbroken(STOP_ROUNDS)
    run = Run(folder, cluster, f"controller-{strike.__name__}")
    run.start("cluster.hang_timeout=10", f"train.epochs={10 * STOP_ROUNDS}")
    for number in range(STOP_ROUNDS):
        # Workers go on while their controller is stopped.
        run.wait_for_step(5 + number * STEPS)
        starts = len(run.resumes())
        strike(run.controller())
        struck = time.monotonic()
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
        run.wait(run.goes_on)
        print(f"{strike.__name__}: {time.monotonic() - struck:.0f} s to the next step")
    result = run.finish(0)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert result["metrics"] == expected["metrics"]


def test_a_data_task_that_is_stopped_is_noticed(
    folder: Path, cluster: FakeCluster, expected: dict[str, Any]
) -> None:
    run = Run(folder, cluster, "data-stopped")
    run.start("cluster.hang_timeout=10")
    for number in range(STOP_ROUNDS):
        if number:
            # Only a start has data tasks: see `kill_data_task`.
            run.wait_for_step(number * (STEPS - 10) // STOP_ROUNDS)
            kill_worker(run, number)
        told = run.output.read_text().count("got no further")
        stopped = run.part("ray::MapBatches")
        stopped.suspend()
        struck = time.monotonic()
        run.wait(lambda told=told: run.output.read_text().count("got no further") > told)
        print(f"data task: noticed after {time.monotonic() - struck:.0f} s")
        # The next attempt does without it.
        run.wait_for_step(run.step() + 1)
        with suppress(psutil.NoSuchProcess):
            stopped.kill()
    result = run.finish(0)
    assert result["weights_sha256"] == expected["weights_sha256"]
