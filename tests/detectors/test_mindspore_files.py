"""MindSpore's checkpoints: bytes put together by the schema, byte for byte, and damaged ones."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.weights.files import WeightsError, read_weights


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes: number and wire type 2, the length, the bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def value(tag: str, dims: list[int], kind: str, content: bytes, *, packed: bool = False) -> bytes:
    numbers = (
        field(1, b"".join(map(varint, dims)))
        if packed
        else b"".join(varint(1 << 3) + varint(dim) for dim in dims)
    )
    tensor = numbers + field(2, kind.encode()) + field(3, content)
    return field(1, field(1, tag.encode()) + field(2, tensor))


WEIGHT = np.arange(600, dtype="<f4").reshape(20, 30)


def checkpoint() -> bytes:
    return b"".join(
        [
            value("network.a.weight", [20, 30], "Float32", WEIGHT.tobytes()),
            value("network.a.gamma", [2], "Float16", np.array([1.5, -2], "<f2").tobytes()),
            value("network.count", [0], "Int32", np.array([7], "<i4").tobytes()),
            value("network.b.weight", [4, 3], "Float64", np.arange(8, dtype="<f8").tobytes()),
            value("network.b.weight", [4, 3], "Float64", np.arange(8, 12, dtype="<f8").tobytes()),
            value("network.c", [2, 1], "BFloat16", b"\x80\x3f\x00\xc0", packed=True),
            value("moments.network.a.weight", [20, 30], "Float32", WEIGHT.tobytes()),
            value("global_step", [1], "Int32", np.array([90], "<i4").tobytes()),
        ]
    )


def test_the_first_bytes_are_those_of_the_schema() -> None:
    # Worked out by hand from protobuf.dev/programming-guides/encoding.
    expected = "0a18 0a0177 1213 0802 0801 1207466c6f61743332 1a0400000000"
    assert value("w", [2, 1], "Float32", bytes(4)) == bytes.fromhex(expected)


def test_a_file_that_mindspore_wrote(tmp_path: Path) -> None:
    # mindspore 2.10.0: save_checkpoint([{"name": "network.w", "data": Tensor([[1.5], [-2.0]])},
    # {"name": "n", "data": Tensor(7)}, {"name": "moments.network.w", ...}], crc_check=True)
    file = tmp_path / "tiny.ckpt"
    file.write_bytes(
        bytes.fromhex(
            "0a240a096e6574776f726b2e771217080208011207466c6f617433321a080000c03f000000c0"
            "0a120a016e120d1205496e7433321a0407000000"
            "0a2c0a116d6f6d656e74732e6e6574776f726b2e771217080208011207466c6f617433321a08"
            "0000000000000000"
            "6372635f6e756d000000000000a8955906"
        )
    )
    found = read_weights(file).tensors
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "network.w": [[1.5], [-2.0]],
        "n": 7,
    }


def test_every_tensor_of_the_network_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ssd.ckpt"
    file.write_bytes(checkpoint())
    found = read_weights(file).tensors
    assert list(found) == [
        "network.a.weight",
        "network.a.gamma",
        "network.count",
        "network.b.weight",
        "network.c",
    ]
    assert torch.equal(found["network.a.weight"], torch.from_numpy(WEIGHT))
    assert found["network.a.gamma"].tolist() == [1.5, -2.0]
    assert found["network.a.gamma"].dtype == torch.float16
    assert found["network.count"].shape == ()
    assert found["network.count"].item() == 7
    # Two pieces of one tensor, as large ones are written.
    assert found["network.b.weight"].tolist() == np.arange(12.0).reshape(4, 3).tolist()
    assert found["network.c"].tolist() == [[1.0], [-2.0]]


def test_a_checksum_is_looked_at(tmp_path: Path) -> None:
    data = checkpoint()
    end = b"crc_num" + zlib.crc32(data).to_bytes(10, "big")
    (tmp_path / "a.ckpt").write_bytes(data + end)
    assert len(read_weights(tmp_path / "a.ckpt").tensors) == 5
    (tmp_path / "b.ckpt").write_bytes(data.replace(b"Float16", b"Float61", 1) + end)
    with pytest.raises(WeightsError, match="its checksum was taken of"):
        read_weights(tmp_path / "b.ckpt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (checkpoint()[:-3], r"bytes announced, \d+ there"),
        (checkpoint() + b"\x0a", "ends within a number"),
        (checkpoint() + b"\x0b", "unknown wire type 3"),
        (checkpoint() + b"\x0a" + b"\xff" * 11, "a number without end"),
        (value("w", [3], "Float32", bytes(8)), r"w: 8 bytes for shape \(3,\) of Float32"),
        (value("w", [2], "Complex64", bytes(16)), "type 'Complex64' is not read here"),
        (value("w", [1 << 62, 4], "Float32", bytes(8)), "w: 8 bytes for shape"),
        (value("global_step", [1], "Int32", bytes(4)), "without tensors of a network"),
        (value("w", [1], "Int8", b"1") + field(1, field(1, b"x")), "a value without tensor"),
        (value("w", [1], "Int8", b"1") + field(2, b"x"), "field 2 at the top"),
    ],
    ids=range(10),
)
def test_damage_is_an_error(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "damaged.ckpt"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        read_weights(file)
