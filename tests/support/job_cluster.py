"""A cluster of its own that takes jobs and asks for a token, as clusters/README.md starts it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def job_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of its job server; ``HOME`` and Ray's variables are set for its clients."""
    # Ray's sockets need a path of fewer than 107 letters, so not below pytest's own folder.
    home = Path(tempfile.mkdtemp(prefix="ray"))
    token = home / "token"
    token.write_text("b9a1" * 16)
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
        *(f"--temp-dir={home}/r", "--node-ip-address=127.0.0.1", f"--port={free_port()}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
        *(
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
        ),
    ]
    with (home / "start.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for_answer(address, process, home / "start.log")
        yield address
    finally:
        # The control store takes its time over SIGTERM; nothing here is worth waiting for.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for_answer(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = requests.get(f"{address}/api/version", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.5)
            continue
        assert answer.status_code == 401, "the cluster asks nobody for a token"
        return
    pytest.fail(f"no answer from {address}:\n{log.read_text()}")
