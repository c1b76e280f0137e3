"""MindSpore's ``.ckpt`` files, read without MindSpore.

Such a file is a message of Protocol Buffers, whose few fields are read here by hand, so that
nothing of it runs. Source of the schema: mindspore/ccsrc/utils/checkpoint.proto of
mindspore-ai/mindspore::

    Checkpoint   1: repeated Value
    Value        1: tag (name), 2: TensorProto
    TensorProto  1: repeated dims, 2: tensor_type, 3: tensor_content

A large tensor is cut into values of the same tag, one after the other, each with the shape of the
whole. A scalar has the shape (0,). Newer files may end in a checksum.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_TYPES = {
    "Int8": torch.int8,
    "UInt8": torch.uint8,
    "Uint8": torch.uint8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "Bool": torch.bool,
}
#: Of MindSpore's optimizers and training cells: no part of a network.
_OPTIMIZER = ("moments.", "moment1.", "moment2.", "accum.", "stat.", "momentum.")
_TRAINING = (
    "global_step",
    "learning_rate",
    "momentum",
    "beta1_power",
    "beta2_power",
    "scale_sense",
    "current_iterator_step",
    "last_overflow_iterator_step",
    "epoch_num",
    "step_num",
)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_TAG_BYTES = 1 << 10
#: ``crc_num``, and the checksum in ten bytes, big end first.
_CHECKSUM, _CHECKSUM_BYTES = b"crc_num", 17


class _Value(NamedTuple):
    """A tensor, or a piece of one."""

    tag: str
    dims: tuple[int, ...]
    kind: str
    content: memoryview


def looks_like_mindspore(path: Path) -> bool:
    """Whether a file begins with a value that begins with a name, as MindSpore writes it."""
    with path.open("rb") as file:
        head = memoryview(file.read(_MAX_TAG_BYTES + 32))
    try:
        if bytes(head[:1]) != b"\x0a":
            return False
        _, position = _varint(head, 1)
        if bytes(head[position : position + 1]) != b"\x0a":
            return False
        length, position = _varint(head, position + 1)
        name = bytes(head[position : position + length]).decode("ascii")
    except ValueError:
        return False  # No such number, or no such text.
    follows = bytes(head[position + length : position + length + 1]) == b"\x12"
    return 0 < length <= _MAX_TAG_BYTES and follows and name.isprintable()


def read_mindspore(path: Path) -> dict[str, Tensor]:
    """The tensors of a network by MindSpore's names; those of its optimizer are left out.

    Raises:
        ValueError: the file is damaged, or has a tensor of a type that torch does not know.
    """
    # From a bytearray, since torch wants memory that it may write to.
    data = memoryview(bytearray(path.read_bytes()))
    if bytes(data[-_CHECKSUM_BYTES:][: len(_CHECKSUM)]) == _CHECKSUM:
        data, end = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES + len(_CHECKSUM) :]
        if zlib.crc32(data) != int.from_bytes(end, "big"):
            raise ValueError(
                f"{path}: its bytes are not those that its checksum was taken of. Next: see that "
                "the download is complete"
            )
    try:
        pieces: dict[str, list[_Value]] = {}
        for value in _values(data):
            pieces.setdefault(value.tag, []).append(value)
        tensors = {tag: _tensor(found) for tag, found in pieces.items() if not _of_training(tag)}
    # RuntimeError: torch's, of a shape that no tensor has.
    except (ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{path}: a damaged MindSpore checkpoint ({error}). Next: see that the download is "
            "complete"
        ) from error
    if not tensors:
        raise ValueError(f"{path}: a MindSpore checkpoint without tensors of a network")
    return tensors


def _of_training(tag: str) -> bool:
    return tag.startswith(_OPTIMIZER) or tag in _TRAINING


def _tensor(pieces: list[_Value]) -> Tensor:
    first = pieces[0]
    kind = _TYPES.get(first.kind)
    if kind is None or any((p.dims, p.kind) != (first.dims, first.kind) for p in pieces):
        raise ValueError(f"{first.tag}: type {first.kind!r} is not read here")
    content = b"".join(piece.content for piece in pieces) if len(pieces) > 1 else first.content
    shape = () if first.dims in ((), (0,)) else first.dims
    size = math.prod(shape) * kind.itemsize
    if len(content) != size or min(shape, default=1) < 1:
        raise ValueError(f"{first.tag}: {len(content)} bytes for shape {shape} of {first.kind}")
    return torch.frombuffer(bytearray(content), dtype=kind).reshape(shape).clone()


def _values(data: memoryview) -> Iterator[_Value]:
    for field, body in _fields(data):
        if field != 1 or not isinstance(body, memoryview):
            raise ValueError(f"field {field} at the top")
        tag, tensor = "", None
        for inner, content in _fields(body):
            if inner == 1 and isinstance(content, memoryview):
                tag = _text(content)
            elif inner == 2 and isinstance(content, memoryview):
                tensor = content
        if not tag or tensor is None:
            raise ValueError(f"a value without {'tensor' if tag else 'name'}")
        yield _of_proto(tag, tensor)


def _of_proto(tag: str, data: memoryview) -> _Value:
    dims: list[int] = []
    kind, content = "", memoryview(b"")
    for field, body in _fields(data):
        if field == 1 and isinstance(body, int):
            dims.append(body)
        elif field == 1 and isinstance(body, memoryview):  # packed
            position = 0
            while position < len(body):
                dim, position = _varint(body, position)
                dims.append(dim)
        elif field == 2 and isinstance(body, memoryview):
            kind = _text(body)
        elif field == 3 and isinstance(body, memoryview):
            content = body
    return _Value(tag, tuple(dims), kind, content)


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"a name is no text ({error.reason})") from error


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of every field of a message.

    Source: https://protobuf.dev/programming-guides/encoding.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            number, position = _varint(data, position)
            yield field, number
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"{length} bytes announced, {len(data) - position} there")
        yield field, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes of seven bits each, least first, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise ValueError("a number without end")
