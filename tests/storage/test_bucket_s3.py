"""Commits in a bucket, over the S3 protocol."""

from __future__ import annotations

import pytest

from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from orchestrator.storage.bucket import ObjectStorage, open_storage
from tests.support.buckets import fresh_location
from tests.support.commit_scenario import COMMIT_ARGUMENTS, POLICY, scenario, scores, states
from tests.support.faulty_storage import FaultyStorage


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    storage = open_storage(fresh_location(monkeypatch))
    assert isinstance(storage, ObjectStorage)
    return storage


def test_a_run_is_committed_scored_collected_and_found_again(bucket: ObjectStorage) -> None:
    store = CommitStore(bucket, **POLICY)
    assert store.latest().commit is None
    for step, state in states(9).items():
        store.save_async(state, **COMMIT_ARGUMENTS)
        store.attach_metrics(step, scores(step))
    store.close()
    again = CommitStore(bucket, **POLICY)
    assert again.sweep() == []
    assert [commit.step for commit in again.commits()] == [6, 8, 9]
    for step in (6, 8, 9):
        assert state_digest(again.load(step)) == state_digest(states(9)[step])
    best = again.best()
    assert best is not None
    assert best.step == 6
    assert best.path.startswith("s3://runs/")
    assert [entry.name for entry in bucket.list("")] == ["COMMIT", "ckpt"]
    assert len(bucket.list("ckpt")) == 3


def test_a_damaged_object_is_noticed(bucket: ObjectStorage) -> None:
    store = CommitStore(bucket, **POLICY)
    for step in (1, 2):
        store.save(states(2)[step], **COMMIT_ARGUMENTS)
    latest = store.latest().commit
    assert latest is not None
    content = bucket.read_file(f"{latest.key}/weights.safetensors", limit=10**6)
    bucket.write_file(f"{latest.key}/weights.safetensors", [content[:-1] + b"!"])
    found = store.latest()
    assert found.commit is not None
    assert found.commit.step == 1
    assert [item.reason for item in found.rejected] == [
        "weights.safetensors does not match its digest"
    ]


def test_an_upload_that_fails_anywhere_leaves_the_run_usable(bucket: ObjectStorage) -> None:
    store = CommitStore(bucket, **POLICY)
    for step in (1, 2, 3):
        store.save(states(3)[step], **COMMIT_ARGUMENTS)
    counting = FaultyStorage(bucket)
    scenario(counting)
    for number in range(0, len(counting.calls), 5):
        broken = FaultyStorage(bucket, strike_at=number, lasting=True)
        try:
            scenario(broken)
        except StorageError as error:
            assert "Next:" in str(error)  # noqa: PT017
        store = CommitStore(bucket, **POLICY)
        store.sweep()
        for commit in store.commits():
            assert state_digest(store.load(commit.step)) == state_digest(states(4)[commit.step])
        latest = store.latest().commit
        assert latest is not None
        assert latest.step == 4
