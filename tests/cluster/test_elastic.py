"""How many workers a run takes, by the parts of its batches and the room there is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.cluster import elastic
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.placement import Placement
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.training.shards import Shards
from tests.support.chaos_run import small_plan

PLACEMENT = Placement(Accelerator("cpu"), {"CPU": 1.0}, 1)


def job(tmp_path: Path, digits: Path, workers: str, shards: int | None):
    plan = small_plan(tmp_path / "run", digits, f"cluster.workers={workers}")
    return replace(plan.job, shards=Shards(shards, shards or 1))


@pytest.mark.parametrize(
    ("workers", "shards", "numbers"),
    [
        ("2", None, [2]),
        ("{min: 1, max: 4}", 4, [1, 2, 4]),
        ("{min: 2, max: 4}", 4, [2, 4]),
        # The run began when its file said two.
        ("{min: 1, max: 4}", 2, [1, 2]),
        ("{min: 1, max: 4}", None, [1]),
    ],
)
def test_numbers_divide_the_parts(tmp_path, digits, workers, shards, numbers):
    assert elastic.numbers_of_workers(job(tmp_path, digits, workers, shards)) == numbers


def test_a_range_without_such_a_number_is_refused(tmp_path, digits):
    with pytest.raises(ConfigError, match="is 3 to 4, and the run computes each batch in 2 parts"):
        elastic.numbers_of_workers(job(tmp_path, digits, "{min: 3, max: 4}", 2))


def test_an_attempt_has_a_number(tmp_path, digits):
    given = job(tmp_path, digits, "{min: 1, max: 4}", 4)
    cluster = elastic.with_workers(given, 2).experiment.cluster
    assert (cluster.workers, cluster.min_workers) == (2, None)
    assert given.experiment.cluster.workers == 4


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """What is free, to be changed by the test."""
    free: list[Node] = []
    monkeypatch.setattr(elastic, "free_nodes", lambda: list(free))
    monkeypatch.setattr(elastic, "_LOOK_SECONDS", 0.01)
    return free


def node(name: str, cpus: float) -> Node:
    return Node(name, name, name, {"CPU": cpus})


def test_the_most_that_fit_are_taken(nodes):
    # One core stays free for reading data.
    nodes.append(node("a", 2.0))
    assert elastic.most_that_fit([1, 2, 4], PLACEMENT) == 1
    nodes.append(node("b", 2.0))
    assert elastic.most_that_fit([1, 2, 4], PLACEMENT) == 2
    nodes.append(node("c", 1.0))
    assert elastic.most_that_fit([1, 2, 4], PLACEMENT) == 4
    # By node, and not by sums.
    nodes[:] = [node(str(n), 1.9) for n in range(3)]
    assert elastic.most_that_fit([1, 2, 4], PLACEMENT) == 2


def test_room_that_stays_is_asked_for_once(nodes):
    asked = []
    growth = elastic.Growth([1, 2, 4], 2, PLACEMENT, lambda: asked.append(1))
    with growth.watching():
        time.sleep(0.1)
        assert not growth.asked
        nodes.append(node("a", 3.0))
        deadline = time.monotonic() + 10
        while not growth.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    assert asked == [1]


def test_the_most_workers_look_for_no_more(nodes):
    nodes.append(node("a", 8.0))
    growth = elastic.Growth([1, 2], 2, PLACEMENT, lambda: pytest.fail("asked"))
    with growth.watching():
        time.sleep(0.1)
    assert not growth.asked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.workers={min: 3, max: 2}", "goes from 3 to 2, not upwards"),
        ("train.virtual_shards=null", "train.virtual_shards is null, with which another number"),
        ("train.sync_batch_norm=true", "train.sync_batch_norm is true, with which another number"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(tmp_path, override, message):
    file = tmp_path / "e.yaml"
    quickstart = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    file.write_text(f"extends: {quickstart}\ncluster: {{workers: {{min: 1, max: 4}}}}\n")
    assert load_experiment(file).experiment.cluster.least_workers == 1
    with pytest.raises(ConfigError, match=message):
        load_experiment(file, [override])
