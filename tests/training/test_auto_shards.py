"""Virtual shards that nobody asked for: as many as the workers that a run began with."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from orchestrator.config.resolve import digest
from orchestrator.config.scalars import Json
from orchestrator.config.schema import SGDOptimizer, TrainConfig
from orchestrator.errors import ConfigError
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, RunState, open_run
from orchestrator.runs.numerics import changes_since
from orchestrator.tracking.events import EventLog
from orchestrator.training.shards import Shards, shards_of
from tests.support.chaos_run import Chaos, digests

#: Of two epochs in batches of eight.
STEPS = 6


def run_of(folder: Path, digits: Path, world: int, *more: str) -> Chaos:
    return Chaos(folder, digits, f"cluster.workers={world}", "train.batch_size=8", *more)


def test_four_workers_then_two_then_one_then_four_are_four(tmp_path: Path, digits: Path) -> None:
    whole = run_of(tmp_path / "whole", digits, 4)
    assert whole.plan.job.experiment.train.virtual_shards == "auto"
    assert whole.run() == [0] * 4
    for number, (world, until) in enumerate(((4, 2), (2, 3), (1, 5), (4, STEPS))):
        run = run_of(tmp_path / "changing", digits, world, f"train.max_steps={until}")
        assert run.plan.job.shards.count == 4
        assert run.run() == [0] * world
        run.books.folder.rename(tmp_path / f"books-{number}")
        found = digests(run.run_dir)
    assert found == digests(whole.run_dir)
    assert sorted(found) == list(range(1, STEPS + 1))


def test_pieces_are_those_of_a_shard(tmp_path: Path, digits: Path) -> None:
    ends = []
    for world in (2, 1):
        run = run_of(tmp_path / f"{world}", digits, world, "train.accumulate=2")
        job = dataclasses.replace(run.plan.job, shards=Shards(2, 2))
        run.plan = dataclasses.replace(run.plan, job=job)
        assert run.run() == [0] * world
        ends.append(digests(run.run_dir)[STEPS])
    assert ends[0] == ends[1]


def config(**changes: object) -> TrainConfig:
    values = {"epochs": 1, "batch_size": 8, "optimizer": SGDOptimizer(lr=0.1), **changes}
    return TrainConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workers", "began", "count", "text"),
    [
        (1, None, None, "auto, 1: batches are computed whole"),
        (4, None, 4, "any number of workers that divides it ends in the same bits"),
        (4, 4, 4, "the run began with 4 workers"),
        (2, 4, 4, "and 2 end in the same bits"),
        (1, 4, 4, "and 1 ends in the same bits"),
        (3, 4, 3, "other bits than with 4.*set cluster.workers to 1 or 2 or 4"),
        (8, 4, 8, "other bits than with 4"),
        (2, 1, 2, "the run began with 1 worker, which 2 do not divide"),
    ],
)
def test_what_another_number_of_workers_means(
    workers: int, began: int | None, count: int | None, text: str
) -> None:
    recorded = None if began is None else {"began": began, "threads": 3}
    found = shards_of(config(), workers, recorded)
    assert found.count == count
    assert found.began == (began or workers)
    assert re.search(text, found.text), found.text


def test_the_file_decides_where_it_says_something() -> None:
    found = shards_of(config(), 8, {"began": 6, "threads": 3}, least=2)
    assert (found.count, found.began, found.threads) == (6, 6, 3)
    assert "so of 2 to 8 it takes 2 or 3 or 6, which end in the same bits" in found.text
    found = shards_of(config(), 8, {"began": 6, "threads": 3}, least=7)
    assert "other bits than with 6" in found.text
    assert shards_of(config(), 4, {"began": 1, "threads": 3}, least=1).count == 4
    assert shards_of(config(virtual_shards=4), 2).count == 4
    assert shards_of(config(virtual_shards=None), 2).count is None
    assert shards_of(config(sync_batch_norm=True), 2).count is None


def test_parts_that_do_not_divide_into_pieces_are_refused() -> None:
    """Four workers began with 12 images; two that go on by force would leave out every third."""
    train = config(batch_size=12, accumulate=2)
    recorded = {"began": 4, "threads": 1}
    with pytest.raises(ConfigError, match=r"in 4 parts of 3 images.*set train.accumulate to 1 or"):
        shards_of(train, 2, recorded)
    assert shards_of(config(batch_size=24, accumulate=2), 2, recorded).count == 4
    assert shards_of(train, 2).count == 2


def tree(shards: Json, workers: int) -> dict[str, Json]:
    return {"train": {"virtual_shards": shards}, "cluster": {"workers": workers}}


def test_a_file_that_says_nothing_stays_the_same_run() -> None:
    before = config_digest(tree("auto", 1))
    assert before == digest({"train": {"virtual_shards": None}})
    assert before != config_digest(tree(None, 1))
    assert before != config_digest(tree(4, 1))
    assert not changes_since(2, tree("auto", 1))
    assert changes_since(2, tree("auto", 2))
    assert not changes_since(2, tree(None, 2))
    assert not changes_since(2, tree(4, 2))


def test_runs_begun_before_go_on_where_their_numbers_do(tmp_path: Path) -> None:
    """A file that said nothing was recorded as null; the same file now says auto."""

    def start(name: str, numerics: int, shards: Json, workers: int) -> RunState:
        now = tree(shards, workers)
        identity = Identity(config_digest(now), "d" * 64, numerics=numerics, sources={})
        found = open_run(tmp_path / name, identity, now)
        log = EventLog(tmp_path / name / "events.jsonl")
        log.note("start", "from drawn weights", step=0)
        log.close()
        return found

    for name, workers in (("one", 1), ("two", 2), ("null", 2)):
        assert start(name, 2, None, workers).kind == "new"
    assert start("one", 3, "auto", 1) == RunState("resume")
    assert start("null", 3, None, 2) == RunState("resume")
    with pytest.raises(ConfigError, match=r"numerics version 3.*virtual_shards: null is what it"):
        start("two", 3, "auto", 2)
    with pytest.raises(ConfigError, match=r"train\.virtual_shards: null there, 4 now"):
        start("null", 3, 4, 2)
    with pytest.raises(ConfigError, match=r'train\.virtual_shards: "auto" there, null now'):
        start("one", 3, None, 1)
