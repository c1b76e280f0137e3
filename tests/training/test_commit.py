"""What a commit store promises while nothing goes wrong, and to whoever uses it wrongly."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commit_scenario import COMMIT_ARGUMENTS, next_state, states
from faulty_storage import BucketStorage, FaultyStorage, QuickStorage

from orchestrator.errors import StorageError
from orchestrator.training.codec import TrainState, state_digest
from orchestrator.training.commit import CommitStore
from orchestrator.training.manifest import seal, unseal
from orchestrator.training.storage import LocalStorage, OpenFile, Storage

STATES = states(12)


@pytest.fixture(params=[QuickStorage, BucketStorage], ids=["local", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path / "run")


def save(store: CommitStore, *steps: int) -> None:
    for step in steps:
        store.save(STATES[step], **COMMIT_ARGUMENTS)


def steps_of(store: CommitStore) -> list[int]:
    return [commit.step for commit in store.commits()]


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


class TestRetention:
    def test_the_newest_and_the_best_stay(self, storage: Storage) -> None:
        store = CommitStore(storage, keep_last=3, keep_best=2)
        for step in range(1, 11):
            save(store, step)
            store.attach_metrics(step, {"val/AP": {2: 0.9, 4: 0.8, 5: 0.7}.get(step, 0.1)})
        store.collect()
        assert steps_of(store) == [2, 4, 8, 9, 10]
        for step in (2, 4, 8, 9, 10):
            assert state_digest(store.load(step)) == state_digest(STATES[step])

    def test_without_scores_only_the_newest_stay(self, storage: Storage) -> None:
        store = CommitStore(storage, keep_last=2, keep_best=5)
        save(store, *range(1, 8))
        assert steps_of(store) == [6, 7]

    def test_two_verified_commits_outlive_any_policy(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        store = CommitStore(storage, keep_last=1, keep_best=1)
        save(store, 1, 2, 3)
        assert steps_of(store) == [2, 3]
        # A damaged one does not count.
        for file in tmp_path.glob("run/ckpt/000000003*/weights.safetensors"):
            file.write_bytes(file.read_bytes()[:-1] + b"!")
        fresh = CommitStore(storage, keep_last=1, keep_best=1)
        save(fresh, 4)
        assert steps_of(fresh) == [2, 4]
        latest = fresh.latest().commit
        assert latest is not None
        assert latest.step == 4

    def test_nothing_is_deleted_while_fewer_than_two_can_be_read(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        save(CommitStore(storage, keep_last=9), 1, 2, 3, 4)
        for step in (1, 2, 3):
            for file in tmp_path.glob(f"run/ckpt/00000000{step}*/state.json"):
                file.write_bytes(file.read_bytes()[:-1] + b"!")
        store = CommitStore(storage, keep_last=1, keep_best=1)
        store.collect()
        store.wait()
        assert len(storage.list("ckpt")) == 4


class TestAsync:
    class Gated(FaultyStorage):
        """Holds every write until the gate opens."""

        def __init__(self, inner: Storage) -> None:
            super().__init__(inner)
            self.gate = threading.Event()
            self.reached = threading.Event()

        def write(self, file: OpenFile, data: bytes | memoryview) -> None:
            self.reached.set()
            assert self.gate.wait(20.0)
            super().write(file, data)

    @pytest.fixture
    def gated(self, storage: Storage) -> Iterator[Gated]:
        gated = self.Gated(storage)
        yield gated
        gated.gate.set()

    def test_training_goes_on_while_it_is_written(self, gated: Gated) -> None:
        store = CommitStore(gated)
        live = next_state(STATES[1])
        expected = state_digest(live)
        store.save_async(live, **COMMIT_ARGUMENTS)
        assert gated.reached.wait(20.0)
        # The write has begun and cannot end, yet we are here and the next step changes weights.
        live.model["weight"].zero_()
        live.optimizer["momentum_buffer/weight"].fill_(7.0)
        live.scalars["metrics"].append(0.0)
        assert CommitStore(gated.inner).latest().commit is None
        gated.gate.set()
        store.wait()
        loaded = store.load(2)
        assert state_digest(loaded) == expected
        assert loaded.scalars == STATES[2].scalars

    def test_the_next_one_waits_for_it(self, gated: Gated) -> None:
        store = CommitStore(gated)
        store.save_async(STATES[1], **COMMIT_ARGUMENTS)
        assert gated.reached.wait(20.0)
        second = threading.Thread(
            target=lambda: store.save_async(STATES[2], **COMMIT_ARGUMENTS), daemon=True
        )
        second.start()
        second.join(0.2)
        assert second.is_alive()
        gated.gate.set()
        second.join(20.0)
        assert not second.is_alive()
        assert steps_of(store) == [1, 2]
        for step in (1, 2):
            assert state_digest(store.load(step)) == state_digest(STATES[step])

    def test_readers_wait_for_what_was_asked_for(self, storage: Storage) -> None:
        store = CommitStore(storage, keep_last=2, keep_best=1)
        for step in range(1, 8):
            store.save_async(STATES[step], **COMMIT_ARGUMENTS)
            store.attach_metrics(step, {"val/AP": 1.0 / step})
        latest, best = store.latest().commit, store.best()
        assert latest is not None
        assert latest.step == 7
        assert best is not None
        assert best.step == 1
        assert steps_of(store) == [1, 6, 7]

    @pytest.mark.parametrize("caller", ["save_async", "attach_metrics", "latest", "wait", "best"])
    def test_an_error_surfaces_at_the_next_call_and_once(
        self, storage: Storage, caller: str
    ) -> None:
        save(CommitStore(storage), 1)
        broken = FaultyStorage(storage, strike_at=6, code=28)
        store = CommitStore(broken)
        store.save_async(STATES[2], **COMMIT_ARGUMENTS)
        assert isinstance(store._pending[0].exception(20.0), StorageError)
        calls = {
            "save_async": lambda: store.save_async(STATES[3], **COMMIT_ARGUMENTS),
            "attach_metrics": lambda: store.attach_metrics(2, {"val/AP": 1.0}),
            "latest": store.latest,
            "wait": store.wait,
            "best": store.best,
        }
        with pytest.raises(StorageError, match=r"cannot commit step 2.*No space left"):
            calls[caller]()
        store.wait()
        latest = store.latest().commit
        assert latest is not None
        assert latest.step == 1
        store.save_async(STATES[2], **COMMIT_ARGUMENTS)
        store.close()
        assert steps_of(store) == [1, 2]

    def test_metrics_of_a_failed_commit_do_not_hide_its_cause(self, storage: Storage) -> None:
        store = CommitStore(FaultyStorage(storage, strike_at=5, code=28))
        store.save_async(STATES[1], **COMMIT_ARGUMENTS)
        with pytest.raises(StorageError, match="No space left"):  # noqa: PT012
            # The failure may be noticed when metrics are handed over, or when waiting for them.
            store.attach_metrics(1, {"val/AP": 1.0})
            store.wait()
        store.close()

    def test_no_thread_stays_behind(self, storage: Storage) -> None:
        before = threading.active_count()
        for step in range(1, 6):
            store = CommitStore(storage)
            store.save_async(STATES[step], **COMMIT_ARGUMENTS)
            store.close()
        assert threading.active_count() == before


class TestFence:
    def test_who_lost_the_run_publishes_nothing(self, storage: Storage) -> None:
        save(CommitStore(storage), 1)

        def lost() -> None:
            raise StorageError("shut out")

        store = CommitStore(storage, fence=lost)
        store.attach_metrics(1, {"val/AP": 1.0})
        for attempt in (store.wait, lambda: save(store, 2), store.sweep):
            with pytest.raises(StorageError, match="shut out"):
                attempt()
        found = CommitStore(storage).latest().commit
        assert found is not None
        assert (found.step, found.metrics) == (1, None)
        assert len(storage.list("ckpt")) == 1

    def test_losing_it_while_writing_is_noticed_before_the_commit(self, tmp_path: Path) -> None:
        calls = []

        def fence() -> None:
            calls.append(1)
            if len(calls) == 2:  # Before the manifest all was well, before the rename it is not.
                raise StorageError("shut out")

        store = CommitStore(LocalStorage(tmp_path), fence=fence)
        with pytest.raises(StorageError, match="shut out"):
            save(store, 1)
        assert list((tmp_path / "ckpt").iterdir()) == []

    def test_nothing_old_is_deleted_either(self, storage: Storage) -> None:
        save(CommitStore(storage, keep_last=9), *range(1, 6))

        def lost() -> None:
            raise StorageError("shut out")

        store = CommitStore(storage, keep_last=2, keep_best=1, fence=lost)
        store.collect()
        with pytest.raises(StorageError, match="shut out"):
            store.wait()
        assert len(storage.list("ckpt")) == 5


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


class TestSweep:
    def test_leftovers_go_and_commits_stay(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        store = CommitStore(storage)
        save(store, 1, 2)
        unfinished = tmp_path / "ckpt" / ("000000003.tmp-" + "a" * 32)
        shutil.copytree(tmp_path / "ckpt" / "000000002", unfinished)
        (tmp_path / ("COMMIT.tmp-" + "b" * 32)).write_bytes(b"x")
        (tmp_path / "ckpt" / "000000002" / ("METRICS.json.tmp-" + "c" * 32)).write_bytes(b"x")
        (tmp_path / "ckpt" / "notes of mine").mkdir()
        assert store.sweep() == []
        assert [p for p in tmp_path.rglob("*") if ".tmp-" in p.name] == []
        assert (tmp_path / "ckpt" / "notes of mine").is_dir()
        assert steps_of(store) == [1, 2]

    def test_torn_commits_are_moved_away_and_few_are_kept(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        store = CommitStore(storage, keep_last=9)
        save(store, *range(1, 7))
        for step in (2, 3, 4, 5):
            (tmp_path / "ckpt" / f"{step:09d}" / "state.json").unlink()
        swept = store.sweep()
        assert [item.reason for item in swept] == ["state.json is missing"] * 4
        assert steps_of(store) == [1, 6]
        held = sorted(path.name[:9] for path in (tmp_path / "quarantine").iterdir())
        assert held == ["000000004", "000000005"]

    def test_a_commit_that_cannot_be_read_just_now_is_left_alone(self, storage: Storage) -> None:
        save(CommitStore(storage), 1, 2)

        class Unreadable(FaultyStorage):
            def read(self, key: str) -> Iterator[bytes]:
                if "000000002" in key:
                    raise OSError(5, "Input/output error")
                return super().read(key)

        store = CommitStore(Unreadable(storage))
        assert store.sweep() == []
        found = store.latest()
        assert found.commit is not None
        assert found.commit.step == 1
        assert "Input/output error" in found.rejected[0].reason
        assert steps_of(CommitStore(storage)) == [1, 2]

    def test_an_upload_that_was_cut_off_is_no_commit(self, tmp_path: Path) -> None:
        storage = BucketStorage(tmp_path / "run")
        store = CommitStore(storage)
        save(store, 1)
        torn = tmp_path / "run" / "ckpt" / ("000000002-" + "0" * 32)
        torn.mkdir()
        (torn / "weights.safetensors").write_bytes(b"half of it")
        found = store.latest()
        assert found.commit is not None
        assert found.commit.step == 1
        assert found.rejected == ()
        assert store.sweep() == []
        assert not torn.exists()


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    store = CommitStore(LocalStorage(tmp_path), keep_last=9)
    for step in (999_999_999, 1_000_000_000, 5):
        tensor = {"w": torch.tensor(float(step))}
        store.save(TrainState(step, tensor, {}, None, {}), **COMMIT_ARGUMENTS)
    latest = store.latest().commit
    assert latest is not None
    assert latest.step == 1_000_000_000
    assert steps_of(store) == [5, 999_999_999, 1_000_000_000]
