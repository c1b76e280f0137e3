"""Gradients that overflow whatever the loss scale is: counted, and then no fault of the scale."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from orchestrator.accelerators import Precision
from orchestrator.data.stream.local import LocalStream
from orchestrator.storage.run_files import STOP
from orchestrator.tracking.events import read_events
from orchestrator.training import nonfinite_guard, session
from orchestrator.training.job import Outcome
from orchestrator.training.nonfinite_guard import NonFiniteError
from orchestrator.training.session import run_rank
from tests.support.chaos_run import SmallDetector, small_plan
from tests.support.local_runs import StoppingStream
from tests.training.test_device_update import Behind


class Halved(Behind):
    """Computes in half precision, as far as the loss scaler knows."""

    def resolve_precision(self, wanted: str) -> Precision:
        return "fp16"


class Overflowing(SmallDetector):
    """From a step on the gradient is infinite, and the loss is not."""

    first = 2

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.conv.weight.register_hook(self._spoilt)

    def _spoilt(self, gradient: Tensor) -> Tensor:
        self.steps += 1
        return gradient * float("inf") if self.steps > self.first else gradient


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonfinite_guard, "MOST_OVERFLOWS", 4)
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: Overflowing())
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)


def steps_of(log: Path, kind: str) -> list[int]:
    return [event.step for event in read_events(log) if event.kind == kind]


def test_a_row_of_overflows_that_no_scale_ends_ends_the_run(tmp_path: Path, digits: Path) -> None:
    """Steps 0 and 1 are applied, 2 to 5 overflow, and 6 to 8 are three in a row that are bad."""
    plan = small_plan(tmp_path / "run", digits)
    with pytest.raises(NonFiniteError) as told:
        run_rank(plan.job, LocalStream(plan.batches), accelerator=Halved("cpu"))
    text = str(told.value)
    assert text.startswith("step 8: not finite 3 times in a row (losses ")
    assert "overflow in fp16 for 7 steps in a row" in text
    assert "or set train.precision to bf16 or fp32" in text
    # Events count the steps that are done.
    assert steps_of(plan.job.path / "events.jsonl", "nonfinite") == [7, 8, 9]


def test_a_row_is_as_long_when_the_run_is_stopped_within_it(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path / "run", digits)

    def start(stream: LocalStream) -> Outcome:
        return run_rank(plan.job, stream, accelerator=Halved("cpu"))

    stopped = start(StoppingStream(plan, 3))
    assert (stopped.state, stopped.steps) == ("preempted", 4)
    (plan.job.path / STOP).unlink()
    monkeypatch.setattr(Overflowing, "first", 0)
    with pytest.raises(NonFiniteError, match="step 8: not finite 3 times in a row"):
        start(LocalStream(plan.batches))


def test_an_applied_step_ends_a_row(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Now(Overflowing):
        def _spoilt(self, gradient: Tensor) -> Tensor:
            self.steps += 1
            return gradient if self.steps % 4 == 0 else gradient * float("inf")

    monkeypatch.setattr(session, "build_detector", lambda *_, **__: Now())
    plan = small_plan(tmp_path / "run", digits)
    assert run_rank(plan.job, LocalStream(plan.batches), accelerator=Halved("cpu")).state == "done"
    assert steps_of(plan.job.path / "events.jsonl", "nonfinite") == []
