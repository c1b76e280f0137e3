"""What a run ends with: where its runs are to be seen, and what can be pasted next."""

from __future__ import annotations

import io
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from orchestrator.config.schema import ConstantSchedule, CosineSchedule, Schedule
from orchestrator.runs.report import runs_page, say_finished, say_next, say_where
from orchestrator.tracking.ship_state import ShipState


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("sqlite:///my runs/ü.db", "http://127.0.0.1:5000"),
        ("postgresql://db/mlflow", "http://127.0.0.1:5000"),
        ("https://mlflow.example/", "https://mlflow.example"),
        ("databricks", None),
    ],
)
def test_where_the_runs_are_to_be_seen(
    uri: str,
    server: str | None,
    known: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    absolute = f"sqlite:///{tmp_path}/my runs/ü.db" if uri.startswith("sqlite") else uri
    ShipState(absolute, run_id="r", experiment_id="7" if known else None).save(tmp_path)
    said = io.StringIO()
    tracking = SimpleNamespace(mlflow=uri)
    resolved: Any = SimpleNamespace(experiment=SimpleNamespace(tracking=tracking))
    say_where(resolved, str(tmp_path), Console(file=said, soft_wrap=True))
    first, _, *command, page = said.getvalue().splitlines()
    assert first == f"run folder: {tmp_path}"
    if server == "http://127.0.0.1:5000":
        words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", absolute]
        assert [shlex.split(line) for line in command] == [words]
    else:
        assert command == []
    if server is not None and known:
        assert page == f"# {server}/#/experiments/7/runs?workflowType=machine_learning"
    else:
        assert page == f"# {'http://127.0.0.1:5000' if command else uri}"


@pytest.mark.parametrize("trials", [[], ["a"], ["b", "a"]])
def test_the_trials_of_a_sweep_are_compared(trials: list[str]) -> None:
    address = runs_page("http://host:5000", "7", sweep="my sweep", trials=trials)
    if len(trials) < 2:
        page = "http://host:5000/#/experiments/7/runs?workflowType=machine_learning"
        assert address.startswith(f"{page}&searchFilter=tags.sweep%20%3D%20%27my%20sweep%27")
        return
    path, _, query = urlsplit(address).fragment.partition("?")
    found = {name: values[0] for name, values in parse_qs(query).items()}
    assert path == "/compare-runs"
    assert found == {
        "runs": '["b","a"]',
        "experiments": '["7"]',
        "workflowType": "machine_learning",
    }


def test_what_to_do_next_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "samples").mkdir(parents=True)
    for step in (4, 8):
        (run / "samples" / f"step-{step:08d}.jpg").touch()
    said = io.StringIO()
    say_next(str(run), Console(file=said, soft_wrap=True))
    pictures, _, command = said.getvalue().splitlines()
    assert pictures.endswith("my run/samples/step-00000008.jpg")
    words = shlex.split(command)
    assert words[-5:] == ["predict", str(run), "FOLDER", "--draw", "drawn"]
    assert Path(words[0]).exists()


@pytest.mark.parametrize("schedule", [ConstantSchedule(), CosineSchedule(name="cosine")])
def test_a_run_that_is_done_says_what_more_epochs_need(schedule: Schedule) -> None:
    """More epochs alone are refused where the rate ended with the run."""
    said = io.StringIO()
    train: Any = SimpleNamespace(schedule=schedule)
    result = {"name": "a", "steps": 12, "metrics": {"AP": 0.5}}
    say_finished(result, train, Console(file=said, soft_wrap=True))
    assert "raise train.epochs" in said.getvalue()
    assert ("train.continue" in said.getvalue()) is (schedule.name == "cosine")
