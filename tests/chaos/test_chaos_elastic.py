"""A run whose number of workers follows the nodes of its cluster ends in the same bits."""

from __future__ import annotations

import os
import signal
from itertools import cycle, islice
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

#: How often a node comes or goes.
CHANGES = int(os.environ.get("ELASTIC_CHANGES", "6"))
#: CPUs of the node that comes, or 0 where the newest one goes; and workers from there on. The head
#: has room for one and for reading data.
ROUND = ((1, 2), (2, 4), (0, 2), (0, 1), (3, 4), (0, 1))
#: More epochs than there is time for: the schedule does not depend on when the run is stopped.
SETTINGS = ("train.batch_size=8", "train.epochs=10000", "train.evaluate_every_epochs=10000")
RANGE = "cluster.workers={min: 1, max: 4}"


def test_workers_come_and_go_with_the_nodes(tmp_path: Path) -> None:
    with fake_cluster(2) as cluster:
        run = Run(make_folder(tmp_path), cluster, "grows")
        run.start(*SETTINGS, RANGE)
        run.wait(lambda: len(run.workers()) == 1)
        for cpus, workers in islice(cycle(ROUND), CHANGES):
            run.wait_for_step(run.step() + 4)
            starts = len(run.resumes())
            if cpus:
                cluster.add_node(cpus)
            else:
                cluster.kill(cluster.nodes[-1])
            # Those that are left of a lost node may be as many as there will be.
            run.wait(lambda starts=starts: len(run.resumes()) > starts)
            run.wait(lambda workers=workers: len(run.workers()) == workers)
        run.wait_for_step(run.step() + 4)
        assert run.driver is not None
        run.driver.send_signal(signal.SIGTERM)
        result = run.finish(75)
    steps = result["steps"]
    print(f"{CHANGES} changes, {len(run.resumes())} restarts, {steps} steps")
    # Once more for a change where what an attempt had was free later than usual.
    assert CHANGES <= len(run.resumes()) <= 2 * CHANGES
    losses = metric_history(run.log, "train/loss")
    assert [point.step for point in losses] == list(range(1, steps + 1))

    # As one process computes it from four parts.
    os.chdir(tmp_path)
    folder = tmp_path / "whole"
    folder.mkdir()
    words = (*SETTINGS, "train.virtual_shards=4", "cluster.workers=1", f"train.max_steps={steps}")
    plan = make_plan(load_experiment("tiny.yaml", list(words)), folder, threads=1)
    done = run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
    assert result["weights_sha256"] == done.weights_sha256
