"""What a commit store promises while nothing goes wrong, and to whoever uses it wrongly."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints.codec import TrainState, state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from orchestrator.storage.local import LocalStorage, Storage
from orchestrator.storage.sealed import seal, unseal
from tests.support.commit_scenario import COMMIT_ARGUMENTS, STATES, next_state, save, steps_of
from tests.support.faulty_storage import FaultyStorage


def test_nothing_was_ever_committed(storage: Storage) -> None:
    store = CommitStore(storage)
    assert store.latest().commit is None
    assert store.latest().rejected == ()
    assert store.best() is None
    assert store.commits() == []
    assert store.sweep() == []


def test_a_commit_comes_back(storage: Storage) -> None:
    save(CommitStore(storage), 1, 2)
    store = CommitStore(storage)
    found = store.latest().commit
    assert found is not None
    assert found.step == 2
    assert found.metrics is None
    assert found.manifest.parent == 1
    assert found.manifest.config_digest == "c" * 64
    assert found.manifest.data_digest == "d" * 64
    assert set(found.manifest.files) == {
        "weights.safetensors",
        "optimizer.safetensors",
        "ema.safetensors",
        "state.json",
        "label_map.json",
    }
    for step in (1, 2):
        assert state_digest(store.load(step)) == state_digest(STATES[step])
        assert store.load(step).scalars == STATES[step].scalars


def test_files_are_read_by_name(storage: Storage) -> None:
    store = CommitStore(storage)
    save(store, 1)
    assert store.read_files(1, ["label_map.json"]) == {"label_map.json": b'{"a": 1}'}
    with pytest.raises(StorageError, match=r"has no config.yaml"):
        store.read_files(1, ["config.yaml"])
    with pytest.raises(StorageError, match="no checkpoint of step 7"):
        store.load(7)


def test_the_folder_looks_as_documented(tmp_path: Path) -> None:
    save(CommitStore(LocalStorage(tmp_path)), 1)
    folder = tmp_path / "ckpt" / "000000001"
    assert folder.is_dir()
    assert json.loads((folder / "MANIFEST.json").read_text())["step"] == 1
    assert json.loads((tmp_path / "COMMIT").read_text())["folder"] == "000000001"


def test_the_first_parent_is_none_and_a_resumed_one_is_what_was_loaded(storage: Storage) -> None:
    store = CommitStore(storage)
    save(store, 1, 2)
    resumed = CommitStore(storage)
    resumed.load(1)
    save(resumed, 3)
    assert [commit.manifest.parent for commit in resumed.commits()] == [None, 1, 1]


def test_the_same_content_may_be_committed_again(storage: Storage) -> None:
    save(CommitStore(storage), 1, 2)
    before = storage.list("ckpt")
    again = CommitStore(storage)
    save(again, 2)
    assert storage.list("ckpt") == before
    save(again, 3)
    assert again.commits()[-1].manifest.parent == 2


def test_other_content_of_a_committed_step_is_an_error(storage: Storage) -> None:
    store = CommitStore(storage)
    save(store, 1, 2)
    other = next_state(STATES[1])
    other.model["weight"] = other.model["weight"] + 1
    with pytest.raises(StorageError, match=r"other content \(weights.safetensors\)") as caught:
        store.save(other, **COMMIT_ARGUMENTS)
    assert "000000002" in str(caught.value)
    assert state_digest(store.load(2)) == state_digest(STATES[2])
    assert len(storage.list("ckpt")) == 2


def test_a_damaged_commit_of_the_same_step_is_replaced(storage: Storage, tmp_path: Path) -> None:
    store = CommitStore(storage)
    save(store, 1, 2)
    weights = next(iter(tmp_path.glob("run/ckpt/000000002*/weights.safetensors")))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    found = CommitStore(storage).latest()
    assert found.commit is not None
    assert found.commit.step == 1
    assert [item.reason for item in found.rejected] == [
        "weights.safetensors does not match its digest"
    ]
    assert "000000002" in found.rejected[0].describe()
    save(store, 2)
    latest = store.latest().commit
    assert latest is not None
    assert latest.step == 2
    assert state_digest(store.load(2)) == state_digest(STATES[2])


class TestMetrics:
    def test_they_belong_to_their_commit(self, storage: Storage) -> None:
        store = CommitStore(storage)
        save(store, 1, 2)
        store.attach_metrics(1, {"val/AP": 0.1 + 0.2, "val/AP50": 1.0})
        store.wait()
        metrics = [commit.metrics for commit in CommitStore(storage).commits()]
        assert metrics == [{"val/AP": 0.1 + 0.2, "val/AP50": 1.0}, None]

    def test_a_repeated_evaluation_replaces_them(self, storage: Storage) -> None:
        store = CommitStore(storage)
        save(store, 1)
        store.attach_metrics(1, {"val/AP": 0.5})
        store.attach_metrics(1, {"val/AP": 0.25})
        assert store.commits()[0].metrics == {"val/AP": 0.25}

    def test_a_step_without_commit_is_an_error(self, storage: Storage) -> None:
        store = CommitStore(storage)
        save(store, 1)
        store.attach_metrics(2, {"val/AP": 0.5})
        with pytest.raises(StorageError, match="metrics for step 2, which has no commit"):
            store.wait()

    def test_the_best_is_the_earliest_of_equals(self, storage: Storage) -> None:
        store = CommitStore(storage, keep_last=9)
        for step, value in {1: 0.3, 2: 0.5, 3: 0.5, 4: 0.1, 5: math.nan, 6: math.inf}.items():
            save(store, step)
            store.attach_metrics(step, {"val/AP": value})
        save(store, 7)
        best = store.best()
        assert best is not None
        assert best.step == 2
        assert best.metrics == {"val/AP": 0.5}
        smallest = CommitStore(storage, mode="min").best()
        assert smallest is not None
        assert smallest.step == 4
        assert CommitStore(storage, metric="val/AP75").best() is None

    def test_not_a_number_comes_back_as_such(self, storage: Storage) -> None:
        store = CommitStore(storage)
        save(store, 1)
        store.attach_metrics(1, {"a": math.nan, "b": -math.inf})
        metrics = store.commits()[0].metrics
        assert metrics is not None
        assert math.isnan(metrics["a"])
        assert metrics["b"] == -math.inf

    def test_damaged_ones_are_reported_and_the_commit_stays_usable(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        store = CommitStore(storage)
        save(store, 1)
        store.attach_metrics(1, {"val/AP": 0.5})
        store.wait()
        file = next(iter(tmp_path.glob("run/ckpt/*/METRICS.json")))
        file.write_bytes(file.read_bytes().replace(b"0.5", b"0.9"))
        found = store.latest()
        assert found.commit is not None
        assert found.commit.metrics is None
        assert [r.reason for r in found.rejected] == ["METRICS.json does not match its own digest"]
        assert store.best() is None

    def test_metrics_of_another_step_are_not_believed(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        store = CommitStore(storage)
        save(store, 1, 2)
        store.attach_metrics(1, {"val/AP": 0.9})
        store.wait()
        one, two = sorted(tmp_path.glob("run/ckpt/*"))
        shutil.copy(one / "METRICS.json", two / "METRICS.json")
        assert [c.metrics for c in store.commits()] == [{"val/AP": 0.9}, None]


class TestRefusals:
    def test_no_usable_commit_is_not_a_fresh_start(self, storage: Storage, tmp_path: Path) -> None:
        store = CommitStore(storage)
        save(store, 1, 2)
        for file in tmp_path.glob("run/ckpt/*/weights.safetensors"):
            file.write_bytes(b"")
        with pytest.raises(StorageError, match=r"no checkpoint of this run can be used") as caught:
            store.latest()
        message = str(caught.value)
        assert "000000001" in message
        assert "000000002" in message
        assert "weights.safetensors has 0 bytes, not" in message

    def test_a_commit_of_a_newer_program_is_refused_by_name(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        store = CommitStore(storage)
        save(store, 1, 2)
        file = next(iter(tmp_path.glob("run/ckpt/000000002*/MANIFEST.json")))
        file.write_bytes(seal("manifest", {**unseal("manifest", file.read_bytes()), "format": 2}))
        with pytest.raises(StorageError, match=r"000000002.*has format 2; this program reads 1"):
            store.latest()

    def test_a_manifest_cannot_name_files_elsewhere(self, storage: Storage, tmp_path: Path) -> None:
        store = CommitStore(storage)
        save(store, 1)
        file = next(iter(tmp_path.glob("run/ckpt/*/MANIFEST.json")))
        tree = unseal("manifest", file.read_bytes())
        tree["files"]["../../../outside"] = {"size": 1, "sha256": "0" * 64}
        file.write_bytes(seal("manifest", tree))
        with pytest.raises(StorageError, match=r"lists a file with the name '../../../outside'"):
            store.latest()


class TestPointer:
    def test_it_is_a_hint_only(self, storage: Storage, tmp_path: Path) -> None:
        store = CommitStore(storage)
        save(store, 1, 2)

        def pointer(**fields: object) -> bytes:
            return seal("pointer", fields)

        for content in (b"", b"garbage", pointer(folder="000000001"), pointer(folder=3)):
            (tmp_path / "run" / "COMMIT").write_bytes(content)
            latest = CommitStore(storage).latest().commit
            assert latest is not None
            assert latest.step == 2
        (tmp_path / "run" / "COMMIT").unlink()
        assert steps_of(CommitStore(storage)) == [1, 2]

    def test_it_finds_what_a_stale_listing_does_not_show(self, storage: Storage) -> None:
        save(CommitStore(storage), 1, 2)

        class Stale(FaultyStorage):
            def list(self, key: str) -> list:  # type: ignore[type-arg]
                entries = super().list(key)
                return [e for e in entries if key != "ckpt" or "000000002" not in e.name]

        latest = CommitStore(Stale(storage)).latest().commit
        assert latest is not None
        assert latest.step == 2


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    store = CommitStore(LocalStorage(tmp_path), keep_last=9)
    for step in (999_999_999, 1_000_000_000, 5):
        tensor = {"w": torch.tensor(float(step))}
        store.save(TrainState(step, tensor, {}, None, {}), **COMMIT_ARGUMENTS)
    latest = store.latest().commit
    assert latest is not None
    assert latest.step == 1_000_000_000
    assert steps_of(store) == [5, 999_999_999, 1_000_000_000]
