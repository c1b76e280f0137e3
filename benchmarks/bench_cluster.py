"""Start of a run on many nodes: whether it fits, preflight, and the processes that there is one of.

    python benchmarks/bench_cluster.py [--nodes 64] [--ranks 8]

Ray's nodes are processes of this machine, each with an address of its own (127.0.1.1 and so on).
The ranks are real processes of Ray Train, started by the controller that runs have, and knock at
each other's nodes as before any first step; they neither train nor read data, and are forks of one
process (`forked.py`), since so many would otherwise import for a quarter of an hour and not fit.
Printed are seconds, and of the driver, Ray's head and the controller their seconds of processor
time and megabytes: these are one process each, however many ranks there are.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig

from orchestrator.cluster.controller import WatchedTrainer
from orchestrator.cluster.network import await_reach
from orchestrator.cluster.placement import place, wait_for_room
from orchestrator.cluster.relay import Way
from orchestrator.config.schema import ClusterConfig

#: All ranks of all nodes share this machine's cores, so nothing here may be given up as too slow.
PATIENCE = 3600
SURROUNDINGS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(PATIENCE),
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(PATIENCE),
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # So many nodes tell so much of themselves that this machine would do nothing else.
    "REPORTER_UPDATE_INTERVAL_MS": str(PATIENCE * 1000),
}
SYSTEM = {
    "worker_register_timeout_seconds": PATIENCE,
    "health_check_initial_delay_ms": PATIENCE * 1000,
    "enable_worker_prestart": False,
    "enable_metrics_collection": False,
    "event_stats": False,
    "raylet_report_resources_period_milliseconds": 1000,
}
STORE_BYTES = 80_000_000
#: What a rank imports that trains nothing.
MODULES = [
    "ray.train",
    "ray.train.v2._internal.execution.worker_group",
    "orchestrator.cluster.network",
]


def used(process: int) -> dict[str, float]:
    """Seconds of processor time of a process, and its megabytes, in memory or swapped out.

    Of pages that forks share each has its part; files do not count.
    """
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    seconds = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return {"cpu": seconds, "mb": (kib["Pss_Anon"] + kib["SwapPss"]) / 1024}


@contextmanager
def forking(scratch: str) -> Iterator[None]:
    """Have Ray's nodes that start here fork their workers."""
    path = f"{scratch}/forked"
    os.environ[forked.SOCKET] = path
    server = forked.start(path, MODULES)
    try:
        while not Path(path).exists():
            assert server.poll() is None, "the process that is to be forked did not start"
            time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def note(log: str, **what: Any) -> None:
    """Append a line to the log that all processes share."""
    with Path(log).open("a") as file:
        file.write(json.dumps({"time": time.time(), **what}) + "\n")


@dataclass
class KnockConfig(BackendConfig):  # type: ignore[misc]  # Ray is not typed
    """Workers that reach each other, and are no process group.

    Attributes:
        log: of :func:`note`.
    """

    log: str

    @property
    def backend_cls(self) -> type[Knock]:
        """Who has them knock."""
        return Knock


class Knock(Backend):  # type: ignore[misc]
    """The preflight of a run, and nothing else of its process group."""

    def on_start(self, worker_group: Any, backend_config: KnockConfig) -> None:
        """All workers are there."""
        began = time.perf_counter()
        await_reach(worker_group, PATIENCE)
        seconds = time.perf_counter() - began
        note(backend_config.log, what="preflight", seconds=seconds, ranks=len(worker_group))

    def on_shutdown(self, worker_group: Any, backend_config: KnockConfig) -> None:
        """All of them are done."""
        note(backend_config.log, what="controller", **used(os.getpid()))


def rank(given: dict[str, Any]) -> int:
    """What runs in every worker."""
    note(given["log"], what="rank", **used(os.getpid()))
    return 0


def main() -> None:
    """Start nodes and ranks, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2, help="of each node")
    options = parser.parse_args()
    nodes, workers = options.nodes, options.nodes * options.ranks
    with (
        tempfile.TemporaryDirectory(prefix="c-", ignore_cleanup_errors=True) as scratch,
        forking(scratch),
    ):
        os.environ |= {**SURROUNDINGS, "RAY_TMPDIR": scratch}
        log = f"{scratch}/log.jsonl"
        began = time.perf_counter()
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_system_config": SYSTEM,
            },
        )
        (server,) = cluster.head_node.all_processes["gcs_server"]
        head = server.process.pid
        for number in range(nodes):
            cluster.add_node(
                wait=False,
                num_cpus=options.ranks + 1,  # One is for reading data.
                object_store_memory=STORE_BYTES,
                node_ip_address=f"127.0.{1 + number // 250}.{1 + number % 250}",
                setup_worker_path=forked.__file__,
                worker_path=forked.__file__,
            )
        cluster.wait_for_nodes(timeout=PATIENCE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        print(f"{nodes} nodes alive after {time.perf_counter() - began:.1f} s", flush=True)

        before, head_before = used(os.getpid()), used(head)
        began = time.perf_counter()
        config = ClusterConfig(workers=workers, threads_per_worker=1, accelerator="cpu")
        placement = place(config)
        wait_for_room(workers, placement, print)
        print(f"{workers} ranks fit, which took {time.perf_counter() - began:.3f} s", flush=True)

        began, at = time.perf_counter(), time.time()
        trainer = WatchedTrainer(
            rank,
            train_loop_config={"log": log},
            beats=Path(scratch) / "beats",
            timeout=None,
            way=Way(Path(scratch), ""),
            variables={},
            backend_config=KnockConfig(log),
            scaling_config=ScalingConfig(
                num_workers=workers,
                resources_per_worker=placement.resources_per_worker,
                placement_strategy=placement.strategy,
            ),
            run_config=RunConfig(name="ranks", storage_path=f"{scratch}/results"),
        )
        trainer.fit()
        over = time.perf_counter() - began
        after, head_after = used(os.getpid()), used(head)
        lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
        ranks = [line for line in lines if line["what"] == "rank"]
        assert len(ranks) == workers, (len(ranks), workers)
        preflight = next(line for line in lines if line["what"] == "preflight")
        controller = next(line for line in lines if line["what"] == "controller")
        knocked = preflight["time"] - at
        print(f"all ranks there after {knocked - preflight['seconds']:.1f} s")
        print(f"preflight of {nodes * (nodes - 1)} connections in {preflight['seconds']:.1f} s")
        print(f"training functions begun after {max(r['time'] for r in ranks) - at:.1f} s")
        print(f"over, and all processes ended, after {over:.1f} s")
        each = sum(r["mb"] for r in ranks) / workers
        spent = sum(r["cpu"] for r in ranks) / workers
        print(f"a rank: {spent:.1f} s of CPU, {each:.0f} MB")
        print("\n| process | CPU, s | before, MB | after, MB |\n|---|---|---|---|")
        for name, first, last in (("driver", before, after), ("head", head_before, head_after)):
            cpu = last["cpu"] - first["cpu"]
            print(f"| {name} | {cpu:.1f} | {first['mb']:.0f} | {last['mb']:.0f} |")
        print(f"| controller | {controller['cpu']:.1f} | | {controller['mb']:.0f} |")
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
