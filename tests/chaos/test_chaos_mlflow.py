"""A real MLflow server behind a proxy that refuses, hangs, delays, fails and loses answers."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.tracking.events import EventLog
from orchestrator.tracking.mlflow_shipper import LOG_FILE, MlflowShipper
from orchestrator.tracking.ship import FAILURE
from orchestrator.tracking.ship_state import RunSpec, ShipState
from tests.support.waiting import wait_for

pytestmark = pytest.mark.chaos

OUTAGES = 20
KEYS = 50
#: 20 outages x 100 steps x 50 keys = 100,000 points.
STEPS_PER_OUTAGE = 100

Mode = Literal["pass", "refuse", "hang", "500", "lose the answer", "delay"]
FAULTS: tuple[Mode, ...] = ("refuse", "500", "lose the answer", "hang", "delay")
DELAY_SECONDS = 1.0
PASSING = ("pass", "delay")


class Proxy:
    """Forwards connections to a server, or does to them what ``mode`` says."""

    def __init__(self, target: int) -> None:
        self.mode: Mode = "pass"
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            mode = self.mode
            if mode == "refuse":
                return
            if mode == "hang":
                while self.mode == "hang":
                    time.sleep(0.05)
                return
            if mode == "500":
                client.recv(1 << 16)
                client.sendall(
                    b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
                self._pump(server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy until the source ends; connections that are open already meet the fault, too."""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                answering = source.getpeername()[1] == self._target
                if self.mode == "delay" and answering:
                    time.sleep(DELAY_SECONDS)
                elif self.mode not in PASSING and (answering or self.mode != "lose the answer"):
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Port and database of an MLflow server."""
    database = tmp_path / "mlflow.db"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", str(tmp_path / "artifacts")),
    ]
    with (tmp_path / "server.txt").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=tmp_path, start_new_session=True
        )

    def healthy() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
            return bool(answer.status == 200)
        return False

    try:
        wait_for(healthy, 240)
        yield port, database
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_every_point_arrives_exactly_once(server: tuple[int, Path], tmp_path: Path) -> None:
    port, database = server
    proxy = Proxy(port)
    run_dir = tmp_path / "run"
    shipper = MlflowShipper(run_dir, RunSpec(f"http://127.0.0.1:{proxy.port}", "chaos", "run"))
    shipper.start()
    log = EventLog(run_dir / "events.jsonl")

    def arrived() -> bool:
        state = ShipState.load(run_dir)
        return state is not None and state.offset == log.path.stat().st_size > 0

    def failures() -> int:
        return (run_dir / LOG_FILE).read_text("utf-8", "replace").count(FAILURE)

    slowest = 0.0
    for outage in range(OUTAGES):
        before = failures()
        proxy.mode = FAULTS[outage % len(FAULTS)]
        for step in range(outage * STEPS_PER_OUTAGE, (outage + 1) * STEPS_PER_OUTAGE):
            began = time.perf_counter()
            log.metrics({f"m{key}": step + key / 64 for key in range(KEYS)}, step=step)
            slowest = max(slowest, time.perf_counter() - began)
        if proxy.mode not in PASSING:
            wait_for(lambda before=before: failures() > before, 600)
            proxy.mode = "pass"
        wait_for(arrived, 600)
    log.close()
    shipped = shipper.close("FINISHED", timeout=600)
    proxy.close()
    assert shipped.complete, shipped
    with closing(sqlite3.connect(database)) as rows:
        total, distinct, wrong = rows.execute(
            "SELECT count(*), count(DISTINCT key || '/' || step), "
            "sum(value != step + CAST(substr(key, 2) AS REAL) / 64) FROM metrics "
            # What the shipping process samples of the machine is in no log.
            "WHERE run_uuid = ? AND key NOT LIKE 'system/%'",
            (shipped.run_id,),
        ).fetchone()
        (runs,) = rows.execute("SELECT count(*) FROM runs").fetchone()
    print(f"{total} points, slowest call of the training side {1e3 * slowest:.1f} ms")
    assert (total, distinct, wrong) == (100_000, 100_000, 0)
    assert runs == 1
