"""Reading files of weights: what is accepted, what is refused, and that nothing in them runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from detectors.weights.archives import UnsafeWeightsError, WeightsError, look_through
from detectors.weights.files import read_weights, write_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -2.0])}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
def test_a_torch_file_is_read_flat_or_one_level_down(
    key: str | None, legacy: bool, tmp_path: Path
) -> None:
    content = TENSORS if key is None else {key: TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}}
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    file = read_weights(path)
    assert file.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(file.tensors[name], TENSORS[name]) for name in TENSORS)
    assert not file.is_native


def test_a_foreign_safetensors_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    safetensors.torch.save_file(TENSORS, path)
    file = read_weights(path)
    assert torch.equal(file.tensors["a.weight"], TENSORS["a.weight"])
    assert not file.is_native


def test_own_files_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    shared = torch.ones(2)
    write_weights(path, {"x": shared, "y": shared}, {"class_names": ["dog", "Käse"]})
    file = read_weights(path)
    assert file.is_native
    assert file.metadata["class_names"] == '["dog", "Käse"]'
    assert file.tensors["x"].tolist() == file.tensors["y"].tolist() == [1.0, 1.0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.safetensors"]


def test_a_file_of_weights_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{'x' * 243}.safetensors"  # As long as a name may be.
    flushed: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        flushed.append((os.fstat(handle).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    write_weights(path, TENSORS, {})
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert read_weights(path).tensors.keys() == TENSORS.keys()


class _Runs:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"a": torch.ones(1), "b": _Runs(mark)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UnsafeWeightsError, match=r"would run code from it"):
        read_weights(path)
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UnsafeWeightsError, match="plain state dict"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, r"a mapping with the keys 'epoch', 'lr'"),
        ([1, 2], "a list"),
        ({}, "an empty mapping"),
    ],
)
def test_a_file_without_tensors_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(TENSORS, whole)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(WeightsError, match="download is complete"):
        read_weights(torn)
    cut = tmp_path / "cut.safetensors"
    safetensors.torch.save_file(TENSORS, whole)
    cut.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="damaged safetensors"):
        read_weights(cut)


def test_text_is_no_file_of_weights_and_a_missing_file_is_said_so(tmp_path: Path) -> None:
    text = tmp_path / "page.pth"
    text.write_text("<html>404</html>")
    with pytest.raises(WeightsError):
        read_weights(text)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "none.pth")


def test_numbers_that_begin_like_a_pickle_are_numbers(tmp_path: Path) -> None:
    # Any bytes may be a tensor's, those of a pickle that breaks off as well.
    begun = b"\x80\x02cposix\nsystem\n(X\xff\xff\xff\xffno pickle"
    values = torch.frombuffer(bytearray(begun), dtype=torch.uint8)
    path = tmp_path / "model.pth"
    torch.save({"weight": values}, path)
    look_through(path)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], values)


def test_a_whole_pickle_in_the_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(40, dtype=torch.uint8)}, path)
    hostile = b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."
    replaced = tmp_path / "replaced.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(replaced, "w") as new:
        for member in old.infolist():
            data = hostile if member.filename.endswith("/data/0") else old.read(member)
            new.writestr(member.filename, data)
    with pytest.raises(UnsafeWeightsError, match=r"posix\.system"):
        look_through(replaced)


def test_numbers_that_begin_like_an_archive_are_numbers(tmp_path: Path) -> None:
    values = torch.frombuffer(bytearray(b"PK\x03\x04 and no archive"), dtype=torch.uint8)
    path = tmp_path / "model.pth"
    torch.save({"weight": values}, path)
    assert torch.equal(read_weights(path).tensors["weight"], values)
