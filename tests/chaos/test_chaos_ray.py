"""Through Ray: workers, data tasks, drivers and whole nodes are killed, stopped and terminated.

The user's command runs as a process on a cluster of fake nodes, one raylet each on this machine. A
node is killed as a power cut would: every process of it at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cluster.heartbeat import CONTROLLER, Beat
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.tracking.events import METRICS, read_events

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

#: Of four kills each: a worker, a data task of the start that follows, the driver and a node.
ROUNDS = int(os.environ.get("RAY_KILL_ROUNDS", "5"))
#: For the cluster to start; long, for machines with other work.
NODES_SECONDS = 300
#: From a kill to the next finished step.
RESTART_SECONDS = 45.0
STEPS = 60
EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: digits
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 10
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  ema: {decay: 0.9, warmup_steps: 4}
  evaluate_every_epochs: 10
  checkpoint: {every_steps: 1, keep_last: 3}
  log_every_steps: 1
cluster: {workers: 2, accelerator: cpu, threads_per_worker: 1}
tracking: {mlflow: null}
"""


class FakeCluster:
    """A head and two nodes with room for the workers; a killed node is replaced."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "wait": False},
        )
        self.nodes: list[Any] = []
        for _ in range(2):
            self.add_node()
        self.cluster.wait_for_nodes(timeout=NODES_SECONDS)

    def add_node(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=2, wait=False))

    @staticmethod
    def processes(node: Any) -> list[psutil.Process]:
        """A node's own processes and everything they have started."""
        found: dict[int, psutil.Process] = {}
        for infos in node.all_processes.values():
            for info in infos:
                if psutil.pid_exists(info.process.pid):
                    process = psutil.Process(info.process.pid)
                    for each in (process, *process.children(recursive=True)):
                        found[each.pid] = each
        return list(found.values())

    def every_process(self) -> list[psutil.Process]:
        nodes = [self.cluster.head_node, *self.nodes]
        return [process for node in nodes for process in self.processes(node)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    # Short, because sockets lie in it; and not Ray's own, where others would find this cluster.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp,
    ):
        patch.setenv("RAY_TMPDIR", temp)
        # Of a machine that others use as well, whose memory is none of this test's business.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_gcs_server_port_wait_time_s", str(NODES_SECONDS))
        made = FakeCluster()
        try:
            yield made
        finally:
            made.cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chaos-ray")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder


class Run:
    """One run, its driver started as often as it takes."""

    def __init__(self, folder: Path, cluster: FakeCluster, name: str) -> None:
        self.folder, self.cluster, self.name = folder, cluster, name
        self.path = folder / "runs" / name
        self.log = self.path / "events.jsonl"
        self.output = folder / f"{name}.txt"
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, *overrides: str) -> None:
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        address = self.cluster.cluster.address
        overrides = (f"cluster.address={address}", f"name={self.name}", *overrides)
        with self.output.open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.run", "tiny.yaml", *overrides],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(self, code: int) -> dict[str, Any]:
        assert self.driver is not None
        assert self.driver.wait(600) == code, self.output.read_text()[-3000:]
        tree: dict[str, Any] = json.loads((self.path / "result.json").read_text())
        return tree

    def step(self) -> int:
        """Newest step that the log speaks of."""
        return max((event.step for event in read_events(self.log)), default=0)

    def wait(self, condition: Callable[[], Any], seconds: float = 300.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.output.read_text()[-3000:]
            assert self.driver is None or self.driver.poll() is None, self.output.read_text()
            time.sleep(0.05)
        return found

    def wait_for_step(self, step: int) -> None:
        self.wait(lambda: self.step() >= step)

    def goes_on(self) -> bool:
        """Whether a step has been logged since the newest start; none is logged a second time."""
        kinds = [event.kind for event in read_events(self.log)]
        return METRICS in kinds[len(kinds) - kinds[::-1].index("resume") :]

    def workers(self) -> dict[int, Beat]:
        """Signs of life of the present attempt's workers, by rank."""
        beats = {p: Beat.read(p) for p in self.path.glob("beats/*/rank*.json")}
        return {
            int(path.stem.removeprefix("rank")): beat
            for path, beat in beats.items()
            if beat is not None and beat.process.is_here()
        }

    def all_workers(self) -> dict[int, Beat]:
        """The same, once both are there."""

        def both() -> dict[int, Beat]:
            found = self.workers()
            return found if len(found) == 2 else {}

        found: dict[int, Beat] = self.wait(both)
        return found

    def resumes(self) -> list[int]:
        """Steps that starts of training began at, the first one left out."""
        return [event.step for event in read_events(self.log) if event.kind == "resume"]


@pytest.fixture(scope="module")
def expected(folder: Path, cluster: FakeCluster) -> dict[str, Any]:
    """Result of an unbroken run."""
    run = Run(folder, cluster, "unbroken")
    run.start()
    result = run.finish(0)
    assert (result["state"], result["steps"]) == ("done", STEPS)
    return result


def kill_worker(run: Run, number: int) -> None:
    os.kill(run.all_workers()[number % 2].process.pid, signal.SIGKILL)


def kill_data_task(run: Run) -> None:
    """The next task that reads images: a run as small as this has them all after a second."""

    def reads(process: psutil.Process) -> bool:
        try:
            return "ray::MapBatches" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    def kill_one() -> bool:
        for process in run.cluster.every_process():
            if reads(process):
                process.kill()
                return True
        return False

    run.wait(kill_one)


def kill_driver(run: Run, number: int) -> None:
    assert run.driver is not None
    run.driver.kill()
    run.driver.wait()
    run.start()


def kill_node(run: Run, number: int) -> None:
    node_of_a_worker = run.all_workers()[number % 2].node
    (node,) = [n for n in run.cluster.nodes if n.node_id == node_of_a_worker]
    for process in run.cluster.processes(node):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    run.cluster.nodes.remove(node)
    run.cluster.add_node()


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
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
        begun = run.resumes()[-1]
        redone.append(at - begun)
        if strike is kill_worker:
            # Ray makes the lost batches again, and training never knows.
            kill_data_task(run)
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
    run.wait_for_step(5)
    process = psutil.Process(run.all_workers()[1].process.pid)
    process.suspend()
    began = time.monotonic()
    run.wait(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60)
    noticed = time.monotonic() - began
    record_property("noticed", noticed)
    print(f"noticed after {noticed:.1f} s")
    assert noticed <= 30.0
    result = run.finish(0)
    assert result["weights_sha256"] == expected["weights_sha256"]
    assert "gave no sign of life" in run.output.read_text()


def controller(run: Run) -> psutil.Process:
    """Ray Train's, of the attempt that trains now."""

    def there() -> Beat | None:
        beats = [Beat.read(path) for path in run.path.glob(f"beats/*/{CONTROLLER}.json")]
        return next((beat for beat in beats if beat is not None and beat.process.is_here()), None)

    beat: Beat = run.wait(there)
    return psutil.Process(beat.process.pid)


def kill(process: psutil.Process) -> None:
    process.kill()


def suspend(process: psutil.Process) -> None:
    process.suspend()


@pytest.mark.parametrize("strike", [kill, suspend])
def test_a_controller_that_is_gone_or_stopped_is_replaced(
    strike: Callable[[psutil.Process], None],
    folder: Path,
    cluster: FakeCluster,
    expected: dict[str, Any],
) -> None:
    """What it had reserved is free again: the next attempt needs all of the cluster."""
    run = Run(folder, cluster, f"controller-{strike.__name__}")
    run.start("cluster.hang_timeout=10")
    for at in (5, 20):
        run.wait_for_step(at)
        starts = len(run.resumes())
        strike(controller(run))
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
    stopped: list[psutil.Process] = []

    def stop_one() -> bool:
        for process in run.cluster.every_process():
            with suppress(psutil.Error):
                if "ray::MapBatches" in " ".join(process.cmdline()):
                    process.suspend()
                    stopped.append(process)
        return bool(stopped) and bool(run.workers())

    run.wait(stop_one)
    run.wait(lambda: "got no further" in run.output.read_text(), 300)
    result = run.finish(0)
    assert result["weights_sha256"] == expected["weights_sha256"]
    for process in stopped:
        with suppress(psutil.Error):
            process.kill()
