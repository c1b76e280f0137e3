"""Forward pass and losses as one graph: of every detector, made once, with the numbers of eager."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter

from detectors import draws
from detectors.registry import build_detector, variant_config
from detectors.structures import LossTerm
from orchestrator.config.schema import SGDOptimizer, TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.tracking.events import read_events
from orchestrator.training import graph, session
from orchestrator.training.session import run_rank
from orchestrator.training.stepper import Stepper
from tests.support import one_step
from tests.support.chaos_run import CPU, SmallDetector, digests, small_plan
from tests.training.test_pieces import CASES, batch_for, stepper_for

#: Steps of those outside the slow lane.
QUICK = {"tiny_fcos": 20}


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: SmallDetector())
    torch._dynamo.reset()


def steppers(variant: str, **fields: Any) -> tuple[Stepper, Stepper]:
    """Without and with a graph, of the same weights."""
    made = []
    for how in ("off", "graph"):
        torch.manual_seed(0)
        config = variant_config(variant, **CASES[variant], **fields)
        model = build_detector(config, num_classes=3).train()
        made.append(stepper_for(model, compile=how))
    return made[0], made[1]


def batch_of(stepper: Stepper, step: int) -> Batch:
    """Other boxes, and other numbers of them, at every step."""
    batch = batch_for(stepper.model)
    rng = np.random.default_rng(step)
    some = np.arange(batch.valid.shape[1]) < rng.integers(0, 60, (len(batch), 1))
    valid = np.roll(batch.valid, step, axis=1) & some
    boxes = np.roll(batch.boxes, step, axis=1) * valid[..., None]
    return dataclasses.replace(batch, step=step, boxes=boxes, valid=valid)


@pytest.mark.parametrize(
    ("variant", "steps"),
    [*QUICK.items(), *(pytest.param(name, 10, marks=[pytest.mark.slow]) for name in CASES)],
)
def test_a_step_of_every_detector_is_one_graph_whatever_its_targets_and_rate(
    variant: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(graph, "BACKEND", counter)
    eager, captured = steppers(variant)
    for step in range(steps):
        batch, rate = batch_of(eager, step), 1e-4 / (1 + step)
        reports = [s.run(batch, learning_rate=rate, stop=False) for s in (eager, captured)]
        assert reports[0].applied
        # The same operators in the same order, so the same bits.
        assert reports[0] == reports[1]
    assert captured.graph is not None
    assert captured.graph.trouble is None
    assert counter.frame_count == 1


@pytest.mark.slow
def test_each_canvas_has_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(graph, "BACKEND", counter)
    eager, captured = steppers("faster_rcnn_torchvision", train_canvas=(64, 96))
    for step in range(6):
        size: Any = SimpleNamespace(input_size=eager.model.train_canvases[step % 2])
        batch = dataclasses.replace(batch_for(size), step=step)
        one, two = (s.run(batch, learning_rate=1e-4, stop=False) for s in (eager, captured))
        assert one.applied
        assert one == two
    assert captured.graph is not None
    assert captured.graph.trouble is None
    assert counter.frame_count == 2


@pytest.mark.slow
def test_compiled_kernels_round_otherwise_and_draw_the_same() -> None:
    """Losses to 1e-4: kernels that are fused keep what would be rounded in between.

    The gradient to 1e-2: on one processor it was 0.15 % off, and why is not known.
    """
    eager, captured = steppers("faster_rcnn_torchvision")
    batch = batch_of(eager, 0)
    one, two = (s.run(batch, learning_rate=1e-4, stop=False) for s in (eager, captured))
    assert captured.graph is not None
    assert captured.graph.trouble is None, captured.graph.trouble
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-2)


def test_what_cannot_be_a_graph_is_said_and_runs(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Printing(SmallDetector):
        def loss_terms(self, *arguments: Any) -> dict[str, LossTerm]:
            terms = super().loss_terms(*arguments)
            if terms["near"].sum.item() < 0:  # Asks the host.
                raise ValueError
            return terms

    monkeypatch.setattr(graph, "BACKEND", "eager")
    ends = []
    for how in ("off", "graph"):
        monkeypatch.setattr(session, "build_detector", lambda *_, **__: Printing())
        plan = small_plan(tmp_path / how, digits, f"train.compile={how}")
        assert run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU).state == "done"
        ends.append(digests(plan.job.path))
    assert ends[0] == ends[1]
    notes = [e.text for e in read_events(plan.job.path / "events.jsonl") if e.kind == "compile"]
    assert len(notes) == 1
    assert notes[0].startswith("train.compile: no graph could be made, so steps run without: ")


class Drawing(SmallDetector):
    """Draws a number for each image, as detectors do that learn from a sample."""

    def loss_terms(self, images: Any, targets: Any) -> dict[str, LossTerm]:
        terms = super().loss_terms(images, targets)
        drawn = draws.rand((len(images),), device=images.device).sum()
        return {**terms, "near": terms["near"]._replace(sum=terms["near"].sum * drawn)}


def drawing(**fields: Any) -> Stepper:
    torch.manual_seed(0)
    config = TrainConfig(
        epochs=1, batch_size=12, optimizer=SGDOptimizer(lr=0.1), accumulate=12, **fields
    )
    return one_step.stepper_for(Drawing().train(), config, CPU)


def twelve(step: int) -> Batch:
    parts = [one_step.batch_of(3 * step + part) for part in range(3)]
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Batch)
        if field.name not in ("step", "replaced")
    }
    return Batch(step=step, **arrays)


def test_each_of_many_pieces_may_have_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than torch's compiler takes of a function by itself, which is eight."""
    counter = CompileCounter()
    monkeypatch.setattr(graph, "BACKEND", counter)
    eager, captured = drawing(), drawing(compile="graph")
    for step in range(2):
        one, two = (s.run(twelve(step), learning_rate=0.1, stop=False) for s in (eager, captured))
        assert one == two
    assert captured.graph is not None
    assert captured.graph.trouble is None
    assert counter.frame_count == 12


def test_a_compiler_that_gives_up_late_is_said_and_the_run_goes_on(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "BACKEND", "eager")
    plan = small_plan(tmp_path / "run", digits, "train.compile=graph")
    real = graph.LossGraph.__call__
    calls = 0

    def late(self: Any, *arguments: Any) -> dict[str, LossTerm]:
        nonlocal calls
        calls += 1
        if calls == 3:

            def gives_up(*_: Any) -> Any:
                raise FailOnRecompileLimitHit("hard") from ValueError("too many\nof them")

            self._terms = gives_up
        return real(self, *arguments)

    monkeypatch.setattr(graph.LossGraph, "__call__", late)
    assert run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU).state == "done"
    notes = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "compile"]
    assert [(note.step, note.text.partition(": ")[2]) for note in notes] == [
        (0, "forward pass and losses are one graph"),
        (2, "no graph could be made, so steps run without: too many"),
    ]


def test_auto_is_off() -> None:
    assert stepper_for(SmallDetector().train()).graph is None
