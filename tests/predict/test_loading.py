"""From a run, a checkpoint or weights to a detector, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.initial_weights import find_initial
from orchestrator.checkpoints.manifest import FileRecord, Manifest
from orchestrator.errors import (
    ConfigError,
    DataError,
    OrchestratorError,
    SecurityError,
    StorageError,
)
from orchestrator.predict.loading import load_detector
from orchestrator.storage.local import LocalStorage


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "ckpt").iterdir())


def test_a_run_gives_its_best_checkpoint_averaged(small_run):
    loaded = load_detector(small_run)
    outcome = json.loads((small_run / "result.json").read_text())
    assert str(loaded.source) == outcome["best_checkpoint"]
    stored = safetensors.torch.load_file(loaded.source / "ema.safetensors")
    state = loaded.model.state_dict()
    assert loaded.averaged
    assert loaded.step == int(loaded.source.name)
    assert set(stored) == set(state)
    assert all(torch.equal(stored[name], state[name]) for name in stored)
    assert not loaded.model.training
    assert loaded.label_map.names == ("dark", "bright")
    assert loaded.run_dir == small_run


def test_a_copied_run_stands_for_its_own_best_checkpoint_everywhere(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    store = CommitStore(LocalStorage(copy))
    store.attach_metrics(6, {"val/AP": 0.5})
    store.attach_metrics(12, {"val/AP": 0.1})
    store.wait()
    # As a run writes it that was interrupted, and as one that was copied has it.
    for content in ("", json.dumps({"best_checkpoint": str(small_run / "ckpt" / "000000012")})):
        (copy / "result.json").write_text(content)
        assert load_detector(copy).source == copy / "ckpt" / "000000006"
        assert Path(find_initial(str(copy)).path).parent == copy / "ckpt" / "000000006"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("METRICS.json", lambda file: file.unlink()),
        ("METRICS.json", lambda file: file.write_bytes(b"{")),
        ("ema.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-1])),
        ("ema.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\xff")),
    ],
    ids=["scores-gone", "scores-cut", "cut", "changed"],
)
def test_another_checkpoint_than_the_best_is_never_taken_in_silence(
    name, damage, small_run, tmp_path, caplog
):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    best = load_detector(copy).source
    assert not caplog.records
    damage(best / name)
    assert load_detector(copy).source != best
    assert f"{best.name} the best, which is gone or has lost its scores" in caplog.text
    assert (f"{best}: " in caplog.text) == (best / name).exists()


def test_plain_weights_on_request(small_run):
    last = checkpoints(small_run)[-1]
    loaded = load_detector(last, averaged=False)
    outcome = json.loads((small_run / "result.json").read_text())
    assert loaded.weights_sha256 == outcome["weights_sha256"]
    assert loaded.weights_sha256 != load_detector(last).weights_sha256


def test_a_step_of_a_run(small_run):
    first = checkpoints(small_run)[0]
    assert load_detector(small_run, step=int(first.name)).source == first
    with pytest.raises(StorageError, match=r"no checkpoint of step 99; there are 6, 12"):
        load_detector(small_run, step=99)


def test_a_copied_checkpoint_needs_its_experiment(small_run, tmp_path):
    copy = shutil.copytree(checkpoints(small_run)[-1], tmp_path / "best")
    with pytest.raises(ConfigError, match="--experiment"):
        load_detector(copy)
    loaded = load_detector(copy, experiment=small_run / "config" / "resolved.yaml")
    assert loaded.weights_sha256 == load_detector(checkpoints(small_run)[-1]).weights_sha256
    assert loaded.run_dir is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_weights(small_run, tmp_path, suffix):
    reference = load_detector(small_run)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": reference.model.state_dict()}, file)
    else:
        safetensors.torch.save_file(reference.model.state_dict(), file)
    loaded = load_detector(file, experiment=small_run / "config" / "resolved.yaml")
    assert loaded.weights_sha256 == reference.weights_sha256
    assert loaded.label_map == reference.label_map


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_wrapper_leaves_no_trace(small_run, tmp_path, prefix):
    reference = load_detector(small_run)
    wrapped = {prefix + name: value for name, value in reference.model.state_dict().items()}
    torch.save(wrapped, tmp_path / "w.pth")
    loaded = load_detector(tmp_path / "w.pth", experiment=small_run / "config" / "resolved.yaml")
    assert loaded.weights_sha256 == reference.weights_sha256


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value.mul(100).to(torch.int8), "is torch.int8, expected torch.float32"),
        (lambda value: value.to(torch.complex64), "is torch.complex64, expected torch.float32"),
        (lambda value: value * float("nan"), "holds NaN or infinity"),
        (lambda value: value.half() / 0, "holds NaN or infinity"),
    ],
    ids=["quantised", "complex", "NaN", "infinite"],
)
def test_numbers_that_mean_nothing_are_refused(small_run, tmp_path, change, problem):
    tensors = load_detector(small_run).model.state_dict()
    name = next(name for name in tensors if name.endswith("weight"))
    torch.save({**tensors, name: change(tensors[name])}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=f"{name}: {problem}"):
        load_detector(tmp_path / "w.pth", experiment=small_run / "config" / "resolved.yaml")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("label_map.json", b"{}"),
        ("label_map.json", b"\xff"),
        ("label_map.json", b'{"names": ["a", "b"], "ids": [1, 1e999]}'),
        ("label_map.json", b'{"names": [1, 2], "ids": [1, 2]}'),
        ("label_map.json", b'{"names": [], "ids": []}'),
        ("state.json", b"[1]"),
        ("state.json", b'{"format": 1}'),
        ("state.json", b"[" * 100_000),
        ("ema.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("ema.safetensors", b"<html>"),
    ],
)
def test_a_checkpoint_that_somebody_made_up_is_refused(small_run, tmp_path, name, content):
    """Its manifest is that of its files."""
    copy = shutil.copytree(checkpoints(small_run)[-1], tmp_path / "made")
    (copy / name).write_bytes(content)
    manifest = Manifest.from_bytes((copy / "MANIFEST.json").read_bytes())
    record = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    manifest = dataclasses.replace(manifest, files={**manifest.files, name: record})
    (copy / "MANIFEST.json").write_bytes(manifest.to_bytes())
    with pytest.raises(StorageError):
        load_detector(copy, experiment=small_run / "config" / "resolved.yaml")


def test_overrides_reach_the_experiment(small_run):
    loaded = load_detector(small_run, overrides=["detector.postprocess.nms=soft_linear"])
    assert loaded.resolved.experiment.detector.postprocess.nms == "soft_linear"


def test_a_flipped_bit_is_noticed(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "tiny")
    file = checkpoints(copy)[-1] / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"ema\.safetensors does not match its digest"):
        load_detector(checkpoints(copy)[-1])


def test_a_flipped_bit_is_noticed_where_the_file_is_named(small_run, tmp_path):
    copy = shutil.copytree(checkpoints(small_run)[-1], tmp_path / "copy")
    file, experiment = copy / "ema.safetensors", small_run / "config" / "resolved.yaml"
    assert load_detector(file, experiment=experiment).step is None
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="does not match its digest in MANIFEST"):
        load_detector(file, experiment=experiment)


def test_a_checkpoint_without_average(small_run, tmp_path):
    checkpoint = shutil.copytree(checkpoints(small_run)[-1], tmp_path / "c")
    manifest = checkpoint / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace("ema", "emb"))
    with pytest.raises(StorageError, match=r"MANIFEST\.json|does not match its own digest"):
        load_detector(checkpoint)


class _Evil:
    def __reduce__(self):
        return (Path("pwned").touch, ())


def test_a_pickle_is_not_run(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps({"a": _Evil()}))
    with pytest.raises(SecurityError, match=r"builtins\.getattr\. Reading it would run"):
        load_detector(file, experiment=small_run / "config" / "resolved.yaml")
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_detector_are_refused_by_name(small_run):
    with pytest.raises(StorageError, match=r"do not fit the detector.*\n.*has shape"):
        load_detector(small_run, overrides=["detector.width=0.2"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run, tmp: run.parent / "tini", "did you mean .*tiny"),
        (lambda run, tmp: tmp, "neither a run folder"),
        (
            lambda run, tmp: run / "result.json",
            "is neither a safetensors file nor",
        ),
    ],
)
def test_what_is_no_detector_is_refused(small_run, tmp_path, make, message):
    with pytest.raises(OrchestratorError, match=message):
        load_detector(make(small_run, tmp_path))


def test_a_step_of_something_else_is_refused(small_run):
    with pytest.raises(ConfigError, match="--step 3"):
        load_detector(checkpoints(small_run)[0], step=3)
