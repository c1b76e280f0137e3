"""Files over bad lines: refused as too large, broken off, or slower than any limit on the whole."""

from __future__ import annotations

import random
import socket
import time
from dataclasses import replace

import pytest
from line_server import LineServer
from urllib3.connection import HTTPConnection

from orchestrator.cli.main import main
from orchestrator.storage.run_files import MLFLOW, MLFLOW_SPEC
from orchestrator.tracking import artifacts
from orchestrator.tracking.mlflow_shipper import MlflowShipper, ship_later
from orchestrator.tracking.ship import ENVIRONMENT, UNSENT_BYTES, show_progress_of_the_line
from orchestrator.tracking.ship_state import RunSpec, ShipState
from orchestrator.tracking.shipping import RunShipper

KIB = 1 << 10


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "r"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "weights").write_bytes(random.Random(5).randbytes(900 * KIB))
    (folder / "card.md").write_text("# r")
    return folder


def spec_of(run_dir, uri) -> RunSpec:
    places = {"checkpoints/best": str(run_dir / "best"), "card.md": str(run_dir / "card.md")}
    return RunSpec(uri, "d", "r", artifacts=places)


@pytest.mark.parametrize("trouble", [{"largest": 300 * KIB}, {"breaks_after": 300 * KIB}])
def test_a_file_that_does_not_pass_whole_arrives_in_parts(run_dir, connect, monkeypatch, trouble):
    monkeypatch.setattr(artifacts, "SMALLEST_PART", 64 * KIB)
    with LineServer(**trouble) as server:
        RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        sent = (run_dir / "best" / "weights").read_bytes()
        parts = [name for name, data in server.files.items() if ".parts/" in name and data]
        # 900 KiB: halved to 450, then to 225, which passes.
        assert sorted(parts) == [
            f"checkpoints/best/weights.parts/0000{n}-of-00004" for n in (1, 2, 3, 4)
        ]
        assert b"".join(server.files[name] for name in sorted(parts)) == sent
        assert server.files["card.md"] == b"# r"
        assert server.statuses == ["FINISHED"]
        assert server.files_at_status == [0]
        # Nothing is sent a second time.
        before = list(server.arrivals)
        # Where the line broke, the first half may have arrived: it is empty now.
        first = [] if "largest" in trouble else ["checkpoints/best/weights.parts/00001-of-00002"]
        assert set(before) == {*parts, *first, "card.md"}
        assert len(before) == len(set(before))
        RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        assert server.arrivals == before


def test_a_server_that_refuses_every_size_is_given_up_and_said(run_dir, connect, monkeypatch):
    monkeypatch.setattr(artifacts, "SMALLEST_PART", 64 * KIB)
    with LineServer(largest=20 * KIB) as server:
        with pytest.raises(Exception, match="413"):
            RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        assert server.arrivals == ["card.md"]
        assert server.statuses == ["FINISHED"]
        state = ShipState.load(run_dir)
        assert state is not None
        # The smallest part that was tried: 900 KiB halved to 450, 225 and 112.5.
        assert state.parts == {"checkpoints/best/weights": 115200}
        # Later the server takes more, and the file is there once.
        server.largest = 200 * KIB
        RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        parts = sorted(name for name in server.files if ".parts/" in name)
        assert len(parts) == 8
        sent = (run_dir / "best" / "weights").read_bytes()
        assert b"".join(server.files[name] for name in parts) == sent


@pytest.mark.parametrize("lost", [None, 3], ids=["refused", "its answer lost"])
def test_parts_of_another_size_that_arrived_are_not_joined_with_the_file(
    run_dir, connect, monkeypatch, lost
):
    """The line was good for two halves of a half, and then for smaller ones only."""
    monkeypatch.setattr(artifacts, "SMALLEST_PART", 64 * KIB)
    with LineServer(largest=300 * KIB) as server:
        client = connect(server.uri)
        log = client.log_artifact

        def worsening(run_id, path, folder):
            worsens = server.largest > 150 * KIB and path.endswith("00003-of-00004")
            if worsens and lost:
                log(run_id, path, folder)
            if worsens:
                server.largest = 150 * KIB
            if worsens and lost:
                raise TimeoutError("no answer")
            log(run_id, path, folder)

        client.log_artifact = worsening
        RunShipper(run_dir, spec_of(run_dir, server.uri), lambda uri: client).finish("FINISHED")
        parts = sorted(name for name in server.files if ".parts/" in name)
        assert sum(name.endswith("-of-00004") for name in parts) == (lost or 2)
        assert sum(name.endswith("-of-00008") for name in parts) == 8
        # As the documents say: cat weights.parts/*
        sent = (run_dir / "best" / "weights").read_bytes()
        assert b"".join(server.files[name] for name in parts) == sent
        # The run is at its end, and a start afterwards sends nothing.
        before = list(server.arrivals)
        RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        assert server.arrivals == before


def test_an_upload_in_parts_goes_on_where_it_was(run_dir, connect, monkeypatch):
    monkeypatch.setattr(artifacts, "SMALLEST_PART", 64 * KIB)
    spec = spec_of(run_dir, "")
    with LineServer(largest=300 * KIB) as server:
        spec = spec_of(run_dir, server.uri)
        client = connect(server.uri)
        log, calls = client.log_artifact, []

        def dying(run_id, path, folder):
            calls.append(path)
            if path.endswith("00003-of-00004"):
                raise KeyboardInterrupt
            log(run_id, path, folder)

        client.log_artifact = dying
        with pytest.raises(KeyboardInterrupt):
            RunShipper(run_dir, spec, lambda uri: client).finish("FINISHED")
        calls.clear()
        RunShipper(run_dir, spec, lambda uri: connect(uri)).finish("FINISHED")
        assert len(server.arrivals) == len(set(server.arrivals)) == 5


def test_a_server_that_is_away_asks_for_no_parts(run_dir, connect):
    with LineServer() as server:
        spec = spec_of(run_dir, server.uri)
        shipper = RunShipper(run_dir, spec, connect)
        shipper._measurements(ended=False)
    with pytest.raises(Exception, match=r"refused|Max retries|aborted"):
        shipper.finish("FINISHED")
    state = ShipState.load(run_dir)
    assert state is not None
    assert state.parts == {}


def test_a_refusal_that_is_not_about_size_asks_for_no_parts(run_dir, connect, monkeypatch):
    with LineServer(largest=300 * KIB) as server:
        monkeypatch.setattr(artifacts, "_TOO_LARGE", 507)
        with pytest.raises(Exception, match="413"):
            RunShipper(run_dir, spec_of(run_dir, server.uri), connect).finish("FINISHED")
        # The others have arrived, and the run has its status.
        assert server.arrivals == ["card.md"]
        assert server.statuses == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_a_line_of_any_speed_gets_the_time_it_takes(run_dir, waits):
    """13 s for a file where nothing may stand still for 6 s; a trial does not wait for it."""
    (run_dir / "best" / "weights").write_bytes(bytes(20 << 20))
    with LineServer(bytes_per_s=int(1.5 * (1 << 20))) as server:
        spec = spec_of(run_dir, server.uri)
        shipper = MlflowShipper(run_dir, replace(spec, artifacts={}))
        shipper.start()
        while (ShipState.load(run_dir) or ShipState("")).run_id is None:
            time.sleep(0.05)
        shipped = shipper.close("FINISHED", artifacts=spec.artifacts, timeout=6, wait=waits)
        assert shipped.closed
        if waits:
            assert shipped.complete, shipped
            assert server.arrivals == ["card.md", "checkpoints/best/weights"]
        else:
            assert "checkpoints/best/weights" in shipped.artifacts_left
            assert "in the background" in str(shipped)
            assert server.statuses[-1] == "FINISHED"
            assert "checkpoints/best/weights" not in server.files


def test_what_is_left_is_shipped_later_from_a_folder_that_has_moved(run_dir, tmp_path, capsys):
    with LineServer() as server:
        spec_of(run_dir, server.uri).save(run_dir, "FINISHED")
        moved = run_dir.rename(tmp_path / "elsewhere")
        assert main(["ship", str(moved)]) == 0
        assert "is complete" in capsys.readouterr().out
        assert sorted(server.files) == ["card.md", "checkpoints/best/weights"]
        assert server.statuses[-1] == "FINISHED"
        assert ship_later(moved, say=print, only_pending=True) is None
    (moved / MLFLOW_SPEC).unlink()
    assert main(["ship", str(moved)]) == 71
    assert "start the same run again" in capsys.readouterr().err


def test_a_run_that_cannot_be_shipped_keeps_no_other_back(run_dir, tmp_path, capsys):
    (tmp_path / "untracked").mkdir()
    with LineServer() as server:
        spec_of(run_dir, server.uri).save(run_dir, "FINISHED")
        assert main(["ship", str(tmp_path / "untracked"), str(run_dir)]) == 71
        assert sorted(server.files) == ["card.md", "checkpoints/best/weights"]
    said = capsys.readouterr()
    assert "is complete" in said.out
    assert "untracked/mlflow_spec.json: cannot be read" in said.err
    assert f"1 of the runs did not arrive whole: {tmp_path / 'untracked'}" in said.err


def test_the_kernel_takes_little_ahead_of_the_line():
    show_progress_of_the_line()
    with LineServer() as server:
        connection = HTTPConnection("127.0.0.1", server.server_port)
        connection.connect()
        option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT
        assert connection.sock.getsockopt(*option) == UNSENT_BYTES
        connection.close()


def test_a_record_that_cannot_be_read_is_said(run_dir):
    said: list[str] = []
    (run_dir / MLFLOW).write_text('{"tracking_uri": "http://')
    with LineServer() as server:
        shipper = MlflowShipper(run_dir, spec_of(run_dir, server.uri), say=said.append)
        shipper._spawn = lambda: False
        shipper.start()
    assert f"{run_dir / MLFLOW} cannot be read" in said[0]


def test_a_process_that_is_killed_is_started_again_and_said(run_dir, monkeypatch):
    monkeypatch.setattr("orchestrator.tracking.mlflow_shipper._LOOK_SECONDS", 0.1)
    said: list[str] = []
    with LineServer() as server:
        shipper = MlflowShipper(run_dir, spec_of(run_dir, server.uri), say=said.append)
        shipper.start()
        first = shipper._process
        assert first is not None
        first.kill()
        first.wait()
        while shipper._process is first:
            pass
        shipped = shipper.close("FINISHED", timeout=180)
        assert shipped.complete, shipped
    assert said[0] == "the process that ships to MLflow has ended with -9; it is started again"


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "another in its place"])
def test_a_folder_that_is_lost_is_not_made_anew_and_the_run_gets_its_status(run_dir, replaced):
    away = run_dir.with_name("away")
    with LineServer() as server:
        shipper = MlflowShipper(run_dir, spec_of(run_dir, server.uri))
        shipper.start()
        while len(server.arrivals) < 2:
            time.sleep(0.05)
        run_dir.rename(away)
        if replaced:
            run_dir.mkdir()
        shipped = shipper.close("FAILED", timeout=20)
        assert server.statuses == ["FAILED"]
        assert "gone" in str(shipped)
        assert set(run_dir.parent.rglob("*.json")) == {away / MLFLOW_SPEC, away / MLFLOW}
        assert run_dir.exists() is replaced
        # Brought back, it goes on as the same run.
        if replaced:
            run_dir.rmdir()
        away.rename(run_dir)
        assert main(["ship", str(run_dir)]) == 0
        assert server.statuses[-1] == "KILLED"
