"""A run whose number of workers follows the nodes of its cluster ends in the same bits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.tracking.events import metric_history
from orchestrator.training.session import run_rank
from tests.chaos.test_chaos_ray import EXPERIMENT, NODES_SECONDS, Run

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

STEPS = 90
SETTINGS = ("train.batch_size=8", "train.epochs=30")
RANGE = "cluster.workers={min: 1, max: 4}"


class GrowingCluster:
    """A head with room for one worker, and a node for three that comes and goes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "include_dashboard": False, "wait": False},
        )
        self.cluster.wait_for_nodes(timeout=NODES_SECONDS)


@pytest.fixture
def cluster() -> Iterator[GrowingCluster]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp,
    ):
        patch.setenv("RAY_TMPDIR", temp)
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_gcs_server_port_wait_time_s", str(NODES_SECONDS))
        made = GrowingCluster()
        try:
            yield made
        finally:
            made.cluster.shutdown()


def test_workers_come_and_go_with_the_nodes(cluster: GrowingCluster, tmp_path: Path) -> None:
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT)
    run = Run(tmp_path, cluster, "grows")  # type: ignore[arg-type]
    run.start(*SETTINGS, RANGE)
    run.wait_for_step(4)
    assert len(run.workers()) == 1
    node = cluster.cluster.add_node(num_cpus=3)
    run.wait(lambda: len(run.workers()) == 4)
    grown = run.step()
    run.wait_for_step(grown + 4)
    cluster.cluster.remove_node(node, allow_graceful=False)
    result = run.finish(0)
    assert result["steps"] == STEPS
    # There and back; once more where what an attempt had was free later than usual.
    assert len(run.resumes()) in (2, 3)
    losses = metric_history(run.log, "train/loss")
    assert [point.step for point in losses] == list(range(1, STEPS + 1))

    # As one process computes it from four parts.
    os.chdir(tmp_path)
    folder = tmp_path / "whole"
    folder.mkdir()
    experiment = load_experiment(
        "tiny.yaml", [*SETTINGS, "train.virtual_shards=4", "cluster.workers=1"]
    )
    plan = make_plan(experiment, folder, threads=1)
    done = run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
    assert result["weights_sha256"] == done.weights_sha256
