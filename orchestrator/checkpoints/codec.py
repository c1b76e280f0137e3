"""Training state to files and back, bit for bit and without pickle.

Tensors go into safetensors files, everything else into ``state.json``. Files are produced piece by
piece straight from the tensors' memory: no second copy of the state is made, and the pieces are
handed to calls that release the interpreter lock, so a thread can write them beside training.

Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, raw bytes);
what is written here is read back with that library.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from orchestrator.errors import StorageError
from orchestrator.storage.local import CHUNK_BYTES, Chunk

FORMAT = 1
STATE_NAME = "state.json"

#: File of each group of tensors; ``ema`` is optional.
TENSOR_FILES = {
    "model": "weights.safetensors",
    "optimizer": "optimizer.safetensors",
    "ema": "ema.safetensors",
}

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Json: TypeAlias = Any
Tensors: TypeAlias = dict[str, Tensor]


@dataclass
class TrainState:
    """Everything that the next step reads and that is not a function of the experiment.

    Attributes:
        step: optimizer steps done.
        model: parameters and buffers by name.
        optimizer: its tensors, named ``<kind>/<parameter>``; see :func:`optimizer_to_flat`.
        ema: moving average of the model by name; None when there is none.
        scalars: what is not a tensor, as plain JSON values: numbers, strings, lists and
            string-keyed dicts.
    """

    step: int
    model: Tensors
    optimizer: Tensors
    ema: Tensors | None
    scalars: dict[str, Json]

    def groups(self) -> dict[str, Tensors]:
        """Tensors by group, in a fixed order; no ``ema`` when there is none."""
        groups = {"model": self.model, "optimizer": self.optimizer}
        return groups if self.ema is None else {**groups, "ema": self.ema}


def encode(state: TrainState) -> dict[str, Iterable[Chunk]]:
    """Files of a state by name. Equal states give equal bytes.

    The tensors must stay as they are until the last piece has been taken.

    Raises:
        StorageError: a tensor or scalar that would not come back as it is.
    """
    files: dict[str, Iterable[Chunk]] = {}
    aliases: dict[str, dict[str, str]] = {}
    strides: dict[str, dict[str, list[int]]] = {}
    for group, tensors in state.groups().items():
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
                raise StorageError(
                    f"checkpoint: {group} tensor {name!r} is {tensor.dtype}, {tensor.layout}; "
                    f"only strided tensors of {', '.join(map(str, _DTYPES))} can be saved"
                )
        aliases[group] = _aliases(tensors)
        own = {name: t for name, t in tensors.items() if name not in aliases[group]}
        strides[group] = {
            name: list(t.stride()) for name, t in own.items() if _is_dense(t) and not _is_plain(t)
        }
        files[TENSOR_FILES[group]] = _SafetensorsFile(own)
    tree = {
        "format": FORMAT,
        "step": state.step,
        "scalars": _exact_json(state.scalars),
        "aliases": aliases,
        "strides": strides,
    }
    files[STATE_NAME] = [json.dumps(tree, sort_keys=True, indent=1, allow_nan=False).encode()]
    return files


def decode(files: Mapping[str, bytes]) -> TrainState:
    """Inverse of :func:`encode`; the bytes must have been verified.

    Raises:
        StorageError: a file is missing, or is none that was written here.
    """
    missing = {STATE_NAME, *(TENSOR_FILES[g] for g in ("model", "optimizer"))} - set(files)
    if missing:
        raise StorageError(f"checkpoint: {', '.join(sorted(missing))} missing")
    with _as_written():
        tree = _state_tree(files)
        groups = _tensor_groups(files, tree)
        return TrainState(
            step=tree["step"],
            model=groups["model"],
            optimizer=groups["optimizer"],
            ema=groups.get("ema"),
            scalars=tree["scalars"],
        )


def decode_weights(files: Mapping[str, bytes]) -> dict[str, Tensors]:
    """Tensors of the model, and of its average as ``ema`` if there is one, without the optimizer.

    Args:
        files: verified bytes of ``state.json`` and of the tensor files that are wanted.

    Raises:
        StorageError: a file is none that was written here.
    """
    with _as_written():
        return _tensor_groups(files, _state_tree(files))


@contextmanager
def _as_written() -> Iterator[None]:
    """Say of files whose digests are right, but that nothing here wrote, that they are damaged."""
    try:
        yield
    # A header of tensors that lies makes the library raise half a dozen classes.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"checkpoint: its files are not what this program writes ({type(error).__name__}: "
            f"{error}). Next: use another checkpoint of the run"
        ) from error


def _state_tree(files: Mapping[str, bytes]) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(files[STATE_NAME])
    if tree["format"] != FORMAT:
        raise StorageError(
            f"checkpoint: {STATE_NAME} has format {tree['format']!r}; this program reads {FORMAT}. "
            "Next: go on with the version of the program that wrote it"
        )
    return tree


def _tensor_groups(files: Mapping[str, bytes], tree: Mapping[str, Any]) -> dict[str, Tensors]:
    groups: dict[str, Tensors] = {}
    for group, file in TENSOR_FILES.items():
        if file not in files:
            continue
        try:
            tensors = safetensors.torch.load(files[file])
        except SafetensorError as error:
            raise StorageError(f"checkpoint: {file} is not a safetensors file: {error}") from error
        for name, stride in tree["strides"][group].items():
            source = tensors[name]
            tensors[name] = torch.empty_strided(source.shape, stride, dtype=source.dtype)
            tensors[name].copy_(source)
        for name, original in tree["aliases"][group].items():
            tensors[name] = tensors[original]
        groups[group] = tensors
    return groups


class _SafetensorsFile:
    """Bytes of a safetensors file, produced each time it is iterated over."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # Widest elements first keeps every tensor aligned, as the library itself does.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        self.tensors = [tensors[name] for name in order]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for name, tensor in zip(order, self.tensors, strict=True):
            end = begin + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head = struct.pack("<Q", len(text)) + text

    def __iter__(self) -> Iterator[Chunk]:
        yield self.head
        for tensor in self.tensors:
            view = _bytes_of(tensor)
            for start in range(0, len(view), CHUNK_BYTES):
                yield view[start : start + CHUNK_BYTES]


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order, without a copy if they lie so on the host."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy()
    return memoryview(raw)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gap or overlap, in any order of axes."""
    expected = 1
    axes = [(s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]
    for stride, size in sorted(axes):
        if stride != expected:
            return False
        expected *= size
    return True


def _is_plain(tensor: Tensor) -> bool:
    """Whether the strides are those of a fresh row-major tensor of this shape."""
    expected = 1
    for stride, size in zip(reversed(tensor.stride()), reversed(tensor.shape), strict=True):
        if stride != expected:
            return False
        expected *= max(size, 1)
    return True


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the same memory as another one, such as tied weights."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        original = first.setdefault(_place(tensor), name) if tensor.numel() else name
        if original != name:
            aliases[name] = original
    return aliases


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _exact_json(scalars: dict[str, Json]) -> dict[str, Json]:
    try:
        returned = json.loads(json.dumps(scalars, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StorageError(f"checkpoint: scalars are not JSON values: {error}") from error
    if returned != scalars:
        raise StorageError(
            "checkpoint: scalars would come back changed; use lists for tuples and strings as keys"
        )
    return scalars


class HostCopy:
    """Host memory that holds one state, allocated once and used again for every copy."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def take(self, state: TrainState) -> TrainState:
        """Copy ``state`` here; returns when the live tensors may be changed again.

        What is returned is valid until the next call. Tensors that share memory share it in the
        copy too.
        """
        kept: dict[tuple[str, str], Tensor] = {}
        last: dict[torch.device, tuple[Tensor, Tensor]] = {}
        copies: dict[str, Tensors] = {}
        for group, tensors in state.groups().items():
            aliases = _aliases(tensors)
            copy = copies[group] = {}
            for name, tensor in tensors.items():
                if name in aliases:
                    continue
                buffer = kept[group, name] = self._buffer((group, name), tensor)
                buffer.copy_(tensor, non_blocking=True)
                last[tensor.device] = (buffer, tensor)
                copy[name] = buffer
            copy.update({name: copy[original] for name, original in aliases.items()})
        # A device does the copies in the order they were asked for, so repeating the last one of
        # each, and waiting for that, waits for all.
        for device, (buffer, tensor) in last.items():
            if device.type != "cpu":
                buffer.copy_(tensor)
        self._buffers = kept
        return TrainState(
            step=state.step,
            model=copies["model"],
            optimizer=copies["optimizer"],
            ema=copies.get("ema"),
            scalars=json.loads(json.dumps(_exact_json(state.scalars))),
        )

    def _buffer(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        stride = tensor.stride() if _is_dense(tensor) else torch.empty_like(tensor).stride()
        buffer = self._buffers.get(key)
        if (
            buffer is not None
            and buffer.dtype == tensor.dtype
            and buffer.shape == tensor.shape
            and buffer.stride() == stride
        ):
            return buffer
        return torch.empty_strided(
            tensor.shape, stride, dtype=tensor.dtype, pin_memory=tensor.device.type != "cpu"
        )


def weights_digest(state: TrainState) -> str:
    """SHA-256, in hex, of the model alone: names, types, shapes and bytes."""
    return _digest({"model": state.model})


def state_digest(state: TrainState) -> str:
    """SHA-256, in hex, of model, optimizer and moving average; memory layout does not matter."""
    return _digest(state.groups())


def _digest(groups: Mapping[str, Tensors]) -> str:
    sha = hashlib.sha256()
    for group, tensors in sorted(groups.items()):
        for name in sorted(tensors):
            tensor = tensors[name]
            head = [group, name, str(tensor.dtype), list(tensor.shape)]
            sha.update(json.dumps(head).encode() + b"\n")
            sha.update(_bytes_of(tensor))
    return sha.hexdigest()


#: Tensors each optimizer may keep for a parameter. A state that holds others is not its own.
_OPTIMIZER_TENSORS: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
}


def _tensors_of(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    found = (known for kind, known in _OPTIMIZER_TENSORS.items() if isinstance(optimizer, kind))
    kinds = next(found, None)
    if kinds is None:
        allowed = ", ".join(kind.__name__ for kind in _OPTIMIZER_TENSORS)
        raise StorageError(
            f"checkpoint: the state of {type(optimizer).__name__} cannot be saved; allowed: "
            f"{allowed}"
        )
    return kinds


def optimizer_to_flat(
    optimizer: torch.optim.Optimizer, named_params: Iterable[tuple[str, Tensor]]
) -> Tensors:
    """An optimizer's tensors, live and not copied, named ``<kind>/<parameter>``.

    Args:
        optimizer: SGD or AdamW, at any moment of its life: before its first step it holds nothing.
        named_params: the model's parameters.
    """
    kinds = _tensors_of(optimizer)
    flat = {}
    for name, parameter in named_params:
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            if kind not in kinds or not isinstance(value, Tensor):
                raise StorageError(
                    f"checkpoint: {type(optimizer).__name__} keeps {kind!r} for {name}, which is "
                    f"not one of the tensors {', '.join(sorted(kinds))}"
                )
            flat[f"{kind}/{name}"] = value
    return flat


@torch.no_grad()
def optimizer_from_flat(
    optimizer: torch.optim.Optimizer,
    named_params: Iterable[tuple[str, Tensor]],
    flat: Mapping[str, Tensor],
) -> None:
    """Inverse of :func:`optimizer_to_flat`; what the optimizer held before is dropped.

    Raises:
        StorageError: tensors of another optimizer, or for parameters that the model lacks or that
            have another shape.
    """
    kinds = _tensors_of(optimizer)
    parameters = dict(named_params)
    group_of = {
        parameter: group for group in optimizer.param_groups for parameter in group["params"]
    }
    restored: dict[Tensor, dict[str, Tensor]] = {}
    for key, value in flat.items():
        kind, _, name = key.partition("/")
        parameter = parameters.get(name)
        if kind not in kinds or parameter is None or parameter not in group_of:
            raise StorageError(
                f"checkpoint: optimizer tensor {key!r} does not belong to this "
                f"{type(optimizer).__name__} and model. Next: go on with the optimizer and "
                "detector that the checkpoint was made with"
            )
        if kind != "step" and value.shape != parameter.shape:
            raise StorageError(
                f"checkpoint: optimizer tensor {key!r} has shape {tuple(value.shape)}, its "
                f"parameter {tuple(parameter.shape)}"
            )
        group = group_of[parameter]
        on_host = kind == "step" and not (group.get("capturable") or group.get("fused"))
        device = value.device if on_host else parameter.device
        # Layout as it was: kernels round differently on other strides.
        restored.setdefault(parameter, {})[kind] = value.to(device, copy=True)
    optimizer.state.clear()
    optimizer.state.update(restored)
