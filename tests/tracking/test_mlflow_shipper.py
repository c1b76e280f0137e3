"""The shipping process as a driver meets it: fine, dead, hanging, and outliving its driver."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.tracking import ship
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.tracking.mlflow_shipper import LOG_FILE, MlflowShipper, ship_later
from orchestrator.tracking.ship_state import RunSpec, ShipState
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "r"


def log_steps(run_dir, steps) -> None:
    log = EventLog(run_dir / "events.jsonl")
    for step in steps:
        log.metrics({"train/loss": step / 7}, step=step)
    log.close()


def rows(client, run_id):
    points = client.get_metric_history(run_id, "train/loss")
    return sorted((p.step, p.value, p.timestamp) for p in points)


def logged(run_dir):
    events = read_events(run_dir / "events.jsonl")
    return [(e.step, e.values["train/loss"], e.time_ms) for e in events]


def test_a_run_from_start_to_end(run_dir, tracking_uri, connect):
    spec = RunSpec(tracking_uri, "detectors", "ssd", params={"lr": 0.1})
    shipper = MlflowShipper(run_dir, spec)
    shipper.start()
    log_steps(run_dir, range(5))
    wait_for(lambda: (ShipState.load(run_dir) or ShipState("")).offset > 0)
    log_steps(run_dir, range(3, 9))
    (run_dir / "run_card.md").write_text("# ssd")
    artifacts = {"run_card.md": str(run_dir / "run_card.md")}
    shipped = shipper.close("FINISHED", artifacts=artifacts, timeout=180)
    assert shipped.complete, shipped
    client = connect(tracking_uri)
    assert rows(client, shipped.run_id) == logged(run_dir)
    assert len(logged(run_dir)) == 9
    run = client.get_run(shipped.run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "ssd",
        "FINISHED",
        {"lr": "0.1"},
    )
    assert [item.path for item in client.list_artifacts(shipped.run_id)] == ["run_card.md"]
    assert str(shipped) == f"MLflow run {shipped.run_id} is complete"
    # A second farewell changes nothing.
    assert shipper.close("FAILED") == shipped
    assert client.get_run(shipped.run_id).info.status == "FINISHED"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python looks there first")
def test_files_where_the_command_was_given_are_no_modules(
    run_dir, tracking_uri, tmp_path, monkeypatch
):
    (tmp_path / "mlflow.py").write_text("raise SystemExit('a script of the user')\n")
    monkeypatch.chdir(tmp_path)
    shipper = MlflowShipper(run_dir, RunSpec(tracking_uri, "detectors", "ssd"))
    shipper.start()
    log_steps(run_dir, range(2))
    shipped = shipper.close("FINISHED", timeout=180)
    assert shipped.complete, shipped


def test_a_dead_server_costs_seconds_and_no_point(run_dir, tracking_uri, connect):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    log_steps(run_dir, range(5))
    card = run_dir / "run_card.md"
    card.write_text("# ssd")
    spec = RunSpec(f"http://127.0.0.1:{port}", "d", "r", artifacts={"run_card.md": str(card)})
    shipper = MlflowShipper(run_dir, spec)
    started = time.monotonic()
    shipper.start()
    assert time.monotonic() - started < 2
    shipped = shipper.close("FINISHED", timeout=180)
    assert (shipped.points_left, shipped.artifacts_left) == (5, ("run_card.md",))
    assert not shipped.complete
    assert "lacks 5 metric points and 1 artifacts of this run (MlflowException: " in str(shipped)
    assert "start the same run again" in str(shipped)

    again = MlflowShipper(run_dir, RunSpec(tracking_uri, "d", "r"))
    again.start()
    shipped = again.close("FINISHED", timeout=180)
    assert shipped.complete, shipped
    assert rows(connect(tracking_uri), shipped.run_id) == logged(run_dir)


def shipped_with_steps(run_dir, tracking_uri, steps):
    """A run of a folder that goes on for some steps, and what was said of it."""
    said: list[str] = []
    spec = RunSpec(tracking_uri, "d", run_dir.name, folder=str(run_dir))
    shipper = MlflowShipper(run_dir, spec, say=said.append)
    shipper.start()
    log_steps(run_dir, steps)
    shipped = shipper.close("FINISHED", timeout=180)
    assert shipped.complete, shipped
    return shipped.run_id, said


def test_a_copy_of_a_run_gets_a_run_of_its_own(tmp_path, tracking_uri, connect, monkeypatch):
    first, copy = tmp_path / "first", tmp_path / "copy"
    original, _ = shipped_with_steps(first, tracking_uri, range(3))
    shutil.copytree(first, copy)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowShipper, "_spawn", lambda self: False)
        unsent = MlflowShipper(copy, RunSpec(tracking_uri, "d", "copy", folder=str(copy)))
        unsent.start()
        # What has arrived of the original has not of the copy.
        assert (unsent.shipped().run_id, unsent.shipped().points_left) == (None, 3)
    shutil.rmtree(copy)
    shutil.copytree(first, copy)

    other, said = shipped_with_steps(copy, tracking_uri, range(3, 5))
    assert said == [
        f"{copy} is a copy of {first}, whose run in MLflow stays as it is; another is made, with "
        "all that the folder holds"
    ]
    # Both go on, each with its own.
    assert shipped_with_steps(first, tracking_uri, range(7, 9)) == (original, [])
    assert shipped_with_steps(copy, tracking_uri, range(5, 6)) == (other, [])
    client = connect(tracking_uri)
    assert [step for step, _, _ in rows(client, original)] == [0, 1, 2, 7, 8]
    assert [step for step, _, _ in rows(client, other)] == [0, 1, 2, 3, 4, 5]
    assert client.get_run(other).data.tags["copied_from_run"] == original
    assert client.get_run(original).info.run_name == "first"


def test_a_run_that_moved_keeps_its_run(tmp_path, tracking_uri):
    first, moved = tmp_path / "first", tmp_path / "moved"
    original, _ = shipped_with_steps(first, tracking_uri, range(3))
    first.rename(moved)
    assert shipped_with_steps(moved, tracking_uri, range(3, 5)) == (original, [])
    first.symlink_to(moved)
    assert shipped_with_steps(first, tracking_uri, range(5, 6)) == (original, [])


def test_a_trial_that_moved_with_its_sweep_is_shipped_below_it(tmp_path, tracking_uri, connect):
    sweep, moved = tmp_path / "sweep", tmp_path / "moved"
    parent, _ = shipped_with_steps(sweep, tracking_uri, range(1))
    trial = sweep / "trial-000"
    log_steps(trial, range(3))
    spec = RunSpec(tracking_uri, "d", "trial-000", parent=str(sweep), folder=str(trial))
    spec.save(trial, "FINISHED")
    sweep.rename(moved)
    shipped = ship_later(moved / "trial-000", say=print)
    assert shipped is not None
    assert shipped.complete, shipped
    tags = connect(tracking_uri).get_run(shipped.run_id).data.tags
    assert tags["mlflow.parentRunId"] == parent


def test_a_hanging_server_is_left_behind(run_dir):
    log_steps(run_dir, range(5))
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        port = silent.getsockname()[1]
        shipper = MlflowShipper(run_dir, RunSpec(f"http://127.0.0.1:{port}", "d", "r"))
        shipper.start()
        started = time.monotonic()
        shipped = shipper.close("FINISHED", timeout=1.5)
        assert time.monotonic() - started < 4
    assert (shipped.run_id, shipped.points_left) == (None, 5)
    assert "MLflow took longer than 1.5 s" in str(shipped)


def test_a_process_that_cannot_start(run_dir, tracking_uri, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    shipper = MlflowShipper(run_dir, RunSpec(tracking_uri, "d", "r"))
    shipper.start()
    log_steps(run_dir, range(2))
    shipped = shipper.close("FAILED", artifacts={"card.md": "card.md"}, tags={"ended": "failed"})
    assert shipped.points_left == 2
    assert "could not start" in str(shipped)
    # By this `orchestrator ship` brings it later what it is.
    spec, status = RunSpec.load(run_dir)
    assert (status, spec.tags) == ("FAILED", {"ended": "failed"})
    assert "card.md" in spec.artifacts


def test_a_process_that_dies_at_once(run_dir, tracking_uri, monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    shipper = MlflowShipper(run_dir, RunSpec(tracking_uri, "d", "r"))
    shipper.start()
    wait_for(lambda: shipper._process.poll() is not None)
    shipped = shipper.close("FAILED")
    assert not shipped.complete
    assert str(run_dir / "mlflow.log") in str(shipped)


_DRIVER = """
import sys, time
from pathlib import Path
from orchestrator.tracking.events import EventLog
from orchestrator.tracking.mlflow_shipper import MlflowShipper
from orchestrator.tracking.ship_state import RunSpec
run_dir = Path(sys.argv[1])
MlflowShipper(run_dir, RunSpec(sys.argv[2], "detectors", "r")).start()
log = EventLog(run_dir / "events.jsonl")
for step in range(50):
    log.metrics({"train/loss": step / 7}, step=step)
print("logged", flush=True)
time.sleep(600)
"""


def test_a_killed_driver_leaves_a_killed_run_behind(run_dir, tracking_uri, connect):
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(run_dir), tracking_uri],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert driver.stdout is not None
    with driver.stdout:
        assert driver.stdout.readline() == b"logged\n"
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    # Its shipper outlives it, and only this one may bring the run to its end.
    wait_for(lambda: (ShipState.load(run_dir) or ShipState("")).status == "KILLED")
    client = connect(tracking_uri)
    state = ShipState.load(run_dir)
    assert rows(client, state.run_id) == logged(run_dir)
    assert len(logged(run_dir)) == 50
    shipper = MlflowShipper(run_dir, RunSpec(tracking_uri, "detectors", "r"))
    shipper.start()
    log_steps(run_dir, range(60))
    shipped = shipper.close("FINISHED", timeout=180)
    assert shipped.complete
    assert shipped.run_id == state.run_id
    assert rows(client, state.run_id) == logged(run_dir)
    assert client.get_run(state.run_id).info.status == "FINISHED"


# --- the loop of the process, without the process -----------------------------------------------


class Script:
    """Commands in memory; ``None`` stands for a time in which nothing comes."""

    def __init__(self, *commands) -> None:
        self.commands = list(commands)
        self.waits: list[float] = []
        self.ended = False

    def next(self, seconds):
        self.waits.append(seconds)
        if not self.commands:
            self.ended = True
            return None
        return self.commands.pop(0)


def test_waits_grow_while_mlflow_fails(run_dir, monkeypatch, capsys):
    run_dir.mkdir(parents=True)
    naps: list[float] = []
    monkeypatch.setattr(ship.time, "sleep", naps.append)
    script = Script(*[None] * 8, {"status": "FINISHED", "tags": {}, "artifacts": {}})
    calls: list[str] = []

    def refuse(uri):
        calls.append(uri)
        raise ConnectionError("refused")

    done = ship.ship_until_told(run_dir, RunSpec("http://x", "d", "r"), script, refuse)
    assert done is False
    assert script.waits == [0, 2, 4, 8, 16, 32, 60, 60, 60]
    assert naps == [1, 2, 4]
    assert len(calls) == 8 + ship.LAST_TRIES
    assert "not shipped: ConnectionError: refused" in capsys.readouterr().err


def test_a_sample_that_is_refused_is_no_failure_to_ship(
    run_dir, tracking_uri, connect, monkeypatch, capsys
):
    """Nothing would say that it is over, and people would hear that MLflow takes nothing."""
    log_steps(run_dir, range(3))
    monkeypatch.setattr(ship, "SAMPLE_INTERVAL", 0.0)
    monkeypatch.setattr(ship.Machine, "sample", lambda self: {"system/load": 1.0})
    client = connect(tracking_uri)
    log_batch = client.log_batch

    def refusing(run_id, metrics=(), **rest):
        if any(metric.key.startswith("system/") for metric in metrics):
            raise ConnectionError("busy")
        log_batch(run_id, metrics=metrics, **rest)

    client.log_batch = refusing
    script = Script(None, None, {"status": "FINISHED", "tags": {}, "artifacts": {}})
    spec = RunSpec(tracking_uri, "detectors", "r")
    assert ship.ship_until_told(run_dir, spec, script, lambda uri: client)
    said = capsys.readouterr().err
    assert said.count("not sampled: ConnectionError: busy") == 2
    (run_dir / LOG_FILE).write_text(said)
    assert MlflowShipper(run_dir, spec)._last_failure() is None


def test_commands_are_whole_lines_in_any_pieces():
    reader, writer = socket.socketpair()
    with reader, writer:
        commands = ship.Commands(reader.fileno())
        assert commands.next(0.0) is None
        for piece in (b'{"a"', b": 1}\n{", b'"b": 2}\n'):
            writer.sendall(piece)
        assert commands.next(1.0) == {"a": 1}
        assert commands.next(1.0) == {"b": 2}
        assert commands.next(0.01) is None
        assert not commands.ended
        writer.sendall(b'{"half')
        writer.shutdown(socket.SHUT_WR)
        assert commands.next(None) is None
        assert commands.ended
