"""What a commit store does besides committing: writing beside training, deleting, cleaning up."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoints import commit_thread
from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from orchestrator.storage.address import StoreError
from orchestrator.storage.local import LocalStorage, OpenFile, Storage
from tests.support.commit_scenario import COMMIT_ARGUMENTS, STATES, next_state, save, steps_of
from tests.support.faulty_storage import BucketStorage, FaultyStorage


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

    def test_what_others_delete_is_told_from_what_retention_does(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        store = CommitStore(storage, keep_last=2, keep_best=1)
        store.sweep()
        save(store, 1, 2, 3, 4)
        store.require_kept()
        (mine,) = tmp_path.glob("run/ckpt/000000003*")
        shutil.rmtree(mine)
        with pytest.raises(StorageError, match="the checkpoint of step 3 of this run is gone"):
            store.require_kept()
        with pytest.raises(StorageError, match="the checkpoint of step 3 of this run is gone"):
            save(store, 5)
        # Whoever comes next knows nothing of it, and goes on.
        fresh = CommitStore(storage, keep_last=2, keep_best=1)
        fresh.sweep()
        save(fresh, 6)
        assert steps_of(fresh) == [5, 6]


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
        assert isinstance(store._thread._pending[0].exception(20.0), StorageError)
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


class TestAStoreThatDoesNotAnswer:
    """A bucket behind a network: the client gives up after seconds, and the run does not."""

    class Absent(BucketStorage):
        def __init__(self, path: Path, said: str, times: int) -> None:
            super().__init__(path)
            self.said, self.left, self.tries = said, times, 0

        def create(self, key: str) -> OpenFile:
            self.tries += 1
            if self.left:
                self.left -= 1
                raise StoreError(f"When initiating upload: AWS Error {self.said}", f"s3://b/{key}")
            return super().create(key)

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commit_thread, "_WAITS", (0.0, 0.0, 0.0))

    def test_it_is_asked_again_beside_the_steps(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        storage = self.Absent(tmp_path / "bucket", "NETWORK_CONNECTION: curlCode: 28", 3)
        brought: list[int] = []
        store = CommitStore(storage, beside=lambda: brought.append(1))
        store.save_async(STATES[1], **COMMIT_ARGUMENTS)
        store.attach_metrics(1, {"val/AP": 0.5})
        store.close()
        latest = CommitStore(storage).latest().commit
        assert latest is not None
        assert latest.metrics == {"val/AP": 0.5}
        assert state_digest(store.load(1)) == state_digest(STATES[1])
        assert caplog.text.count("trying again in 0 s") == 3
        # What belongs to the commit went before it, and nothing of the tries is left.
        assert brought == [1, 1]
        store.sweep()
        assert len(storage.list("ckpt")) == 1

    @pytest.mark.parametrize(
        ("said", "tries"), [("NETWORK_CONNECTION", 4), ("ACCESS_DENIED: no", 1)]
    )
    def test_it_is_given_up_at_last(self, said: str, tries: int, tmp_path: Path) -> None:
        storage = self.Absent(tmp_path / "bucket", said, 99)
        store = CommitStore(storage)
        store.save_async(STATES[1], **COMMIT_ARGUMENTS)
        with pytest.raises(StorageError, match=f"cannot commit step 1.*{said}"):
            store.wait()
        assert storage.tries == tries
