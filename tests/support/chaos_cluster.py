"""Runs through Ray whose parts are killed: on a cluster of fake nodes, or a Ray of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.cluster.heartbeat import CONTROLLER, Beat
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.tracking.events import METRICS, read_events
from orchestrator.tracking.goodput import ATTEMPT
from tests.support.experiments import experiment

#: For the cluster to start; long, for machines with other work.
NODES_SECONDS = 300
EXPERIMENT = experiment("""\
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
""")


def make_folder(folder: Path, *, train: int = 24) -> Path:
    """With the experiment and its data, ``train`` images: of six steps an epoch unless told."""
    build_digits(folder / "digits", Recipe(train=train, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder


class FakeCluster:
    """A head and nodes on this machine, one raylet each.

    Args:
        head: logical CPUs of the head.
        nodes: of each node.
    """

    def __init__(self, head: int, nodes: Sequence[int]) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": head, "include_dashboard": False, "wait": False},
        )
        self.nodes: list[Any] = []
        for cpus in nodes:
            self.add_node(cpus)
        self.cluster.wait_for_nodes(timeout=NODES_SECONDS)

    def add_node(self, cpus: int) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=cpus, wait=False))

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

    def kill(self, node: Any) -> None:
        """As a power cut would: every process of it at once."""
        for process in self.processes(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.remove(node)


@contextmanager
def fake_cluster(head: int, nodes: Sequence[int] = ()) -> Iterator[FakeCluster]:
    """A :class:`FakeCluster` in a folder of its own, for as long as the block runs."""
    # Short, because sockets lie in it; and not Ray's own, where others would find this cluster.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp,
    ):
        patch.setenv("RAY_TMPDIR", temp)
        # Of a machine that others use as well, whose memory is none of this test's business.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_gcs_server_port_wait_time_s", str(NODES_SECONDS))
        made = FakeCluster(head, nodes)
        try:
            yield made
        finally:
            made.cluster.shutdown()


class Run:
    """One run, its driver started as often as it takes.

    Args:
        folder: with ``tiny.yaml`` and its data; home of the driver.
        cluster: to join; None for a Ray of each driver's own.
        name: of the run.
    """

    def __init__(self, folder: Path, cluster: FakeCluster | None, name: str) -> None:
        self.folder, self.cluster, self.name = folder, cluster, name
        self.path = folder / "runs" / name
        self.log = self.path / "events.jsonl"
        self.output = folder / f"{name}.txt"
        self.driver: subprocess.Popen[bytes] | None = None
        self._overrides: tuple[str, ...] = ()

    def start(self, *overrides: str) -> None:
        """Start a driver, with the overrides of the last one where none are given."""
        self._overrides = overrides = overrides or self._overrides
        environment = {
            **os.environ,
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        overrides = (f"name={self.name}", *overrides)
        if self.cluster is not None:
            overrides = (f"cluster.address={self.cluster.cluster.address}", *overrides)
        with self.output.open("ab") as output:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.run", "tiny.yaml", *overrides],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def every_process(self) -> list[psutil.Process]:
        """The cluster's, or those that the driver has started."""
        if self.cluster is not None:
            return self.cluster.every_process()
        assert self.driver is not None
        return psutil.Process(self.driver.pid).children(recursive=True)

    def part(self, name: str) -> psutil.Process:
        """One of them whose program, or title, has this in its name, once there is one."""

        def found() -> psutil.Process | None:
            for process in self.every_process():
                with suppress(psutil.Error, IndexError):
                    if name in Path(process.cmdline()[0]).name:
                        return process
            return None

        process: psutil.Process = self.wait(found)
        return process

    def controller(self) -> psutil.Process:
        """Ray Train's, of the attempt that trains now."""

        def there() -> Beat | None:
            beats = [Beat.read(path) for path in self.path.glob(f"beats/*/{CONTROLLER}.json")]
            return next((b for b in beats if b is not None and b.process.is_here()), None)

        beat: Beat = self.wait(there)
        return psutil.Process(beat.process.pid)

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

    def since(self, struck: float) -> dict[str, float]:
        """Seconds from an instant to each part of the first start after it that came to a step.

        Args:
            struck: seconds since 1970.
        """
        found: dict[str, float] = {}
        for event in read_events(self.log):
            at = event.time_ms / 1000 - struck
            name = {ATTEMPT: "worker", "resume": "commit", METRICS: "step"}.get(event.kind)
            if at <= 0 or name is None or "step" in found:
                continue
            # A step may have been under way; of attempts that came to nothing the last one counts.
            if name != "step" or "commit" in found:
                found[name] = at
        return found

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


def kill_worker(run: Run, number: int) -> None:
    """One of two, in turns."""
    os.kill(run.all_workers()[number % 2].process.pid, signal.SIGKILL)


def kill_controller(run: Run, number: int) -> None:
    """Ray Train's, of the attempt that trains now."""
    run.controller().kill()


def kill_data_task(run: Run) -> None:
    """The next task that reads images.

    A run as small as this has them all before its workers begin, so there is none again until they
    are started anew.
    """
    run.part("ray::MapBatches").kill()


def kill_driver(run: Run, number: int) -> None:
    """And start it again."""
    assert run.driver is not None
    run.driver.kill()
    run.driver.wait()
    run.start()


def kill_node(run: Run, number: int) -> None:
    """That of one of two workers, in turns; another one of two CPUs takes its place."""
    assert run.cluster is not None
    node_of_a_worker = run.all_workers()[number % 2].node
    (node,) = [n for n in run.cluster.nodes if n.node_id == node_of_a_worker]
    run.cluster.kill(node)
    run.cluster.add_node(2)
