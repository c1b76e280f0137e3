"""When segments of a stream start, end and fail, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import orchestrator.data.stream.ray_stream as ray_stream
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.packing import pack
from orchestrator.data.stream.segment import Segment
from orchestrator.errors import OrchestratorError
from tests.support.waiting import wait_for


class FakeDataset:
    """Rows of one step each, handed out as fast as they are asked for."""

    def __init__(
        self, plan: BatchPlan, steps: list[int], *, error: Exception | None = None
    ) -> None:
        self.rows = [
            pack(lambda s, into: plan.train_batch(s, 0, 1, into), [step]) for step in steps
        ]
        self.error = error

    def iter_batches(self, **options: object) -> Iterator[dict[str, Any]]:
        yield from self.rows
        if self.error:
            raise self.error


def test_segment_stays_within_its_budget(plan: BatchPlan) -> None:
    segment = Segment(lambda: FakeDataset(plan, [0, 1, 2, 3]), 4, 2)
    wait_for(lambda: segment._queue.full())
    time.sleep(0.05)
    assert segment._queue.qsize() == 2
    assert [segment.take().step for _ in range(4)] == [0, 1, 2, 3]
    segment.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ray-batches"]


def test_what_follows_starts_when_half_is_taken(plan: BatchPlan) -> None:
    segment = Segment(lambda: FakeDataset(plan, [0, 1, 2]), 3, 3)
    wait_for(lambda: segment._queue.qsize() == 3)
    segment.take()
    assert not segment.nears_its_end(at_once=3)
    segment.take()
    assert segment.nears_its_end(at_once=0)
    assert not segment.starved
    segment.close()


def test_what_follows_a_starved_segment_starts_with_its_last_tasks(plan: BatchPlan) -> None:
    gate = threading.Semaphore(0)

    class Slow(FakeDataset):
        def iter_batches(self, **options: object) -> Iterator[dict[str, Any]]:
            for row in self.rows:
                gate.acquire()
                yield row

    segment = Segment(lambda: Slow(plan, list(range(8))), 8, 8)
    near = []
    for _ in range(8):
        threading.Timer(0.05, gate.release).start()
        segment.take()
        near.append(segment.nears_its_end(at_once=1))
    assert segment.starved
    assert near == [False] * 6 + [True] * 2
    segment.close()


def test_nothing_follows_before_half_is_taken(plan: BatchPlan) -> None:
    """However few batches are left for tasks to make: a wait at the start says little."""

    class Late(FakeDataset):
        def iter_batches(self, **options: object) -> Iterator[dict[str, Any]]:
            time.sleep(0.2)
            yield from self.rows

    segment = Segment(lambda: Late(plan, list(range(4))), 4, 4)
    near = []
    for _ in range(4):
        segment.take()
        assert segment.starved
        near.append(segment.nears_its_end(at_once=8))
    assert near == [False, True, True, True]
    segment.close()


@pytest.mark.parametrize("first", [True, False])
def test_a_consumer_is_starved_by_the_time_it_waits(plan: BatchPlan, first: bool) -> None:
    """Not by how often: of a block that comes at once only the first batch is waited for."""

    class Blocks(FakeDataset):
        def iter_batches(self, **options: object) -> Iterator[dict[str, Any]]:
            for block in (self.rows[:4], self.rows[4:]):
                time.sleep(0.4)
                yield from block

    segment = Segment(lambda: Blocks(plan, list(range(8))), 8, 8, first=first)
    found = []
    for _ in range(8):
        segment.take()
        time.sleep(0.02)
        found.append(segment.starved)
    # Only the start of the stream is nobody's fault.
    assert found[:4] == [not first] * 4
    assert found[4:] == [True] * 4
    segment.close()


def test_a_consumer_that_never_waits_is_not_starved(plan: BatchPlan) -> None:
    segment = Segment(lambda: FakeDataset(plan, [0, 1, 2]), 3, 3)
    wait_for(lambda: segment._queue.qsize() == 3)
    for _ in range(3):
        segment.take()
        assert not segment.starved
    segment.close()


def test_tasks_are_short_where_somebody_waits(
    plan: BatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_stream, "TASK_IMAGES", 9 * plan.schedule.rank_batch(1))
    stream = ray_stream.RayStream(plan, rank=0, world=1, prefetch=4, tasks=2)
    monkeypatch.setattr(ray_stream, "_plan", lambda ref: ref)

    def lengths(first: int, end: int, *, starved: bool, begins: bool = False) -> list[int]:
        cuts = stream._cuts(first, end, starved=starved, begins=begins)
        assert [step for cut in cuts for step in cut] == list(range(first, end))
        return [len(cut) for cut in cuts]

    assert lengths(5, 40, starved=True) == [3, 6, 9, 9, 8]
    assert lengths(5, 7, starved=True) == [2]
    assert lengths(0, 7, starved=False) == [4, 3]  # Shared out, where a task could make them all.
    assert lengths(0, 25, starved=False) == [9, 9, 7]
    # A task hands over its batches at its end, and a start waits for the first one.
    assert lengths(0, 35, starved=False, begins=True) == [1, 1, 4, 4, 9, 9, 7]


def test_segment_that_makes_too_few_batches_is_an_error(plan: BatchPlan) -> None:
    segment = Segment(lambda: FakeDataset(plan, [0]), 2, 2)
    segment.take()
    with pytest.raises(OrchestratorError, match="made 1 batches instead of 2"):
        segment.take()
    segment.close()


def test_error_of_a_segment_follows_its_batches(plan: BatchPlan) -> None:
    segment = Segment(lambda: FakeDataset(plan, [0], error=OSError("lost")), 2, 2)
    assert segment.take().step == 0
    with pytest.raises(OSError, match="lost"):
        segment.take()
    segment.close()
