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
from tests.support.waiting import wait_for

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
    monkeypatch.setattr(elastic, "alive_nodes", lambda: list(free))
    monkeypatch.setattr(elastic, "reserved_by_workers", dict)
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
        nodes.append(node("a", 5.0))
        wait_for(lambda: growth.asked)
        time.sleep(0.1)
    assert asked == [1]


@pytest.mark.parametrize(
    ("strategy", "other", "room"),
    [
        # Two on a node with two more cores free: four fit on it, and on no other.
        ("STRICT_PACK", 0.0, True),
        ("STRICT_SPREAD", 8.0, False),
        ("PACK", 0.0, True),
    ],
)
def test_room_is_that_of_all_the_workers_and_not_of_the_further_ones(
    strategy, other, room, nodes, monkeypatch
):
    nodes[:] = [node("a", 2.5), node("b", other)]
    whole = [node("a", 5.0), node("b", other)]
    monkeypatch.setattr(elastic, "alive_nodes", lambda: whole)
    # The data tasks of the two hold half a core.
    monkeypatch.setattr(elastic, "reserved_by_workers", lambda: {"a": {"CPU": 2.0}})
    placement = replace(PLACEMENT, strategy=strategy)
    assert elastic.Growth([1, 2, 4], 2, placement, lambda: None)._has_room() is room


def test_no_room_for_reading_is_no_room(nodes, monkeypatch):
    """Otherwise the workers would start again and again, to find that no more fit."""
    nodes[:] = [node("a", 2.0)]
    monkeypatch.setattr(elastic, "alive_nodes", lambda: [node("a", 4.0)])
    monkeypatch.setattr(elastic, "reserved_by_workers", lambda: {"a": {"CPU": 2.0}})
    assert not elastic.Growth([1, 2, 4], 2, PLACEMENT, lambda: None)._has_room()


def test_a_head_that_does_not_answer_does_not_end_the_search(nodes, monkeypatch):
    def gone():
        raise ValueError("whatever Ray says")

    monkeypatch.setattr(elastic, "reserved_by_workers", gone)
    asked = []
    growth = elastic.Growth([1, 2], 1, PLACEMENT, lambda: asked.append(1))
    nodes.append(node("a", 8.0))
    with growth.watching():
        time.sleep(0.1)
        monkeypatch.setattr(elastic, "reserved_by_workers", dict)
        wait_for(lambda: growth.asked)
    assert asked == [1]


def test_a_node_that_lacks_the_data_ends_no_attempt(nodes, caplog):
    """Workers that train go on; the attempt that took over would be refused."""
    trouble = [ConfigError("data.train.images: /data cannot be read on b")]

    def look():
        if trouble:
            raise trouble.pop()

    asked = []
    growth = elastic.Growth([1, 2], 1, PLACEMENT, lambda: asked.append(len(trouble)), look=look)
    nodes.append(node("b", 8.0))
    with growth.watching():
        wait_for(lambda: growth.asked)
    assert asked == [0]
    assert "none are taken: data.train.images: /data cannot be read on b" in caplog.text


def test_what_was_asked_for_in_vain_is_asked_for_later(nodes, monkeypatch):
    looks = []
    monkeypatch.setattr(elastic, "alive_nodes", lambda: looks.append(1) or list(nodes))
    nodes.append(node("a", 8.0))
    growth = elastic.Growth([1, 2], 1, PLACEMENT, lambda: None, vain=3)
    with growth.watching():
        wait_for(lambda: growth.asked)
    assert len(looks) == 16


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
