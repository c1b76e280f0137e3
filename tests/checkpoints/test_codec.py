"""Training state to files and back: every bit, every layout, nothing unpickled."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from orchestrator.checkpoints.codec import (
    HostCopy,
    TrainState,
    decode,
    encode,
    optimizer_from_flat,
    optimizer_to_flat,
    state_digest,
    weights_digest,
)
from orchestrator.errors import StorageError

SCALARS: dict[str, Any] = {
    "epoch": 3,
    "best": 0.1 + 0.2,
    "scaler": {"scale": 65536.0, "_growth_tracker": 7},
    "history": [1, 2.5, None, True, "ü"],
}


def as_bytes(files: dict[str, Any]) -> dict[str, bytes]:
    return {name: b"".join(bytes(chunk) for chunk in chunks) for name, chunks in files.items()}


def round_trip(state: TrainState) -> TrainState:
    return decode(as_bytes(encode(state)))


def state_of(model: dict[str, torch.Tensor], **fields: Any) -> TrainState:
    values: dict[str, Any] = {"step": 5, "optimizer": {}, "ema": None, "scalars": {}, **fields}
    return TrainState(model=model, **values)


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    as_integers = [t.contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    assert torch.equal(*as_integers)


ODD_TENSORS = {
    "float64": torch.randn(3, 4, dtype=torch.float64),
    "float16": torch.randn(5).half(),
    "bfloat16": torch.randn(2, 2).bfloat16(),
    "float8": torch.randn(7).to(torch.float8_e4m3fn),
    "int64": torch.tensor([-(2**62), 2**62]),
    "int8": torch.arange(-3, 3, dtype=torch.int8),
    "bool": torch.tensor([[True, False, True]]),
    "zero-dimensional": torch.tensor(3.5),
    "zero-dimensional integer": torch.tensor(41),
    "empty": torch.empty(0, 4),
    "empty in the middle": torch.empty(3, 0, 2),
    "nan and infinities": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 5e-324]),
    "nan with payload": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last, 1x1": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
    "every other column": torch.arange(20.0).reshape(4, 5)[:, ::2],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "offset": torch.arange(10.0)[3:7],
    "needs gradient": torch.ones(2, requires_grad=True),
    'name/with.odd-signs äß "quoted"': torch.ones(1),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_a_tensor_comes_back_bit_for_bit(name: str) -> None:
    tensor = ODD_TENSORS[name]
    back = round_trip(state_of({name: tensor})).model[name]
    assert_same_bits(back, tensor.detach())


@pytest.mark.parametrize("name", ["transposed", "channels last", "channels last, 1x1"])
def test_memory_layout_comes_back(name: str) -> None:
    # Kernels may round differently on other strides, so the layout is part of the state.
    tensor = ODD_TENSORS[name]
    assert round_trip(state_of({"t": tensor})).model["t"].stride() == tensor.stride()


def test_a_whole_state_comes_back() -> None:
    state = state_of(
        dict(ODD_TENSORS),
        optimizer={"momentum_buffer/w": torch.randn(3)},
        ema={"w": torch.randn(3)},
        scalars=SCALARS,
    )
    back = round_trip(state)
    assert back.step == 5
    assert back.scalars == SCALARS
    assert back.ema is not None
    assert list(back.optimizer) == ["momentum_buffer/w"]
    assert state_digest(back) == state_digest(state)


def test_no_average_comes_back_as_none() -> None:
    files = as_bytes(encode(state_of({"w": torch.ones(1)})))
    assert "ema.safetensors" not in files
    assert decode(files).ema is None


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    shared = torch.randn(1000)
    tied = state_of({"encoder": shared, "decoder": shared, "other": torch.randn(1000)})
    files = as_bytes(encode(tied))
    assert len(files["weights.safetensors"]) < 2 * 4000 + 1000
    back = decode(files).model
    assert back["encoder"].data_ptr() == back["decoder"].data_ptr()
    assert_same_bits(back["decoder"], shared)


def test_overlapping_views_are_stored_apart() -> None:
    base = torch.arange(10.0)
    back = round_trip(state_of({"all": base, "head": base[:4], "tail": base[4:]})).model
    assert torch.equal(back["all"], base)
    assert torch.equal(back["head"], base[:4])
    assert torch.equal(back["tail"], base[4:])


def test_the_library_reads_the_files(tmp_path: Path) -> None:
    tensors = {name: t.detach() for name, t in ODD_TENSORS.items()}
    data = as_bytes(encode(state_of(tensors)))["weights.safetensors"]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with safetensors.safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert_same_bits(opened.get_tensor(name), tensor)
        assert opened.metadata() == {"format": "pt"}


def test_the_files_have_the_size_the_library_makes() -> None:
    tensors = {f"layer{i}.weight": torch.randn(i + 1, 8) for i in range(20)}
    ours = as_bytes(encode(state_of(tensors)))["weights.safetensors"]
    assert len(ours) == len(safetensors.torch.save(tensors, metadata={"format": "pt"}))


def test_equal_states_give_equal_bytes() -> None:
    state = state_of({"b": torch.ones(2), "a": torch.zeros(3)}, scalars={"x": 1, "y": 2})
    other = state_of({"a": torch.zeros(3), "b": torch.ones(2)}, scalars={"y": 2, "x": 1})
    assert as_bytes(encode(state)) == as_bytes(encode(other))


@pytest.mark.parametrize(
    ("scalars", "message"),
    [
        ({"best": math.nan}, "not JSON"),
        ({"best": -math.inf}, "not JSON"),
        ({"ids": (1, 2)}, "lists for tuples"),
        ({"counts": {1: 2}}, "strings as keys"),
        ({"path": Path("x")}, "not JSON"),
    ],
)
def test_scalars_that_would_change_are_refused(scalars: dict[str, Any], message: str) -> None:
    with pytest.raises(StorageError, match=message):
        encode(state_of({}, scalars=scalars))


def test_tensors_that_cannot_be_stored_are_named() -> None:
    with pytest.raises(StorageError, match=r"'spectrum' is torch\.complex64"):
        encode(state_of({"spectrum": torch.zeros(2, dtype=torch.complex64)}))
    with pytest.raises(StorageError, match=r"'table' is .*sparse"):
        encode(state_of({"table": torch.eye(3).to_sparse()}))


def test_a_missing_file_and_another_format_are_refused() -> None:
    files = as_bytes(encode(state_of({"w": torch.ones(1)})))
    without = {name: data for name, data in files.items() if name != "optimizer.safetensors"}
    with pytest.raises(StorageError, match=r"optimizer\.safetensors missing"):
        decode(without)
    newer = files["state.json"].replace(b'"format": 1', b'"format": 9')
    with pytest.raises(StorageError, match="format 9; this program reads 1"):
        decode({**files, "state.json": newer})


def test_a_pickle_in_place_of_weights_is_not_run() -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("the pickle was run",)

    stream = io.BytesIO()
    torch.save(Bomb(), stream)
    files = as_bytes(encode(state_of({"w": torch.ones(1)})))
    with pytest.raises(StorageError, match="not a safetensors file"):
        decode({**files, "weights.safetensors": stream.getvalue()})


def test_digests_see_names_types_shapes_and_bits() -> None:
    base = state_of({"w": torch.zeros(2, 3)}, optimizer={"step/w": torch.tensor(1.0)})
    variants = [
        state_of({"v": torch.zeros(2, 3)}, optimizer=base.optimizer),
        state_of({"w": torch.zeros(3, 2)}, optimizer=base.optimizer),
        state_of({"w": torch.zeros(2, 3, dtype=torch.int32)}, optimizer=base.optimizer),
        state_of({"w": -torch.zeros(2, 3)}, optimizer=base.optimizer),
        state_of({"w": torch.zeros(2, 3), "x": torch.empty(0)}, optimizer=base.optimizer),
    ]
    digests = {weights_digest(state) for state in (base, *variants)}
    assert len(digests) == 6
    moved = state_of(base.model, optimizer={"step/w": torch.tensor(2.0)})
    assert weights_digest(moved) == weights_digest(base)
    assert state_digest(moved) != state_digest(base)
    averaged = state_of(base.model, optimizer=base.optimizer, ema={})
    assert state_digest(averaged) == state_digest(base)


def test_digests_ignore_the_layout_in_memory() -> None:
    image = torch.randn(2, 3, 4, 5)
    moved = image.to(memory_format=torch.channels_last)
    assert weights_digest(state_of({"w": image})) == weights_digest(state_of({"w": moved}))


class TestHostCopy:
    def test_it_is_a_copy_and_reuses_its_memory(self) -> None:
        live = torch.randn(3, 4)
        buffer = HostCopy()
        first = buffer.take(state_of({"w": live}, scalars={"a": [1]}))
        before = live.clone()
        live.add_(1.0)
        assert torch.equal(first.model["w"], before)
        second = buffer.take(state_of({"w": live}))
        assert torch.equal(second.model["w"], live)
        assert second.model["w"].data_ptr() == first.model["w"].data_ptr()

    def test_it_keeps_ties_and_layouts(self) -> None:
        shared = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
        state = state_of(
            {"a": shared, "b": shared, **ODD_TENSORS}, ema={"a": shared}, scalars=SCALARS
        )
        copied = HostCopy().take(state)
        assert copied.model["a"].data_ptr() == copied.model["b"].data_ptr()
        assert copied.model["a"].data_ptr() != shared.data_ptr()
        assert as_bytes(encode(copied)) == as_bytes(encode(state))

    def test_it_follows_a_change_of_shape(self) -> None:
        buffer = HostCopy()
        buffer.take(state_of({"w": torch.zeros(3), "gone": torch.zeros(2)}))
        taken = buffer.take(state_of({"w": torch.ones(4)}))
        assert list(taken.model) == ["w"]
        assert torch.equal(taken.model["w"], torch.ones(4))

    def test_later_changes_of_scalars_do_not_reach_it(self) -> None:
        scalars = {"history": [1]}
        taken = HostCopy().take(state_of({}, scalars=scalars))
        scalars["history"].append(2)
        assert taken.scalars == {"history": [1]}


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    return layers.to(memory_format=torch.channels_last)


def optimizers() -> dict[str, Any]:
    return {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
        "sgd with momentum": lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        ),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    }


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", optimizers())
@pytest.mark.parametrize("resumed_at", [0, 1, 4])
def test_training_goes_on_bit_for_bit(kind: str, resumed_at: int) -> None:
    build = optimizers()[kind]
    unbroken = network()
    optimizer = build(unbroken.parameters())
    train(unbroken, optimizer, range(resumed_at))
    files = as_bytes(
        encode(
            TrainState(
                step=resumed_at,
                model=dict(unbroken.state_dict()),
                optimizer=optimizer_to_flat(optimizer, unbroken.named_parameters()),
                ema=None,
                scalars={},
            )
        )
    )
    train(unbroken, optimizer, range(resumed_at, 8))

    resumed = network()
    other = build(resumed.parameters())
    train(resumed, other, range(50, 53))  # What it held before must not matter.
    state = decode(files)
    resumed.load_state_dict(state.model)
    optimizer_from_flat(other, resumed.named_parameters(), state.optimizer)
    train(resumed, other, range(resumed_at, 8))

    for name, tensor in unbroken.state_dict().items():
        assert_same_bits(resumed.state_dict()[name], tensor)
    left = optimizer_to_flat(optimizer, unbroken.named_parameters())
    right = optimizer_to_flat(other, resumed.named_parameters())
    assert set(left) == set(right)
    for name, tensor in left.items():
        assert_same_bits(right[name], tensor)
        assert right[name].stride() == tensor.stride()


def test_optimizer_names_are_kinds_and_parameters() -> None:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert optimizer_to_flat(sgd, model.named_parameters()) == {}
    train(model, sgd, range(1))
    assert set(optimizer_to_flat(sgd, model.named_parameters())) == {
        f"momentum_buffer/{name}" for name, _ in model.named_parameters()
    }
    adamw = torch.optim.AdamW(model.parameters())
    train(model, adamw, range(1))
    assert set(optimizer_to_flat(adamw, model.named_parameters())) == {
        f"{kind}/{name}"
        for kind in ("step", "exp_avg", "exp_avg_sq")
        for name, _ in model.named_parameters()
    }


def test_restored_optimizer_tensors_are_its_own() -> None:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, sgd, range(1))
    flat = {k: v.clone() for k, v in optimizer_to_flat(sgd, model.named_parameters()).items()}
    kept = copy.deepcopy(flat)
    optimizer_from_flat(sgd, model.named_parameters(), flat)
    train(model, sgd, range(1, 3))
    assert all(torch.equal(flat[name], kept[name]) for name in kept)


def test_foreign_optimizer_tensors_are_refused() -> None:
    model = network()
    adamw = torch.optim.AdamW(model.parameters())
    named = list(model.named_parameters())
    with pytest.raises(StorageError, match=r"'momentum_buffer/0.weight' does not belong"):
        optimizer_from_flat(adamw, named, {"momentum_buffer/0.weight": torch.zeros(4, 3, 3, 3)})
    with pytest.raises(StorageError, match=r"'exp_avg/9.weight' does not belong"):
        optimizer_from_flat(adamw, named, {"exp_avg/9.weight": torch.zeros(1)})
    with pytest.raises(StorageError, match=r"shape \(7,\), its parameter \(4, 3, 3, 3\)"):
        optimizer_from_flat(adamw, named, {"exp_avg/0.weight": torch.zeros(7)})


def test_an_unknown_optimizer_is_refused() -> None:
    model = network()
    with pytest.raises(StorageError, match="Rprop cannot be saved; allowed: SGD, AdamW"):
        optimizer_to_flat(torch.optim.Rprop(model.parameters()), model.named_parameters())
