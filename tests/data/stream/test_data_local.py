from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest

import orchestrator.data.stream.local as stream_module
from orchestrator.data.batch import Batch
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream, in_order
from orchestrator.errors import DataError, OrchestratorError
from tests.support.data_cases import assert_same_batch
from tests.support.waiting import wait_for


def no_batch_threads() -> bool:
    return not any(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.mark.parametrize("prefetch", [0, 1, 4, 100])
def test_yields_every_step_in_order(plan: BatchPlan, prefetch: int) -> None:
    batches = list(LocalStream(plan, prefetch=prefetch).train_batches(0, 15))
    for step, batch in enumerate(batches):
        assert_same_batch(batch, plan.train_batch(step, 0, 1))
    assert len(batches) == plan.schedule.total_steps == 15
    assert no_batch_threads()


@pytest.mark.parametrize("start", [0, 1, 4, 5, 14, 15])
def test_restart_continues_with_the_same_batches(plan: BatchPlan, start: int) -> None:
    unbroken = list(LocalStream(plan, rank=1, world=2).train_batches(0, 15))
    again = list(LocalStream(plan, rank=1, world=2).train_batches(start, 15))
    assert len(again) == 15 - start
    for one, other in zip(unbroken[start:], again, strict=True):
        assert_same_batch(one, other)


def test_makes_no_more_than_asked_ahead(plan: BatchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    original = BatchPlan.train_batch

    def record(self: BatchPlan, step: int, rank: int, world: int) -> Batch:
        made.append(step)
        return original(self, step, rank, world)

    monkeypatch.setattr(BatchPlan, "train_batch", record)
    batches = LocalStream(plan, prefetch=3).train_batches(0, 15)
    next(batches)
    wait_for(lambda: len(made) >= 4)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    batches.close()  # type: ignore[attr-defined]


def test_leaving_the_loop_ends_the_thread(plan: BatchPlan) -> None:
    batches = LocalStream(plan).train_batches(0, 15)
    for batch in batches:
        if batch.step == 2:
            break
    del batches, batch
    assert no_batch_threads()


def test_error_in_the_thread_reaches_the_consumer(
    plan: BatchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BatchPlan.train_batch

    def fail(self: BatchPlan, step: int, rank: int, world: int) -> Batch:
        if step == 3:
            raise DataError("broken")
        return original(self, step, rank, world)

    monkeypatch.setattr(BatchPlan, "train_batch", fail)
    seen: list[int] = []
    with pytest.raises(DataError, match="broken"):
        note_steps(LocalStream(plan).train_batches(0, 15), seen)
    assert seen == [0, 1, 2]
    assert no_batch_threads()


def note_steps(batches: Iterator[Batch], seen: list[int]) -> None:
    for batch in batches:
        seen.append(batch.step)


def test_evaluation_covers_each_image_once(plan: BatchPlan) -> None:
    streams = [LocalStream(plan, rank=rank, world=2) for rank in range(2)]
    seen = [s for stream in streams for b in stream.eval_batches() for s in b.sample_ids.tolist()]
    assert sorted(s for s in seen if s >= 0) == list(range(22))


@pytest.mark.parametrize(("limit", "passes"), [(1 << 30, 1), (0, 2)])
def test_small_evaluation_sets_are_decoded_once(
    plan: BatchPlan, monkeypatch: pytest.MonkeyPatch, limit: int, passes: int
) -> None:
    monkeypatch.setattr(stream_module, "EVAL_CACHE_BYTES", limit)
    calls = []
    original = BatchPlan.eval_batch_at

    def record(self: BatchPlan, index: int, rank: int, world: int) -> Batch:
        calls.append(index)
        return original(self, index, rank, world)

    monkeypatch.setattr(BatchPlan, "eval_batch_at", record)
    stream = LocalStream(plan)
    # A pass that is broken off is no reason to keep what it saw.
    next(iter(stream.eval_batches()))
    calls.clear()
    first, second = list(stream.eval_batches()), list(stream.eval_batches())
    assert len(first) == 11
    for one, other in zip(first, second, strict=True):
        assert_same_batch(one, other)
    assert len(calls) == 11 * passes


def steps(plan: BatchPlan, *numbers: int) -> Generator[Batch, None, None]:
    for number in numbers:
        yield plan.train_batch(number, 0, 1)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((3, 5), "got the batch of step 5, expected 4"),
        ((4,), "got the batch of step 4, expected 3"),
        ((3, 3), "got the batch of step 3, expected 4"),
        ((3, 4), "2 batches came from step 3 on, expected 3"),
        ((3, 4, 5, 6), "4 batches came from step 3 on, expected 3"),
    ],
)
def test_wrong_step_is_refused(plan: BatchPlan, numbers: tuple[int, ...], text: str) -> None:
    with pytest.raises(OrchestratorError, match=text):
        list(in_order(steps(plan, *numbers), 3, 6))


def test_right_steps_pass(plan: BatchPlan) -> None:
    assert [b.step for b in in_order(steps(plan, 3, 4, 5), 3, 6)] == [3, 4, 5]


def test_closing_reaches_the_source(plan: BatchPlan) -> None:
    closed: list[bool] = []

    def source(done: Callable[[bool], None]) -> Generator[Batch, None, None]:
        try:
            yield from steps(plan, 0, 1, 2)
        finally:
            done(True)

    batches = in_order(source(closed.append), 0, 3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert closed == [True]
