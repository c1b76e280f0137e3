"""The parts of a check of a device that are about training steps."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from detectors.counted import count
from orchestrator.accelerators import Accelerator, Precision
from orchestrator.benchmark.clock import Clock
from orchestrator.benchmark.device_parts import (
    CASES,
    CLASSES,
    Case,
    Setting,
    Tree,
    batch_of,
    make,
    matrix_rate,
    stepper_of,
    timed,
)
from orchestrator.errors import first_line
from orchestrator.memory import wants_memory
from orchestrator.training.stepper import Stepper


def correctness(setting: Setting) -> Tree:
    """Small detectors in fp32: losses as on the CPU, the same bits twice, bad steps left out."""
    setting.accelerator.set_determinism(True, None)
    return setting.of_each(lambda case: _compared(case, setting.accelerator))


def _compared(case: Case, accelerator: Accelerator) -> Tree:
    def train(kind: Accelerator) -> tuple[Stepper, list[float]]:
        stepper = stepper_of(make(case, small=True), kind, "fp32", 2)
        size = stepper.model.input_size
        losses = []
        for number in range(3):
            report = stepper.run(batch_of(number, 2, size), learning_rate=1e-3, stop=False)
            losses.append(report.losses["loss"])
        return stepper, losses

    stepper, losses = train(accelerator)
    again, _ = train(accelerator)
    _, expected = train(Accelerator("cpu"))
    state, other = stepper.model.state_dict(), again.model.state_dict()
    same = all(torch.equal(state[name], other[name]) for name in state)
    before = {name: value.clone() for name, value in state.items()}
    applied = _bad_step(stepper)
    return {
        "losses": losses,
        "apart_from_cpu": max(
            abs(mine - theirs) / abs(theirs) for mine, theirs in zip(losses, expected, strict=True)
        ),
        "same_bits_twice": same,
        "bad_step_applied": applied,
        "bad_step_changed": [n for n, v in before.items() if not torch.equal(v, state[n])],
    }


def _bad_step(stepper: Stepper) -> bool:
    """Do a step whose losses are not finite; whether it was applied."""
    model: Any = stepper.model
    true = model.loss_terms

    def spoilt(*inputs: Any) -> Any:
        return {name: term._replace(sum=term.sum * np.nan) for name, term in true(*inputs).items()}

    model.loss_terms = spoilt
    try:
        batch = batch_of(3, 2, stepper.model.input_size)
        return stepper.run(batch, learning_rate=1e-3, stop=False).applied
    finally:
        del model.loss_terms


# ---- Waits ----


def waits(setting: Setting) -> Tree:
    """Where the host waits for the device in a step, by torch's debug mode for it."""
    accelerator = setting.accelerator
    module = getattr(torch, accelerator.device_type)
    if not hasattr(module, "set_sync_debug_mode"):
        return {"left out": f"torch has no debug mode for waits on {accelerator.kind}"}

    def waiting(case: Case) -> list[str]:
        stepper = stepper_of(make(case, small=True), accelerator, "fp32", 2)
        batches = [batch_of(number, 2, stepper.model.input_size) for number in range(4)]
        for batch in batches[:2]:
            stepper.run(batch, learning_rate=1e-3, stop=False)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            module.set_sync_debug_mode("warn")
            try:
                for batch in batches[2:]:
                    stepper.begin(batch, learning_rate=1e-3, stop=False)
            finally:
                module.set_sync_debug_mode("default")
        return sorted({f"{w.filename}:{w.lineno}: {w.message}" for w in said})

    return setting.of_each(waiting)


# ---- Throughput ----


def throughput(setting: Setting) -> Tree:
    """Images/s in the published sizes and batches, and with batches that fill a card."""
    accelerator, device = setting.accelerator, setting.accelerator.device()
    rates = matrix_rate(accelerator, device, quick=setting.quick)
    precision = accelerator.resolve_precision("auto")
    found: Tree = {"matrix_tflops": rates}
    for deterministic in (False, True):
        accelerator.set_determinism(deterministic, None)
        for which in ("batch", "full"):
            for case in CASES:
                name = f"{case.variant} {which} {'deterministic' if deterministic else 'fast'}"
                if not setting.time_left or (setting.quick and which == "full"):
                    found[name] = "left out"
                    continue
                images = 2 if setting.quick else getattr(case, which)
                try:
                    found[name] = _speed(case, setting, precision, images, rates)
                except (MemoryError, RuntimeError) as error:
                    if not wants_memory(error):
                        raise
                    found[name] = f"out of memory: {first_line(error)}"
    accelerator.set_determinism(True, None)
    return found


def _speed(
    case: Case, setting: Setting, precision: Precision, images: int, rates: dict[str, float]
) -> Tree:
    accelerator = setting.accelerator
    accelerator.forget_peak()
    stepper = stepper_of(make(case, small=setting.quick), accelerator, precision, images)
    size = stepper.model.input_size
    batches = [batch_of(number, images, size) for number in range(2)]
    steps = 2 if setting.quick else 20
    number = 0

    def step() -> None:
        nonlocal number
        batch = replace(batches[number % 2], step=number)
        stepper.read(stepper.begin(batch, learning_rate=1e-4, stop=False))
        number += 1

    seconds = timed(accelerator, step, steps, skip=1 if setting.quick else 5)
    clock = Clock(accelerator)
    with (
        clock.inside(stepper.model, "loss_terms", "forward"),
        clock.inside(stepper, "backward", "backward"),
        clock.inside(stepper, "begin", "rest"),
    ):
        for _ in range(2 if setting.quick else 5):
            step()
    total = sum(clock.seconds.values())
    result: Tree = {
        "images": images,
        "precision": precision,
        "images_per_s": images / seconds,
        "step_ms": seconds * 1e3,
        "shares": {name: clock.seconds[name] / total for name in ("forward", "backward", "rest")},
        "peak_bytes": accelerator.peak_memory(),
    }
    if not setting.quick:
        operations = count(case.variant, num_classes=CLASSES).multiply_adds * 6
        rate = rates.get(precision, rates["fp32"]) * 1e12
        result["fraction_of_matrix_rate"] = operations * images / seconds / rate
    return result


# ---- Gains ----


def gains(setting: Setting) -> Tree:
    """What capturing forward pass and losses as one graph gains, beside eager steps."""
    accelerator = setting.accelerator
    if setting.quick:
        return {"left out": "compiling takes minutes"}
    precision = accelerator.resolve_precision("auto")

    def gain(case: Case) -> Tree:
        seconds, said = {}, ""
        for compile_ in ("off", "graph"):
            model = make(case, small=False)
            stepper = stepper_of(model, accelerator, precision, case.batch, compile_=compile_)
            batch = batch_of(0, case.batch, model.input_size)
            work = partial(stepper.run, batch, learning_rate=1e-4, stop=False)
            seconds[compile_] = timed(accelerator, work, 20)
            said = "" if stepper.graph is None else stepper.graph.text()
        milliseconds = {compile_: value * 1e3 for compile_, value in seconds.items()}
        return {"ms": milliseconds, "gain": seconds["off"] / seconds["graph"], "graph": said}

    return setting.of_each(gain)
