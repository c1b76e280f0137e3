"""However a run is ended from outside, its step is committed and it can be gone on with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.tracking.events import METRICS, read_events
from tests.cluster.test_run_through_ray import EXPERIMENT
from tests.support.user_command import finish, result, start

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

#: A queue leaves its jobs 30 s; twice that, for machines with other work.
GRACE_SECONDS = 60.0
OVERRIDES = (
    "train.epochs=30",
    "train.evaluate_every_epochs=30",
    "train.checkpoint.every_epochs=30",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endings")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder


def newest(log: Path) -> int:
    return max((event.step for event in read_events(log) if event.kind == METRICS), default=0)


def part(process: Any, name: str) -> psutil.Process:
    """A process of the Ray that the driver has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if name in Path(child.cmdline()[0]).name)


def end(process: Any) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def kill_raylet(process: Any) -> None:
    part(process, "raylet").kill()


def kill_gcs(process: Any) -> None:
    part(process, "gcs_server").kill()


def stop_gcs(process: Any) -> None:
    part(process, "gcs_server").suspend()


@pytest.mark.parametrize("strike", [end, kill_raylet, kill_gcs, stop_gcs])
def test_a_run_ends_with_75_in_time_and_goes_on(
    strike: Callable[[Any], None], folder: Path
) -> None:
    name = strike.__name__
    words = ("tiny.yaml", f"name={name}", *OVERRIDES)
    if strike is not end:
        words = (*words, "train.checkpoint={every_steps: 1}")
    process = start(folder, *words)
    log = folder / "runs" / name / "events.jsonl"
    deadline = time.monotonic() + 300
    while newest(log) < 5:
        assert time.monotonic() < deadline, "no step was taken"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    strike(process)
    struck = time.monotonic()
    output = finish(process, code=75)
    seconds = time.monotonic() - struck
    print(f"{name}: ended after {seconds:.1f} s at step {newest(log)}")
    assert "un the same command again" in output
    assert seconds < GRACE_SECONDS
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (tracked,) = client.search_runs(
        [client.get_experiment_by_name("tests").experiment_id],
        f"attributes.run_name = '{name}'",
    )
    assert tracked.info.status == "KILLED"
    if strike is end:
        stopped = result(folder, name)
        assert (stopped["state"], stopped["steps"]) == ("preempted", newest(log))
    again = start(folder, *words, f"train.max_steps={newest(log) + 5}")
    finish(again)
    assert result(folder, name)["resumed_from"] >= newest(log) - 6
