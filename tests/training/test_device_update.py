"""Steps that are decided on the device: the bits of those that the host decides, and no waiting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.accelerators import Accelerator, HostCopy, Precision
from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.schema import AdamWOptimizer, EmaConfig, SGDOptimizer, TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import Plan
from orchestrator.storage.run_files import STOP
from orchestrator.tracking.events import metric_history, read_events
from orchestrator.training import nonfinite_dump, session
from orchestrator.training.job import Outcome
from orchestrator.training.saved_tensors import SavedTensors
from orchestrator.training.session import open_store, run_rank
from orchestrator.training.state import capture
from orchestrator.training.stepper import Stepper
from tests.support import one_step
from tests.support.chaos_run import CPU, SmallDetector, digests, small_plan
from tests.support.local_runs import StoppingStream


class Behind(Accelerator):
    """A CPU that is treated like a device that works behind the host's back."""

    device_type = "cpu"
    backend = "gloo"

    def device(self, local_rank: int = 0) -> torch.device:
        return torch.device("cpu")

    def place(self, model: Any, device: torch.device) -> Any:
        return CPU.place(model, device)

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        return nullcontext()

    def resolve_precision(self, wanted: str) -> Precision:
        return "fp32"

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def to_host(self, tensors: Sequence[Tensor]) -> HostCopy:
        return HostCopy([tensor.clone() for tensor in tensors])

    def shows_overflow(self) -> bool:
        return True

    def device_name(self) -> str:
        return "behind"

    def synchronize(self) -> None:
        pass

    def peak_memory(self) -> int:
        return 0

    def set_determinism(self, deterministic: bool, threads: int | None) -> None:
        CPU.set_determinism(deterministic, threads)


#: Without a fused optimizer: all else is the arithmetic of the CPU.
PLAIN = Behind("npu")
FUSED = Behind("gpu")
OPTIMIZERS = {
    "sgd": SGDOptimizer(lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": AdamWOptimizer(lr=0.01),
}
#: Steps whose boxes are infinite; the first of all among them, and two in a row.
BAD = (0, 3, 4)


def batch_of(step: int, *, bad: bool = False) -> Batch:
    return one_step.batch_of(step, spoilt=math.inf if bad else None)


def stepper_on(accelerator: Accelerator, optimizer: Any, precision: Precision = "fp32") -> Stepper:
    torch.manual_seed(0)
    config = TrainConfig(
        epochs=1,
        batch_size=4,
        optimizer=optimizer,
        clip_norm=0.5,
        ema=EmaConfig(decay=0.9, warmup_steps=4),
    )
    return one_step.stepper_for(SmallDetector().train(), config, accelerator, precision=precision)


def digest(stepper: Stepper) -> str:
    return state_digest(capture(stepper, step=0, scalars={}))


def test_bits_are_taken_back_whatever_they_stand_for() -> None:
    odd = torch.tensor([0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 1e-45, 1.5])
    kinds = [
        odd,
        odd.double(),
        odd.half(),
        odd.bfloat16(),
        torch.tensor([2**62, -(2**62), 5]),
        torch.tensor([True, False]),
        torch.tensor(3.0),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ]
    saved = SavedTensors(kinds)
    before = [tensor.clone() for tensor in kinds]
    for tensor in kinds:
        tensor.copy_(tensor.flip(0) if tensor.ndim else tensor + 1)
    moved = [tensor.clone() for tensor in kinds]
    for chosen, wanted in ((False, moved), (True, before)):
        saved.restore_if(torch.tensor(chosen))
        for tensor, then in zip(kinds, wanted, strict=True):
            one, two = (t.contiguous().view(-1).view(torch.uint8) for t in (tensor, then))
            assert torch.equal(one, two)
            assert tensor.stride() == then.stride()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_fused_kernel_every_bit_is_that_of_the_host(name: str) -> None:
    """Also of a loop that reads a step's numbers only after the next one was begun."""
    expected, behind = stepper_on(CPU, OPTIMIZERS[name]), stepper_on(PLAIN, OPTIMIZERS[name])
    assert (expected.ahead, behind.ahead) == (0, 1)
    wanted = {}
    for step in range(7):
        batch = batch_of(step, bad=step in BAD)
        wanted[step] = expected.run(batch, learning_rate=0.05, stop=False)
    begun: list[tuple[int, Any]] = []
    for step in range(8):
        if step < 7:
            batch = batch_of(step, bad=step in BAD)
            begun.append((step, behind.begin(batch, learning_rate=0.05, stop=False)))
        while len(begun) > (step < 7):
            number, under_way = begun.pop(0)
            report = behind.read(under_way)
            assert repr(report) == repr(wanted[number])
            if not report.applied:
                begun = [
                    (
                        n,
                        behind.begin(
                            batch_of(n, bad=n in BAD),
                            learning_rate=0.05,
                            stop=False,
                        ),
                    )
                    for n, _ in begun
                ]
    assert digest(behind) == digest(expected)


@pytest.mark.parametrize("accelerator", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("where", ["input", "weight", "average"])
def test_a_bad_step_and_what_was_begun_after_it_change_no_bit(
    accelerator: Accelerator, name: str, where: str
) -> None:
    stepper = stepper_on(accelerator, OPTIMIZERS[name])
    for step in range(2):
        assert stepper.run(batch_of(step), learning_rate=0.05, stop=False).applied
    assert stepper.average is not None
    with torch.no_grad():
        if where == "weight":
            stepper.model.conv.weight[0, 0, 0, 0] = -math.nan
        elif where == "average":
            stepper.average.tensors["head.weight"][0, 0] = math.inf
        stepper.model.norm.running_mean[0] = -0.0
        stepper.average.tensors["norm.running_mean"][0] = -0.0
    before = digest(stepper)
    bad = stepper.begin(batch_of(2, bad=where == "input"), learning_rate=0.05, stop=False)
    stepper.begin(batch_of(3), learning_rate=0.05, stop=False)
    report = stepper.read(bad)
    assert not report.applied
    assert report.sound == (where == "input")
    assert digest(stepper) == before
    if where == "input":
        assert stepper.run(batch_of(3), learning_rate=0.05, stop=False).applied


@pytest.mark.parametrize("accelerator", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_that_were_frozen_before_begin_as_on_the_host(
    name: str, accelerator: Accelerator
) -> None:
    """As of a run that goes on with the state of another; its very first step is a bad one."""
    host, behind = (stepper_on(kind, OPTIMIZERS[name]) for kind in (CPU, accelerator))
    for stepper in (host, behind):
        assert stepper.run(batch_of(0), learning_rate=0.05, stop=False).applied
        for parameter in stepper.model.conv.parameters():
            del stepper.optimizer.state[parameter]
    for step in range(1, 6):
        batch = batch_of(step, bad=step in (1, 3))
        reports = [s.run(batch, learning_rate=0.05, stop=False) for s in (host, behind)]
        assert reports[0].applied == reports[1].applied == (step not in (1, 3))
        assert behind.damaged() == []
    if accelerator is PLAIN:
        assert digest(behind) == digest(host)
    one, two = host.model.conv.weight, behind.model.conv.weight
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_optimizer_ends_close_to_the_host(name: str) -> None:
    expected, fused = stepper_on(CPU, OPTIMIZERS[name]), stepper_on(FUSED, OPTIMIZERS[name])
    for step in range(6):
        batch = batch_of(step, bad=step in BAD)
        reports = [s.run(batch, learning_rate=0.05, stop=False) for s in (expected, fused)]
        assert reports[0].applied == reports[1].applied == (step not in BAD)
    for one, two in zip(
        expected.model.named_parameters(), fused.model.named_parameters(), strict=True
    ):
        # Batch normalisation takes this one out again; its gradient is rounding, which AdamW blows
        # up to a step of full length.
        if one[0] != "conv.bias":
            torch.testing.assert_close(one[1], two[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accelerator", [PLAIN, FUSED], ids=["plain", "fused"])
def test_an_overflow_lowers_the_scale_and_nothing_else(accelerator: Accelerator) -> None:
    host, behind = (
        stepper_on(one, OPTIMIZERS["sgd"], "fp16") for one in (Behind("cpu"), accelerator)
    )
    for stepper in (host, behind):
        assert stepper.scaler.is_enabled()
        # More than the first gradients bear.
        stepper.model.conv.weight.register_hook(lambda gradient: gradient * 256)
        stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
        update: Any = stepper._update
        update._all = dataclasses.replace(update._all, scaler=stepper.scaler)
    seen = []
    for step in range(24):
        bad = step == 20
        reports = [
            s.run(batch_of(step, bad=bad), learning_rate=0.01, stop=False) for s in (host, behind)
        ]
        assert reports[0].overflow == reports[1].overflow
        assert host.scaler.state_dict() == behind.scaler.state_dict()
        seen.append(reports[0].overflow)
        assert reports[0].applied == reports[1].applied
    assert 0 < sum(seen) < 20


class NoReading(TorchDispatchMode):
    """Refuses whatever a host would have to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits here"
        assert func is not torch.ops.aten.nonzero.default, "the host waits here"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("accelerator", "name"), [(PLAIN, "sgd"), (FUSED, "sgd"), (FUSED, "adamw")]
)
def test_nothing_is_read_while_a_step_is_begun(accelerator: Accelerator, name: str) -> None:
    stepper = stepper_on(accelerator, OPTIMIZERS[name])
    for step in range(3):
        with NoReading():
            under_way = stepper.begin(batch_of(step), learning_rate=0.05, stop=False)
        assert stepper.read(under_way).applied


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: SmallDetector())
    # Otherwise the file is looked at twice a second, and a fast machine is at the end by then.
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)


def run(plan: Plan, stream: LocalStream | None, accelerator: Accelerator) -> Outcome:
    return run_rank(plan.job, stream or LocalStream(plan.batches), accelerator=accelerator)


class SomeBad(LocalStream):
    """Infinite boxes in some steps."""

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step in BAD:
                boxes = batch.boxes.copy()
                boxes[1, 0, 0] = np.inf
                batch = dataclasses.replace(batch, boxes=boxes)
            yield batch


@pytest.mark.parametrize("every", [1, 5])
def test_a_run_behind_the_host_is_the_same_run(tmp_path: Path, digits: Path, every: int) -> None:
    """Commits, log and evidence, with steps that were not applied among them."""
    found = []
    for name, accelerator in (("host", CPU), ("behind", PLAIN)):
        plan = small_plan(tmp_path / name, digits, f"train.checkpoint.every_steps={every}")
        assert run(plan, SomeBad(plan.batches), accelerator).state == "done"
        log = plan.job.path / "events.jsonl"
        keys = ("train/loss", "train/gradient_norm", "train/lr", "val/AP")
        points = [[(p.step, repr(p.value)) for p in metric_history(log, key)] for key in keys]
        notes = [(e.step, e.text) for e in read_events(log) if e.kind in ("nonfinite", "start")]
        kept = {
            step: state_digest(nonfinite_dump.read(plan.job.path, step).state)
            for step in nonfinite_dump.kept_steps(plan.job.path)
        }
        found.append((digests(plan.job.path), points, notes, kept))
    assert sorted(found[0][3]) == sorted(BAD)
    assert found[0] == found[1]


@pytest.mark.parametrize("at", [0, 3, 10, 11])
def test_a_wish_to_stop_is_heard_one_step_later(tmp_path: Path, digits: Path, at: int) -> None:
    whole = small_plan(tmp_path / "whole", digits, "train.checkpoint.every_steps=7")
    expected = run(whole, None, PLAIN)
    plan = small_plan(tmp_path / "run", digits, "train.checkpoint.every_steps=7")
    first = run(plan, StoppingStream(plan, at), PLAIN)
    assert (first.state, first.steps) == ("preempted", min(at + 2, 12))
    assert open_store(plan.job).latest().commit.step == first.steps  # type: ignore[union-attr]
    (plan.job.path / STOP).unlink()
    second = run(plan, None, PLAIN)
    assert second.weights_sha256 == expected.weights_sha256
    logs = [p.job.path / "events.jsonl" for p in (plan, whole)]
    mine, theirs = ([(p.step, p.value) for p in metric_history(log, "train/loss")] for log in logs)
    assert mine == theirs


def test_arrays_are_made_where_the_device_fetches_them(digits: Path, tmp_path: Path) -> None:
    """Batches of a device other than a CPU fill what its accelerator hands out, and no others."""
    plan = small_plan(tmp_path / "run", digits)
    made: set[int] = set()

    class Counting(Behind):
        def host_array(self, shape: tuple[int, ...], dtype: Any) -> Any:
            array = np.empty(shape, dtype)
            made.add(array.ctypes.data)
            return array

    class Watching(LocalStream):
        def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
            for batch in super().train_batches(start_step, stop_step):
                assert {batch.images.ctypes.data, batch.boxes.ctypes.data} <= made
                yield batch

    outcome = run(plan, Watching(plan.batches), Counting("npu"))
    whole = small_plan(tmp_path / "whole", digits)
    assert outcome.weights_sha256 == run(whole, None, CPU).weights_sha256


@pytest.mark.parametrize("every", [1, 5])
def test_whoever_dies_between_a_step_and_its_numbers_ends_in_the_same_bits(
    tmp_path: Path, digits: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that were begun and never read count for nothing, bad ones among them."""
    stores: list[CommitStore] = []

    def remembered(*arguments: Any, **more: Any) -> CommitStore:
        stores.append(open_store(*arguments, **more))
        return stores[-1]

    monkeypatch.setattr(session, "open_store", remembered)

    class Dying(SomeBad):
        at = 0

        def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
            for batch in super().train_batches(start_step, stop_step):
                if batch.step == self.at:
                    raise KeyboardInterrupt
                yield batch

    whole = small_plan(tmp_path / "whole", digits, f"train.checkpoint.every_steps={every}")
    run(whole, SomeBad(whole.batches), PLAIN)
    plan = small_plan(tmp_path / "run", digits, f"train.checkpoint.every_steps={every}")
    for at in (1, 4, 5, 8, 11):
        stream = Dying(plan.batches)
        stream.at = at
        with pytest.raises(KeyboardInterrupt):
            run(plan, stream, PLAIN)
        # The thread that writes commits would have died as well.
        stores[-1].wait()
    run(plan, SomeBad(plan.batches), PLAIN)
    assert digests(plan.job.path) == digests(whole.job.path)
    logs = [p.job.path / "events.jsonl" for p in (plan, whole)]
    mine, theirs = (
        [(p.step, repr(p.value)) for p in metric_history(log, "train/loss")] for log in logs
    )
    assert mine == theirs
    assert nonfinite_dump.kept_steps(plan.job.path) == list(BAD)


@pytest.mark.parametrize(
    "accelerator", [Behind("cpu"), PLAIN, FUSED], ids=["cpu", "plain", "fused"]
)
def test_an_overflow_that_only_the_scaler_sees_counts(accelerator: Accelerator) -> None:
    """As on a device whose numbers saturate: nothing in the step is infinite."""
    stepper = stepper_on(accelerator, OPTIMIZERS["sgd"], "fp16")
    assert stepper.run(batch_of(0), learning_rate=0.05, stop=False).applied
    before, scale = digest(stepper), stepper.scaler.get_scale()
    unscale = stepper.scaler.unscale_

    def saturated(optimizer: Any) -> None:
        unscale(optimizer)
        for seen in stepper.scaler._found_inf_per_device(optimizer).values():
            seen.fill_(1.0)

    stepper.scaler.unscale_ = saturated  # type: ignore[method-assign]
    report = stepper.run(batch_of(1), learning_rate=0.05, stop=False)
    assert math.isfinite(report.gradient_norm)
    assert report.overflow
    assert not report.applied
    assert digest(stepper) == before
    assert stepper.scaler.get_scale() == scale / 2
    stepper.scaler.unscale_ = unscale  # type: ignore[method-assign]
    assert stepper.run(batch_of(1), learning_rate=0.05, stop=False).applied
