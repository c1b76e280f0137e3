"""A run whose number of workers follows the nodes of its cluster ends in the same bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.tracking.events import metric_history
from orchestrator.training.session import run_rank
from tests.support.chaos_cluster import Run, fake_cluster, make_folder

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

STEPS = 90
SETTINGS = ("train.batch_size=8", "train.epochs=30")
RANGE = "cluster.workers={min: 1, max: 4}"


def test_workers_come_and_go_with_the_nodes(tmp_path: Path) -> None:
    """A head with room for one worker, and a node for three that comes and goes."""
    with fake_cluster(2) as cluster:
        run = Run(make_folder(tmp_path), cluster, "grows")
        run.start(*SETTINGS, RANGE)
        run.wait_for_step(4)
        assert len(run.workers()) == 1
        cluster.add_node(3)
        run.wait(lambda: len(run.workers()) == 4)
        grown = run.step()
        run.wait_for_step(grown + 4)
        cluster.kill(cluster.nodes[0])
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
