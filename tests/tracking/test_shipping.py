"""Shipping against a real MLflow database, and exactly once under every failure in between."""

from __future__ import annotations

import http.server
import itertools
import json
import math
import random
import socket
import threading
import time
from dataclasses import replace

import pytest
from failing_store import Crash, Store

from orchestrator.errors import StorageError
from orchestrator.storage.run_files import EVENTS_KEPT
from orchestrator.tracking.artifacts import pending_artifacts
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.tracking.ship_state import RunSpec, ShipState
from orchestrator.tracking.shipping import RunShipper, pending_points


def ticking(start: float = 1000.0):
    ticks = itertools.count()
    return lambda: start + next(ticks)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "runs" / "r"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def spec(tracking_uri):
    return RunSpec(tracking_uri, experiment="detectors", run_name="r")


def log_steps(run_dir, steps, *, start: float = 1000.0) -> None:
    log = EventLog(run_dir / "events.jsonl", clock=ticking(start))
    for step in steps:
        log.metrics({"train/loss": step / 7, "train/lr": 0.1}, step=step)
    log.close()


def history(client, run_id, key="train/loss"):
    points = client.get_metric_history(run_id, key)
    return sorted((p.step, p.value, p.timestamp) for p in points)


def logged(run_dir, key="train/loss"):
    events = read_events(run_dir / "events.jsonl")
    return [(e.step, e.values[key], e.time_ms) for e in events if key in e.values]


def only_run(client):
    experiment = client.get_experiment_by_name("detectors")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_only_what_outlives_the_machine_is_shipped(run_dir, spec, connect, tracking_uri):
    """A machine lost later takes the rest along, and the steps are logged anew at another time."""
    log = run_dir / "events.jsonl"
    log_steps(run_dir, [1, 2, 3])
    ends = [event.end for event in read_events(log)]
    (run_dir / EVENTS_KEPT).write_bytes(b"%d" % ends[1])
    shipper = RunShipper(run_dir, spec, connect)
    shipper.ship()
    kept = log.read_bytes()[: ends[1]]
    log.write_bytes(kept)
    log_steps(run_dir, [3, 4], start=5000.0)
    (run_dir / EVENTS_KEPT).write_bytes(b"%d" % log.stat().st_size)
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    client = connect(tracking_uri)
    found = history(client, only_run(client).info.run_id)
    assert found == logged(run_dir)
    assert [(step, time) for step, _, time in found] == [
        (1, 1000000), (2, 1001000), (3, 5000000), (4, 5001000),
    ]  # fmt: skip


def test_a_run_as_it_appears(run_dir, tracking_uri, connect):
    (run_dir / "config").mkdir()
    (run_dir / "config" / "resolved.yaml").write_text("name: r\n")
    (run_dir / "ckpt" / "00000030").mkdir(parents=True)
    (run_dir / "ckpt" / "00000030" / "weights.safetensors").write_bytes(b"weights")
    spec = RunSpec(
        tracking_uri,
        experiment="detectors",
        run_name="ssd-run",
        tags={"git_commit": "abc", "dirty": "false"},
        params={"train.optimizer.lr": 0.02, "name": "ssd-run", "long": "x" * 9000}
        | {f"many.{i}": i for i in range(250)},
        artifacts={
            "config/resolved.yaml": str(run_dir / "config" / "resolved.yaml"),
            "checkpoints/best": str(run_dir / "ckpt" / "00000030"),
            "labels.json": str(run_dir / "label_map.json"),
            "run_card.md": str(run_dir / "not-written.md"),
        },
    )
    (run_dir / "label_map.json").write_text("{}")
    log = EventLog(run_dir / "events.jsonl", clock=ticking())
    log.note("start", "from initial weights", step=0)
    log.metrics({"train/loss": 2.5, "val/AP/Hello (toy)": math.nan}, step=10)
    log.metrics({f"val/AP/{i}": i / 3 for i in range(1203)}, step=20)
    log.close()
    RunShipper(run_dir, spec, connect).finish("FINISHED")

    client = connect(tracking_uri)
    run = only_run(client)
    assert (run.info.run_name, run.info.status) == ("ssd-run", "FINISHED")
    assert run.info.end_time == 1002000
    assert {key: run.data.tags[key] for key in spec.tags} == spec.tags
    assert len(run.data.params) == 253
    assert run.data.params["train.optimizer.lr"] == "0.02"
    assert run.data.params["long"] == "x" * 6000
    assert history(client, run.info.run_id) == [(10, 2.5, 1001000)]
    assert len(run.data.metrics) == 1205
    assert run.data.metrics["val/AP/1202"] == 1202 / 3
    (toy,) = [key for key in run.data.metrics if key.startswith("val/AP/Hello")]
    assert math.isnan(run.data.metrics[toy])

    def artifacts(path=None):
        return {item.path for item in client.list_artifacts(run.info.run_id, path)}

    assert artifacts() == {"config", "checkpoints", "labels.json"}
    assert artifacts("config") == {"config/resolved.yaml"}
    assert artifacts("checkpoints/best") == {"checkpoints/best/weights.safetensors"}
    assert run.info.artifact_uri.startswith((run_dir.parents[1] / "mlartifacts").as_uri())

    state = ShipState.load(run_dir)
    assert (state.run_id, state.status) == (run.info.run_id, "FINISHED")
    assert pending_points(run_dir, state) == 0
    assert list(pending_artifacts(spec.artifacts, state.artifacts)) == []


def test_only_what_is_new_is_sent(run_dir, spec, connect):
    sent = []
    client = connect(spec.tracking_uri)
    original = client.log_batch

    def counting(run_id, metrics=(), **more):
        sent.extend(metrics)
        return original(run_id, metrics=metrics, **more)

    client.log_batch = counting
    shipper = RunShipper(run_dir, spec, lambda uri: client)
    shipper.ship()
    assert sent == []
    log_steps(run_dir, range(3))
    shipper.ship()
    shipper.ship()
    assert len(sent) == 6
    log_steps(run_dir, range(5))
    shipper.ship()
    assert len(sent) == 10
    assert history(client, only_run(client).info.run_id) == logged(run_dir)


def test_a_clock_before_1970_holds_nothing_up(run_dir, spec, connect):
    log_steps(run_dir, [1, 2], start=-1.5)
    log_steps(run_dir, [3], start=5.0)
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    client = connect(spec.tracking_uri)
    assert history(client, only_run(client).info.run_id) == [
        (1, 1 / 7, 0), (2, 2 / 7, 0), (3, 3 / 7, 5000),
    ]  # fmt: skip


def test_an_unfinished_line_is_left_for_later(run_dir, spec, connect):
    log_steps(run_dir, range(2))
    path = run_dir / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    shipper = RunShipper(run_dir, spec, connect)
    shipper.ship()
    client = connect(spec.tracking_uri)
    run_id = only_run(client).info.run_id
    assert len(history(client, run_id)) == 1
    path.write_bytes(whole)
    shipper.ship()
    assert history(client, run_id) == logged(run_dir)


def test_a_resumed_run_is_the_same_run(run_dir, spec, connect):
    log_steps(run_dir, range(3))
    RunShipper(run_dir, spec, connect).finish("KILLED")
    log_steps(run_dir, range(6), start=9000)
    shipper = RunShipper(run_dir, spec, connect)
    shipper.ship()
    client = connect(spec.tracking_uri)
    assert only_run(client).info.status == "RUNNING"
    shipper.finish("FINISHED")
    run = only_run(client)
    assert run.info.status == "FINISHED"
    assert history(client, run.info.run_id) == logged(run_dir)
    assert [time_ms for _, _, time_ms in logged(run_dir)][2:4] == [1002000, 9000000]


def test_a_parameter_that_changed_keeps_its_first_value(run_dir, tracking_uri, connect):
    first = RunSpec(tracking_uri, "detectors", "r", params={"lr": 0.1, "map": "a -> b"})
    RunShipper(run_dir, first, connect).ship()
    log_steps(run_dir, range(2))
    second = RunSpec(
        tracking_uri, "detectors", "r", params={"lr": 0.2, "map": "a -> b", "epochs": 3}
    )
    RunShipper(run_dir, second, connect).ship()
    client = connect(tracking_uri)
    run = only_run(client)
    assert run.data.params == {"lr": "0.1", "map": "a -> b", "epochs": "3"}
    # Back to the first value, and a start without a change: all of it stays to be seen.
    for _ in range(2):
        RunShipper(run_dir, first, connect).ship()
    run = only_run(client)
    assert run.data.tags["changed/lr"] == "0.1 -> 0.2 -> 0.1"
    assert "changed/map" not in run.data.tags
    assert "- `lr`: 0.1 -> 0.2 -> 0.1" in run.data.tags["mlflow.note.content"]
    assert history(client, run.info.run_id) == logged(run_dir)


def test_changed_artifacts_are_replaced(run_dir, tracking_uri, connect):
    card = run_dir / "run_card.md"
    spec = RunSpec(tracking_uri, "detectors", "r", artifacts={"run_card.md": str(card)})
    shipper = RunShipper(run_dir, spec, connect)
    shipper.ship()
    for text in ("first", "second one"):
        card.write_text(text)
        shipper.ship()
        run = only_run(connect(tracking_uri))
        path = connect(tracking_uri).download_artifacts(run.info.run_id, "run_card.md")
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            assert file.read() == text


# --- crashes between MLflow and the record -----------------------------------------------------


def test_killed_between_sending_and_recording(run_dir, spec, connect, monkeypatch):
    log_steps(run_dir, range(40))
    client = connect(spec.tracking_uri)
    for crash_at in range(4):
        shipper = RunShipper(run_dir, spec, connect)
        shipper._open(ended=False)

        def crash(state, folder):
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(ShipState, "save", crash)
            with pytest.raises(Crash):
                shipper.ship()
        log_steps(run_dir, range(40 + 10 * crash_at))
        assert ShipState.load(run_dir).offset == 0
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    assert history(client, only_run(client).info.run_id) == logged(run_dir)
    assert len(logged(run_dir)) == 70


def test_killed_between_creating_and_recording(run_dir, spec, connect):
    def dying(uri):
        client = connect(uri)
        create = client.create_run

        def create_and_die(*positional, **named):
            create(*positional, **named)
            raise Crash

        client.create_run = create_and_die
        return client

    with pytest.raises(Crash):
        RunShipper(run_dir, spec, dying).ship()
    assert ShipState.load(run_dir).run_id is None
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    assert only_run(connect(spec.tracking_uri)).info.run_id == ShipState.load(run_dir).run_id


@pytest.mark.parametrize("seed", range(3))
def test_every_point_arrives_once_whatever_fails(run_dir, seed):
    rng = random.Random(seed)
    store = Store()
    store.fail = lambda call: rng.choice([None, None, "before", "after", "crash"])
    spec = RunSpec("http://somewhere", "detectors", "r", tags={"a": "b"}, params={"lr": 0.1})
    shipper = RunShipper(run_dir, spec, lambda uri: store)
    clock = ticking()
    step = 0
    for _ in range(40):
        # A worker that was killed starts again up to 300 steps earlier and repeats them.
        log = EventLog(run_dir / "events.jsonl", clock=clock)
        for one in range(max(0, step - rng.randrange(300)), step + rng.randrange(300)):
            log.metrics({"train/loss": one / 7}, step=one)
            step = max(step, one + 1)
        log.close()
        try:
            shipper.ship()
        except ConnectionError:
            pass
        except Crash:
            shipper = RunShipper(run_dir, spec, lambda uri: store)
    store.fail = lambda call: None
    RunShipper(run_dir, spec, lambda uri: store).finish("FINISHED")
    assert len(store.runs) == 1
    assert sorted(step for _, _, step, _ in store.rows) == list(range(step))
    expected = {("train/loss", time_ms, step, value) for step, value, time_ms in logged(run_dir)}
    assert store.rows == expected
    assert step > 2000


def test_a_server_that_knows_no_data_sets_has_the_numbers_all_the_same(run_dir, spec, connect):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    log_steps(run_dir, range(3))
    data = {"name": "a", "digest": "b", "source": "{}", "profile": "{}", "context": "training"}
    described = replace(spec, tags={"detector": "ssd"}, params={"lr": 0.1}, datasets=[data])
    client = connect(spec.tracking_uri)

    def unknown(*_):
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    client.log_inputs = unknown
    for _ in range(2):
        with pytest.raises(MlflowException, match="no such endpoint"):
            RunShipper(run_dir, described, lambda uri: client).ship()
    with pytest.raises(MlflowException, match="no such endpoint"):
        RunShipper(run_dir, described, lambda uri: client).finish("FINISHED")
    run = only_run(client)
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    assert run.data.tags["detector"] == "ssd"
    assert history(client, run.info.run_id) == logged(run_dir)
    # It is tried again, and until then the run is not called complete.
    assert ShipState.load(run_dir).status is None
    RunShipper(run_dir, described, connect).finish("FINISHED")
    assert ShipState.load(run_dir).status == "FINISHED"


# --- what else MLflow can be found in ----------------------------------------------------------


def test_a_deleted_database_is_filled_again(run_dir, spec, connect, migrated_database, tmp_path):
    log_steps(run_dir, range(5))
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    before = ShipState.load(run_dir).run_id
    fresh = tmp_path / "fresh.db"
    fresh.write_bytes(migrated_database.read_bytes())

    def elsewhere(uri):
        # The same address, but the file behind it is another one.
        return connect(f"sqlite:///{fresh}")

    RunShipper(run_dir, spec, elsewhere).finish("FINISHED")
    client = elsewhere("")
    run = only_run(client)
    assert run.info.run_id != before
    assert history(client, run.info.run_id) == logged(run_dir)


def test_another_address_gets_everything(run_dir, spec, connect, migrated_database, tmp_path):
    log_steps(run_dir, range(5))
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    (tmp_path / "other.db").write_bytes(migrated_database.read_bytes())
    RunShipper(run_dir, RunSpec(other, "detectors", "r"), connect).finish("FINISHED")
    client = connect(other)
    assert history(client, only_run(client).info.run_id) == logged(run_dir)


def test_a_run_deleted_in_mlflow_is_made_again(run_dir, spec, connect):
    log_steps(run_dir, range(5))
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    client = connect(spec.tracking_uri)
    client.delete_run(ShipState.load(run_dir).run_id)
    RunShipper(run_dir, spec, connect).finish("FINISHED")
    assert history(client, only_run(client).info.run_id) == logged(run_dir)


def test_a_replaced_log_is_shipped_from_its_start(run_dir, spec, connect):
    log_steps(run_dir, range(50))
    RunShipper(run_dir, spec, connect).ship()
    (run_dir / "events.jsonl").unlink()
    log_steps(run_dir, range(3), start=7000)
    RunShipper(run_dir, spec, connect).ship()
    client = connect(spec.tracking_uri)
    assert set(logged(run_dir)) <= set(history(client, only_run(client).info.run_id))


def test_an_unreadable_record_starts_a_new_run(run_dir, spec, connect):
    log_steps(run_dir, range(2))
    (run_dir / "mlflow.json").write_text('{"tracking_uri": ')
    RunShipper(run_dir, spec, connect).ship()
    client = connect(spec.tracking_uri)
    assert history(client, only_run(client).info.run_id) == logged(run_dir)


def test_two_processes_make_the_experiment_at_once(run_dir, spec, connect):
    client = connect(spec.tracking_uri)
    look = client.get_experiment_by_name
    answers = iter([None])
    client.get_experiment_by_name = lambda name: next(answers, look(name))
    connect(spec.tracking_uri).create_experiment("detectors")
    RunShipper(run_dir, spec, lambda uri: client).ship()
    assert only_run(connect(spec.tracking_uri)).info.status == "RUNNING"


def test_a_deleted_experiment_is_named(run_dir, spec, connect):
    client = connect(spec.tracking_uri)
    client.delete_experiment(client.create_experiment("detectors"))
    with pytest.raises(StorageError, match="'detectors' was deleted in MLflow; restore it"):
        RunShipper(run_dir, spec, connect).ship()


def test_the_record_is_readable(run_dir, spec, connect):
    RunShipper(run_dir, spec, connect).ship()
    tree = json.loads((run_dir / "mlflow.json").read_text())
    assert tree["tracking_uri"] == spec.tracking_uri
    assert tree["run_id"] == only_run(connect(spec.tracking_uri)).info.run_id


class Broken(http.server.BaseHTTPRequestHandler):
    """A server that answers every question with an internal error."""

    def do_GET(self):
        self.send_error(500)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("kind", ["closed port", "internal error"])
def test_a_server_in_trouble_fails_fast(run_dir, connect, tracking_uri, kind):
    log_steps(run_dir, range(2))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    port = closed if kind == "closed port" else server.server_port
    spec = RunSpec(f"http://127.0.0.1:{port}", "detectors", "r")
    try:
        start = time.monotonic()
        with pytest.raises(Exception, match=r"500|refused|Max retries"):
            RunShipper(run_dir, spec, connect).ship()
        assert time.monotonic() - start < 5
    finally:
        server.shutdown()
        server.server_close()
    assert pending_points(run_dir, ShipState.load(run_dir)) == 4
