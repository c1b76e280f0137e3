"""Too little memory in a step: the step, the peak, and lines that can be pasted and help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detectors.structures import LossTerm
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import ConfigError
from orchestrator.training import session
from orchestrator.training.session import run_rank
from tests.support.chaos_run import CPU, SmallDetector, small_plan

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 99999999999 bytes. Error code 12"
    ),
    MemoryError(),
]


class Greedy(SmallDetector):
    """Does not get what it asks for in its fourth step."""

    error: BaseException = ERRORS[0]

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def loss_terms(self, *arguments: Any) -> dict[str, LossTerm]:
        self.calls += 1
        if self.calls == 4:
            raise self.error
        return super().loss_terms(*arguments)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        ((), [("accumulate", 2), ("batch_size", 2)]),
        (("train.virtual_shards=2",), [("virtual_shards", 4), ("batch_size", 2)]),
        (("train.accumulate=4",), []),
    ],
)
def test_the_lines_to_change_are_printed(
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    words: tuple[str, ...],
    proposed: list[tuple[str, int]],
) -> None:
    monkeypatch.setattr(Greedy, "error", error)
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: Greedy())
    plan = small_plan(tmp_path / "run", digits, *words)
    with pytest.raises(ConfigError, match=r"out of memory in step \d.*[0-9.]+ GiB in use") as told:
        run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
    assert told.value.exit_code == 64
    text = str(told.value)
    _, _, lines = text.partition(":\n")
    found = [yaml.safe_load(part)["train"] for part in lines.split("\n  or\n")]
    assert found == ([{key: value} for key, value in proposed] or [{"precision": "bf16"}])
    for key, value in proposed:
        others = [word for word in words if key not in word]
        small_plan(tmp_path / key, digits, *others, f"train.{key}={value}")


def test_other_errors_stay_what_they_are(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Greedy, "error", RuntimeError("shape mismatch"))
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: Greedy())
    plan = small_plan(tmp_path / "run", digits)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
