"""The actor beside the driver, as Ray runs it: answers, errors as they were, and its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.cluster.connection import connected
from orchestrator.cluster.control import DriverLostError, RelayedStorage, start_control
from orchestrator.cluster.nodes import alive_nodes, leave_note, read_note
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.cluster.survey import Needed, survey
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError, StorageError
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import CHUNK_BYTES
from tests.support.commit_scenario import COMMIT_ARGUMENTS, POLICY, states

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(ClusterConfig()):
            yield


def test_storage_through_the_actor(cluster: None, tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock:
        actor = start_control(tmp_path / "run", lock.fence())
        storage = RelayedStorage(actor, str(tmp_path / "run"))
        store = CommitStore(storage, **POLICY)
        for step, state in states(3).items():
            store.save(state, **COMMIT_ARGUMENTS)
            assert state_digest(store.load(step)) == state_digest(state)
        # More than one piece, and no whole number of them.
        large = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
        storage.write_file("large", [large])
        assert (tmp_path / "run" / "large").read_bytes() == large
        assert b"".join(storage.read("large")) == large
        with pytest.raises(FileNotFoundError):
            storage.read_file("nowhere", limit=1)
        with pytest.raises(FileExistsError):
            storage.create("large")
        lock.advance()
        with pytest.raises(StorageError, match="was shut out"):
            storage.unlink("large")
        ray.kill(actor)
        with pytest.raises(DriverLostError):
            ask_for(storage, 30.0)


def ask_for(storage: RelayedStorage, seconds: float) -> None:
    """Ask so long: an actor that was killed ends a moment later."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        storage.list("")


def test_a_cluster_is_looked_at_from_each_node(cluster: None, tmp_path: Path) -> None:
    assert is_own_ray()
    nodes = alive_nodes()
    (tmp_path / "mark").touch()
    assert survey(nodes, [Needed("data.train.images", str(tmp_path))], tmp_path / "mark") == []
    assert survey(nodes, [], tmp_path / "no") == nodes
    with pytest.raises(ConfigError, match=r"train\.init_from: .*nowhere.* cannot be read on "):
        survey(nodes, [Needed("train.init_from", str(tmp_path / "nowhere"))])
    assert read_note("a") is None
    leave_note("a", "b")
    assert read_note("a") == "b"
