"""Steps that are measured: those of a run, a step ahead on a device, and all that is in them."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.accelerators import Accelerator
from orchestrator.benchmark import device_parts, device_steps, measure
from orchestrator.benchmark import training as measured
from orchestrator.benchmark.clock import Clock
from orchestrator.benchmark.device_parts import CASES, Setting
from orchestrator.benchmark.training import Trainer
from orchestrator.checkpoints.codec import state_digest
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import ConfigError, DataError
from orchestrator.runs import plan as planning
from orchestrator.training import graph, session
from orchestrator.training.state import capture
from tests.support.chaos_run import CPU, EXPERIMENT, small_detector
from tests.training.test_device_update import BAD, PLAIN, SomeBad


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "skeleton", small_detector)
    monkeypatch.setattr(session, "build_detector", small_detector)


def trainer_of(
    folder: Path, data: Path, *overrides: str, accelerator: Accelerator = CPU
) -> Trainer:
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(data)))
    return Trainer(load_experiment(file, overrides), accelerator)


def calls_of(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What its stepper is asked for from here on, in turn."""
    calls: list[str] = []
    stepper: Any = trainer.stepper
    begin, read = stepper.begin, stepper.read

    def begins(batch: Any, **rest: Any) -> Any:
        calls.append(f"begin {batch.step}")
        under_way = begin(batch, **rest)
        return under_way, batch.step

    def reads(under_way: Any) -> Any:
        calls.append(f"read {under_way[1]}")
        return read(under_way[0])

    monkeypatch.setattr(stepper, "begin", begins)
    monkeypatch.setattr(stepper, "read", reads)
    return calls


@pytest.mark.parametrize(
    ("accelerator", "wanted"),
    [
        (CPU, ["begin 0", "read 0", "begin 1", "read 1", "begin 2", "read 2"]),
        (PLAIN, ["begin 0", "begin 1", "read 0", "begin 2", "read 1", "read 2"]),
    ],
    ids=["host", "device"],
)
def test_a_device_is_measured_a_step_ahead_as_a_run_has_it(
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: Accelerator,
    wanted: list[str],
) -> None:
    trainer = trainer_of(tmp_path, digits, accelerator=accelerator)
    calls = calls_of(trainer, monkeypatch)
    spent = trainer.steps(3)
    assert calls == wanted
    assert len(spent) == 3
    assert min(spent) > 0


def test_steps_that_are_not_applied_are_measured_with_those_begun_after_them(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "LocalStream", SomeBad)
    ends = []
    for name, accelerator in (("host", CPU), ("device", PLAIN)):
        trainer = trainer_of(tmp_path / name, digits, accelerator=accelerator)
        assert len(trainer.steps(8)) == 8
        assert trainer.stepper.damaged() == []
        ends.append(state_digest(capture(trainer.stepper, step=0, scalars={})))
    assert max(BAD) < 7
    assert ends[0] == ends[1]


def test_the_forward_pass_of_a_graph_has_its_part(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "BACKEND", "eager")
    torch._dynamo.reset()
    trainer = trainer_of(tmp_path, digits, "train.compile=graph")
    clock = Clock(CPU)
    trainer.steps(2, clock)
    assert clock.seconds["forward"] > 0
    assert clock.seconds["backward"] > 0


def test_validation_images_that_cannot_be_read_are_said(tmp_path: Path, digits: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "data")
    val = json.loads((data / "annotations/instances_val.json").read_text())
    trainer = trainer_of(tmp_path, data)
    for image in val["images"]:
        (data / "images" / image["file_name"]).write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of the first 2 batches of validation can be"):
        trainer.evaluate(2)


def test_an_operator_without_a_deterministic_kernel_is_named_here_too(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("cumsum_here does not have a deterministic implementation, but")

    (tmp_path / "run.yaml").write_text(EXPERIMENT % json.dumps(str(digits)))
    monkeypatch.setattr(measure, "measure_training", fails)
    with pytest.raises(ConfigError, match="the operator cumsum_here has no deterministic kernel"):
        measure.benchmark(
            load_experiment(tmp_path / "run.yaml"), steps=1, skip=0, batches=[1], repeats=1
        )


def test_gains_are_told_in_milliseconds_and_with_what_became_of_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stepper(*_: Any, compile_: str) -> Any:
        said = SimpleNamespace(text=lambda: "no graph could be made")
        return SimpleNamespace(run=print, graph=None if compile_ == "off" else said)

    seconds = iter([0.004, 0.002] * len(CASES))
    monkeypatch.setattr(device_steps, "make", lambda *_, **__: SimpleNamespace(input_size=(8, 8)))
    monkeypatch.setattr(device_steps, "stepper_of", stepper)
    monkeypatch.setattr(device_steps, "timed", lambda *_: next(seconds))
    found = device_steps.gains(Setting(CPU, False, time.monotonic() + 60))
    for case in CASES:
        assert found[case.variant] == {
            "ms": {"off": 4.0, "graph": 2.0},
            "gain": 2.0,
            "graph": "no graph could be made",
        }


def test_the_parts_after_feeding_have_the_threads_of_those_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        device_parts.feeding(Setting(CPU, True, time.monotonic() + 60))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
