"""Who holds a run in a bucket: one at a time, and a dead holder is found out."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.storage import bucket as object_storage
from orchestrator.storage import bucket_lock
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.lease import HeldError, Holder
from orchestrator.storage.sealed import seal
from tests.support.faulty_storage import BucketStorage

LOCATION = "s3://bucket/run"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketStorage:
    storage = BucketStorage(tmp_path / "bucket")
    monkeypatch.setattr(object_storage, "_opened", lambda location: storage)
    return storage


def lock(**settings: Any) -> BucketLock:
    return BucketLock(LOCATION, **{"heartbeat": 0.05, "patience": 0.5, **settings})


def leave(bucket: BucketStorage, token: int, **changes: Any) -> str:
    """A lease that another process has left, and the key of its sign of life."""
    holder = replace(Holder.this_process(), **changes)
    bucket.make_dir("lock")
    name = f"{token:09d}-{'a' * 32}"
    bucket.write_file(f"lock/beat-{name}", [b"7"])
    bucket.write_file(f"lock/lease-{name}.json", [seal("lease", asdict(holder))])
    return f"lock/beat-{name}"


def names(bucket: BucketStorage) -> list[str]:
    return [entry.name.partition("-")[0] for entry in bucket.list("lock")]


def test_a_run_is_held_by_one_and_can_be_given_on(bucket: BucketStorage) -> None:
    with lock() as first:
        with pytest.raises(HeldError, match=r"in use by process \d+ on .*Next: wait"):
            lock().acquire()
        first.fence()()
    with lock() as second:
        assert second.fence().token == first_token(bucket)
        assert names(bucket) == ["beat", "lease"]


def first_token(bucket: BucketStorage) -> int:
    (lease,) = [entry.name for entry in bucket.list("lock") if entry.name.startswith("lease")]
    return int(lease.split("-")[1])


def test_a_holder_that_was_killed_here_is_replaced_at_once(bucket: BucketStorage) -> None:
    # Linux gives no process a number beyond 2**22.
    leave(bucket, 4, pid=2**22 + 1)
    with lock(patience=600.0) as mine:
        assert mine.fence().token == 5


def test_a_holder_elsewhere_is_replaced_when_it_stands_still(bucket: BucketStorage) -> None:
    leave(bucket, 4, boot="another machine")
    with lock() as mine:
        assert mine.fence().token == 5
        assert names(bucket) == ["beat", "lease"]


def test_a_holder_elsewhere_that_lives_is_never_robbed(bucket: BucketStorage) -> None:
    beat = leave(bucket, 4, boot="another machine")
    over = threading.Event()

    def live() -> None:
        count = 8
        while not over.wait(0.05):
            bucket.write_file(beat, [b"%d" % count])
            count += 1

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(HeldError, match="in use by process"):
            lock(patience=30.0).acquire()
    finally:
        over.set()
        thread.join()


def test_who_was_robbed_is_shut_out(bucket: BucketStorage) -> None:
    ghost = lock(heartbeat=3600.0)
    ghost.acquire()
    fence = ghost.fence()
    leave(bucket, fence.token + 1)
    for act in (fence, ghost.advance):
        with pytest.raises(StorageError, match=r"was shut out: the run now belongs to process"):
            act()
    ghost.release()


def test_a_new_attempt_shuts_out_the_workers_of_the_one_before(bucket: BucketStorage) -> None:
    with lock() as mine:
        before = mine.fence()
        after = mine.advance()
        after()
        with pytest.raises(StorageError, match="shut out"):
            before()
        with pytest.raises(HeldError):
            lock().acquire()


def test_a_lease_that_was_deleted_stops_its_holder(bucket: BucketStorage) -> None:
    """By a rule of the bucket, which deletes what is old; the next driver would begin to count."""
    with lock() as mine:
        mine.advance()
        fence = mine.advance()
        assert fence.token == 3
        for entry in bucket.list("lock"):
            bucket.unlink(f"lock/{entry.name}")
        with pytest.raises(StorageError, match=r"/lock: the lease of this run is gone.*Next: take"):
            fence()
        with lock() as another:
            assert another.fence().token == 1
            another.fence()()
            with pytest.raises(StorageError, match="the lease of this run is gone"):
                fence()


def test_a_thread_beside_an_advance_is_not_shut_out_by_it(
    bucket: BucketStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What brings records to the bucket asks at any time whether the run is still this one's."""
    troubles: list[Exception] = []
    asked: list[threading.Thread] = []
    write = bucket_lock.write_lease

    def check() -> None:
        try:
            mine.require_held()
        except StorageError as error:
            troubles.append(error)

    def written(storage: Any, lease: str) -> None:
        write(storage, lease)
        if asked or lock_is_new:
            return
        asked.append(threading.Thread(target=check))
        asked[0].start()
        asked[0].join(0.5)  # It has to wait; without that it would be done by now.

    monkeypatch.setattr(bucket_lock, "write_lease", written)
    lock_is_new = True
    with lock() as mine:
        lock_is_new = False
        mine.advance()
        asked[0].join()
    assert troubles == []


@pytest.mark.parametrize("seed", range(5))
def test_of_many_that_start_at_once_one_wins(bucket: BucketStorage, seed: int) -> None:
    locks = [lock(patience=5.0) for _ in range(4)]
    start = threading.Barrier(len(locks))
    won: list[BucketLock] = []

    def take(one: BucketLock) -> None:
        start.wait()
        try:
            one.acquire()
        except HeldError:
            return
        won.append(one)

    threads = [threading.Thread(target=take, args=(one,)) for one in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].fence()()
    won[0].release()


def test_a_bucket_that_does_not_answer_is_said_to(
    bucket: BucketStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(key: str) -> Any:
        raise OSError("curlCode: 7, Couldn't connect to server")

    monkeypatch.setattr(bucket, "list", fails)
    with pytest.raises(StorageError, match=r"cannot lock the run: curlCode: 7.*Next: see that the"):
        lock().acquire()
