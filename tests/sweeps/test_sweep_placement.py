"""Trials x workers x nodes on fake clusters: everything ends, or is refused, and nothing hangs.

What runs here reports nothing to Tune, as a trial does that fails before its first evaluation. In
place of training, each trial takes what training takes, in the order that could lock up: first
its workers, all of them at once and held to the end, and then, with the workers waiting, a CPU of
the cluster that reads data.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.util.placement_group import placement_group, remove_placement_group

from orchestrator.errors import ConfigError
from orchestrator.sweeps.capacity import agreed, capacity
from orchestrator.sweeps.fleet import Fleet

pytestmark = pytest.mark.ray

#: Of every node.
CPUS = 2
#: After which trials have locked up, and for a cluster of nodes to come up. Both for a machine that
#: others use as well: what is tested is that everything ends.
SECONDS, NODES_SECONDS = 180, 120
#: At a time, by hand: a worker and a reader take 2 CPUs, two workers and a reader 3.
FIT = {(1, 1): 1, (1, 2): 0, (2, 1): 2, (2, 2): 1, (4, 1): 4, (4, 2): 2}


def read() -> None:
    """Takes the place of a task of Ray Data."""
    time.sleep(0.1)


@dataclass(frozen=True)
class StandIn:
    """Takes the place of :class:`~orchestrator.sweeps.runner.Runner`."""

    planner: Any
    workers: int
    judged_epochs: tuple[int, ...] = ()

    def run(self, config: Mapping[str, Any]) -> None:
        group = placement_group([{"CPU": 1.0}] * self.workers)
        ray.get(group.ready())
        began = time.time()
        task = ray.remote(num_cpus=1.0, scheduling_strategy="SPREAD")(read)
        ray.get(task.remote())
        remove_placement_group(group)
        run_dir = self.planner.folder / f"trial-{config['trial']:03d}"
        run_dir.mkdir(parents=True)
        held = [began, time.time()]
        (run_dir / "result.json").write_text(json.dumps({"state": "done", "held": held}))


class Numbered:
    """A source of so many trials, which keeps their ends."""

    def __init__(self, count: int, then: Exception | None = None) -> None:
        self.then = then
        self.waiting = list(range(count))
        self.ends: list[dict[str, Any]] = []

    def next(self) -> Any:
        if not self.waiting and self.then is not None:
            raise self.then
        if not self.waiting:
            return None
        number = self.waiting.pop(0)
        return SimpleNamespace(number=number, name=f"trial-{number:03d}", values={})

    def ended(self, trial: Any, end: dict[str, Any]) -> None:
        self.ends.append(end)


@pytest.fixture(
    scope="module",
    params=[1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)],
    ids=lambda nodes: f"{nodes}-nodes",
)
def nodes(request: pytest.FixtureRequest) -> Iterator[int]:
    """A cluster of so many nodes, which this process has joined."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Of a machine that others use as well, whose memory is none of this test's business.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_gcs_server_port_wait_time_s", str(NODES_SECONDS))
        size = {"num_cpus": CPUS, "include_dashboard": False, "wait": False}
        cluster = Cluster(initialize_head=True, head_node_args=size)
        try:
            for _ in range(request.param - 1):
                cluster.add_node(num_cpus=CPUS, wait=False)
            cluster.wait_for_nodes(timeout=NODES_SECONDS)
            # Other processes do not find the folder of this file.
            cloudpickle.register_pickle_by_value(sys.modules[__name__])
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            # The first processes of a node take seconds of imports; they are not what is tested.
            first = request.getfixturevalue("tmp_path_factory").mktemp("first")
            run_trials(first, 2 * request.param, 1, FIT[request.param, 1])
            yield request.param
        finally:
            ray.shutdown()
            cluster.shutdown()


def run_trials(folder: Path, trials: int, workers: int, at_a_time: int) -> list[dict[str, Any]]:
    """How they ended, once all of them have.

    Raises:
        TimeoutError: they have not.
    """
    source = Numbered(trials)
    runner: Any = StandIn(SimpleNamespace(folder=folder), workers)
    fleet = Fleet(runner, source, None)
    thread = threading.Thread(
        target=fleet.run, kwargs={"trials": trials, "concurrency": at_a_time}, daemon=True
    )
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"{len(source.ends)} of {trials} trials have ended after {SECONDS} s")
    return source.ends


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("trials", [1, 2, 4, 8])
def test_every_combination_ends_or_is_refused(
    nodes: int, trials: int, workers: int, tmp_path: Path
) -> None:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = capacity(resources, {"CPU": 1.0}, workers)
    assert found.trials == FIT[nodes, workers]
    if found.trials == 0:
        with pytest.raises(ConfigError, match=r"2 workers x 1 CPU, plus 1 CPU .* has 2 CPU on 1"):
            agreed(found, None, trials)
        return
    at_a_time = agreed(found, None, trials)
    ends = run_trials(tmp_path, trials, workers, at_a_time)
    assert [end["state"] for end in ends] == ["done"] * trials
    held = [end["result"]["held"] for end in ends]
    overlap = max(sum(one <= began < over for one, over in held) for began, _ in held)
    assert overlap <= at_a_time


def test_trials_that_never_report_end_all_the_same(nodes: int, tmp_path: Path) -> None:
    ends = run_trials(tmp_path, trials=2, workers=1, at_a_time=1)
    assert [end["state"] for end in ends] == ["done"] * 2


def test_a_suggestion_that_fails_leaves_running_trials_alone(nodes: int, tmp_path: Path) -> None:
    source = Numbered(1, then=ConfigError("nothing left to try"))
    runner: Any = StandIn(SimpleNamespace(folder=tmp_path), 1)
    fleet = Fleet(runner, source, None)
    with pytest.raises(ConfigError, match="nothing left to try"):
        fleet.run(trials=3, concurrency=2)
    assert [end["state"] for end in source.ends] == ["done"]
