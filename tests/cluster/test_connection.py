"""Ray is joined or started in odd surroundings, or the refusal says what to do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray._private import auto_init_hook
from ray.exceptions import RayActorError, RaySystemError

from orchestrator.cluster import connection
from orchestrator.cluster.connection import connected, require_answer
from orchestrator.cluster.own_ray import kill_own_ray, ray_folder
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import (
    ConfigError,
    DataError,
    OrchestratorError,
    PreemptedError,
    StorageError,
)
from orchestrator.training.interrupt import stopping_at_once
from tests.support.waiting import wait_for

#: What Ray 2.60 names its longest socket below its folder, with seven digits of a process's number.
SOCKET = "session_2026-11-29_00-36-23_979180_4194304/sockets/plasma_store"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def server(answer: bytes) -> Iterator[str]:
    """Address of a server that says ``answer`` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            one, _ = listener.accept()
            with one:
                one.sendall(answer)
                one.recv(1 << 10)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def test_a_server_of_the_kind_that_ray_has_answers() -> None:
    served = grpc.server(ThreadPoolExecutor(1))
    port = served.add_insecure_port("127.0.0.1:0")
    served.start()
    try:
        assert require_answer(f"127.0.0.1:{port}") is None
        assert require_answer(f"ray://127.0.0.1:{port}") is None
    finally:
        served.stop(None).wait()


def test_other_servers_and_silence_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    for address in server(b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        assert require_answer(address) == "what answers there is not Ray"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert require_answer(f"127.0.0.1:{port}") == "nothing answers within 0.2 s"
    assert require_answer(f"127.0.0.1:{port}") == "Connection refused"
    assert require_answer("127.0.0.1:99999") == "Port out of range 0-65535"


@pytest.mark.parametrize("address", ["auto", "http://127.0.0.1:1", "somewhere"])
def test_addresses_of_other_kinds_are_left_to_ray(address: str) -> None:
    assert require_answer(address) is None


@pytest.mark.parametrize("key", ["RAY_ADDRESS", "cluster.address"])
def test_an_address_where_nobody_is_names_its_key(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    if key == "RAY_ADDRESS":
        monkeypatch.setenv(key, address)
    config = ClusterConfig(address=None if key == "RAY_ADDRESS" else address)
    with pytest.raises(ConfigError) as refused, connected(config):
        pass
    assert str(refused.value) == (
        f"{key} is '{address}', where no Ray cluster can be joined: Connection refused. Next: "
        f"correct or unset {key} to train on a Ray of this run's own, or start the cluster and run "
        "this again"
    )


def test_what_ray_says_in_vain_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise OSError("No space left on device:\n  a page of details")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(ConfigError) as refused, connected(ClusterConfig()):
        pass
    assert "\n" not in str(refused.value)
    assert "Ray cannot start on this machine: No space left on device. Next: " in str(refused.value)


@pytest.mark.parametrize("address", ["local", "10.0.0.1:6379"])
def test_sigterm_is_answered_by_the_run_and_not_by_ray(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(1))
        if asked:
            # What is raised here is lost in Ray.
            with suppress(Exception):
                os.kill(os.getpid(), asked.pop())

    asked: list[int] = []
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connection, "require_answer", lambda address: None)
    config = ClusterConfig(address=address)
    # A test that has run in this process may have left Ray's there.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with stopping_at_once():
            ours = signal.getsignal(signal.SIGTERM)
            with connected(config):
                assert signal.getsignal(signal.SIGTERM) is ours
        # Of a command that has none Ray's is better than none: it ends what it has started.
        with connected(config):
            assert signal.getsignal(signal.SIGTERM) not in (ours, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asked.append(signal.SIGTERM)
        with pytest.raises(PreemptedError), stopping_at_once(), connected(config):
            pytest.fail("went on")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_was_started_for_a_lost_ray_goes_with_it() -> None:
    """Also what stands still, and what that has started."""
    raylet = subprocess.Popen(["bash", "-c", "sleep 600 & wait"])
    (child,) = wait_for(lambda: psutil.Process(raylet.pid).children())
    os.kill(raylet.pid, signal.SIGSTOP)
    node = SimpleNamespace(all_processes={"raylet": [SimpleNamespace(process=raylet)]})
    kill_own_ray(node)
    assert raylet.wait(30) == -signal.SIGKILL
    _, alive = psutil.wait_procs([child], timeout=30)
    assert alive == []


def test_a_ray_that_says_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray._private.worker, "_global_node", SimpleNamespace(all_processes={}))
    monkeypatch.setattr(connection, "_silence", lambda node: "its head (nothing answers)")
    with connection.ClusterWatch(interval=0.01) as watch:
        wait_for(watch.error)
    assert "its head (nothing answers)" in str(watch.error())


@pytest.mark.parametrize(
    ("part", "named"), [("raylet", "its raylet on this machine"), ("gcs_server", "its head")]
)
def test_an_end_of_its_own_ray_is_noticed_at_once(
    part: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen(["sleep", "600"])
    node = SimpleNamespace(all_processes={part: [SimpleNamespace(process=process)]})
    monkeypatch.setattr(ray._private.worker, "_global_node", node)
    # Nobody is asked before that.
    with connection.ClusterWatch(interval=3600.0) as watch:
        assert watch.error() is None
        process.kill()
        wait_for(watch.error)
    process.wait()
    assert f"{named} has ended" in str(watch.error())


def test_a_ray_that_was_left_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread that still waits for it, say: any call of Ray's would start one."""
    started: list[int] = []
    monkeypatch.setattr(auto_init_hook, "enable_auto_connect", True)
    monkeypatch.setattr(ray, "init", lambda **_: started.append(1))
    with connected(ClusterConfig()):
        pass
    with pytest.raises(RaySystemError, match="has not been started"):
        ray.put(1)
    assert started == [1]


@pytest.mark.parametrize(("workers", "told"), [(1, 4), (8, 9)])
def test_a_ray_of_the_runs_own_is_told_of_these(
    workers: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the 64 of the machine there would be 63 threads, and as many data tasks, on four."""
    started: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(connection, "usable_cores", lambda: 4)
    monkeypatch.setattr(connection, "start_own_ray", started.append)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(ClusterConfig(workers=workers)):
        pass
    assert started == [told]


def test_a_python_whose_path_has_blanks_starts_workers(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **words: asked.update(words))
    with connected(ClusterConfig()):
        assert asked["runtime_env"] is None
    python = short / "mit Lücke" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho started\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with connected(ClusterConfig()):
        word = asked["runtime_env"]["py_executable"]
    # What Ray does with it (RuntimeEnvContext.exec_worker).
    done = subprocess.run(["bash", "-c", f"exec {word}"], capture_output=True, text=True)
    assert done.stdout == "started\n"


def fits(folder: Path) -> bool:
    """Whether Linux takes a socket of Ray's below this folder, and one beside it after a clash."""
    return len(os.fsencode(folder / f"{SOCKET}.1")) <= 107


def test_a_folder_of_the_users_own_that_is_private(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    before = os.umask(0)
    try:
        folder = ray_folder()
    finally:
        os.umask(before)
    assert folder.is_relative_to(short)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert fits(folder)


def test_a_tmpdir_too_long_for_sockets_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("ä" * 40)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    folder = ray_folder()
    assert fits(folder)
    assert not folder.is_relative_to(long)
    assert list(long.iterdir()) == []
    assert f"{long}: its path is too long for a socket" in caplog.text


def test_a_folder_that_somebody_else_has_made_is_not_used(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short / "trap").mkdir()
    (short / f"ray-{os.geteuid()}").symlink_to(short / "trap")
    monkeypatch.setenv("TMPDIR", str(short))
    assert not ray_folder().is_relative_to(short)
    assert list((short / "trap").iterdir()) == []


def test_full_disks_end_in_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 20))
    with pytest.raises(StorageError) as refused:
        ray_folder()
    assert str(refused.value) == (
        "no folder can hold Ray's files (/tmp: 3 MiB free; /var/tmp: 3 MiB free). Next: free space "
        "there, or set RAY_TMPDIR to a folder with 64 MiB free and a short path"
    )


def test_what_ray_says_of_a_cluster_that_is_gone_is_told_from_other_failures() -> None:
    class Watch:
        lost: PreemptedError | None = None

        def look(self) -> None:
            self.lost = gone

        def error(self) -> PreemptedError | None:
            return self.lost

    def fail(error: Exception) -> None:
        raise error

    gone: PreemptedError | None = PreemptedError("the Ray cluster is gone")
    for error in (RayActorError(), OrchestratorError("training failed 3 times")):
        with pytest.raises(PreemptedError, match="is gone"):
            connection.while_it_lasts(Watch(), partial(fail, error))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        connection.while_it_lasts(Watch(), partial(fail, DataError("an image")))  # type: ignore[arg-type]
    gone = None
    with pytest.raises(RayActorError):
        connection.while_it_lasts(Watch(), partial(fail, RayActorError()))  # type: ignore[arg-type]
