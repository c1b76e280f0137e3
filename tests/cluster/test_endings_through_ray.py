"""However a run is ended from outside, its step is committed and it can be gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from orchestrator.cluster.submission import connect, follow, prepare, submit
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.errors import PreemptedError
from orchestrator.tracking.events import METRICS, read_events
from tests.cluster.test_run_through_ray import EXPERIMENT
from tests.support.job_cluster import job_cluster
from tests.support.user_command import finish, result, start
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

#: Of each ending.
ROUNDS = int(os.environ.get("ENDING_ROUNDS", "1"))
#: A queue leaves its jobs 30 s; twice that, for machines with other work.
GRACE_SECONDS = 60.0
OVERRIDES = tuple(
    f"train.{each}={30 * ROUNDS}"
    for each in ("epochs", "evaluate_every_epochs", "checkpoint.every_epochs")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("endings")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder


def newest(log: Path) -> int:
    return max((event.step for event in read_events(log) if event.kind == METRICS), default=0)


def status_in_mlflow(folder: Path, name: str) -> str:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (tracked,) = client.search_runs(
        [client.get_experiment_by_name("tests").experiment_id],
        f"attributes.run_name = '{name}'",
    )
    return str(tracked.info.status)


def part(process: Any, name: str) -> psutil.Process:
    """A process of the Ray that the driver has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return next(child for child in children if name in Path(child.cmdline()[0]).name)


def has(process: Any, name: str) -> bool:
    """Whether there is one."""
    with suppress(StopIteration, psutil.Error, IndexError):
        part(process, name)
        return True
    return False


def end(process: Any) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def end_as_queues_do(process: Any) -> None:
    """Through `timeout`, which passes the signal on twice, and kills after its grace."""
    process.terminate()


def end_everything(process: Any) -> None:
    """As systemd does unless told otherwise: all that was started gets the signal, Ray too."""
    driver = psutil.Process(process.pid)
    for one in [*driver.children(recursive=True), driver]:
        with suppress(psutil.NoSuchProcess):
            one.terminate()


def kill_raylet(process: Any) -> None:
    part(process, "raylet").kill()


def kill_gcs(process: Any) -> None:
    part(process, "gcs_server").kill()


def stop_raylet(process: Any) -> None:
    part(process, "raylet").suspend()


def stop_gcs(process: Any) -> None:
    part(process, "gcs_server").suspend()


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(
    "strike",
    [end, end_as_queues_do, end_everything, kill_raylet, kill_gcs, stop_raylet, stop_gcs],
)
def test_a_run_ends_with_75_in_time_and_goes_on(
    strike: Callable[[Any], None], number: int, folder: Path
) -> None:
    name = f"{strike.__name__}-{number}"
    words = ("tiny.yaml", f"name={name}", *OVERRIDES)
    politely = strike in (end, end_as_queues_do)
    if not politely:
        words = (*words, "train.checkpoint={every_steps: 1}")
    queue = ("timeout", f"--kill-after={GRACE_SECONDS}", "3600")
    process = start(folder, *words, before=queue if strike is end_as_queues_do else ())
    log = folder / "runs" / name / "events.jsonl"
    wait_for(lambda: newest(log) >= 5, process=process)
    family = psutil.Process(process.pid).children(recursive=True)
    strike(process)
    struck = time.monotonic()
    output = finish(process, code=75)
    seconds = time.monotonic() - struck
    print(f"{name}: ended after {seconds:.1f} s at step {newest(log)}")
    assert "un the same command again" in output
    assert seconds < GRACE_SECONDS
    # Ray's agents try for a minute to tell a head that is gone that their raylet is, too.
    _, alive = psutil.wait_procs(family, timeout=90)
    assert alive == []
    assert status_in_mlflow(folder, name) == "KILLED"
    if politely:
        stopped = result(folder, name)
        assert (stopped["state"], stopped["steps"]) == ("preempted", newest(log))
    again = start(folder, *words, f"train.max_steps={newest(log) + 5}")
    finish(again)
    assert result(folder, name)["resumed_from"] >= newest(log) - 6


SWEEP = """
sweep:
  metric: val/AP
  trials: 3
  search: random
  space: {train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}}
"""


@pytest.mark.parametrize("strike", [kill_raylet, kill_gcs])
def test_a_sweep_that_loses_its_ray_goes_on(strike: Callable[[Any], None], folder: Path) -> None:
    name = f"sweep-{strike.__name__}"
    (folder / "sweep.yaml").write_text(EXPERIMENT + SWEEP)
    # Some of it may be over by then, and some is under way.
    words = ("sweep.yaml", f"name={name}", "train.checkpoint={every_steps: 1}")
    process = start(folder, *words)
    logs = folder / "runs" / name
    wait_for(lambda: any(newest(log) >= 5 for log in logs.glob("*/events.jsonl")), process=process)
    family = psutil.Process(process.pid).children(recursive=True)
    strike(process)
    output = finish(process, code=75, timeout=GRACE_SECONDS)
    assert "the Ray cluster is gone: its " in output
    _, alive = psutil.wait_procs(family, timeout=90)
    assert alive == []
    stopped = json.loads((logs / "sweep.json").read_text())
    assert stopped["state"] == "stopped"
    assert "failed" not in {trial["state"] for trial in stopped["trials"]}
    assert status_in_mlflow(folder, name) == "KILLED"
    finish(start(folder, *words), timeout=600.0)
    whole = json.loads((logs / "sweep.json").read_text())
    assert [trial["state"] for trial in whole["trials"]] == ["done"] * 3
    resumed = [json.loads(path.read_text()) for path in logs.glob("*/result.json")]
    assert any(one["resumed_from"] for one in resumed)
    assert status_in_mlflow(folder, name) == "FINISHED"


@pytest.mark.parametrize(
    ("words", "done"),
    [
        ("predict runs/trained digits/images --all --workers 2", "30 images"),
        ("evaluate runs/trained --workers 2", "AP"),
        ("shard tiny.yaml shards", "24 images"),
    ],
)
def test_other_verbs_that_lose_their_ray_say_so(words: str, done: str, folder: Path) -> None:
    if not (folder / "runs/trained").exists():
        finish(start(folder, "tiny.yaml", "name=trained", "train.max_steps=1"))
    process = start(folder, *words.split(), module="orchestrator.cli.main")
    # The first process for its work, which has yet to import.
    wait_for(lambda: has(process, "ray::IDLE"), process=process)
    kill_raylet(process)
    assert "the Ray cluster is gone: its " in finish(process, code=75, timeout=GRACE_SECONDS)
    assert done in finish(start(folder, *words.split(), module="orchestrator.cli.main"))


def test_a_run_whose_parent_is_process_1_says_what_it_has_lost(folder: Path) -> None:
    """As under systemd and in containers, where Ray's core takes any raylet for dead."""
    words = ("tiny.yaml", "name=orphan", *OVERRIDES, "train.checkpoint={every_steps: 1}")
    forked = start(folder, *words, before=("setsid", "--fork"))
    log = folder / "runs" / "orphan" / "events.jsonl"
    wait_for(lambda: newest(log) >= 5)
    lines = {one: one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])}
    (driver,) = [
        one for one, line in lines.items() if {"orchestrator.run", "name=orphan"} < {*line}
    ]
    if driver.ppid() != 1:
        driver.kill()
        pytest.skip("another process than 1 is the parent of orphans here")
    raylet = part(driver, "raylet")
    # What it starts is told of it, as ever, as far as can be seen: a title may hide it.
    told = {one.environ().get("RAY_RAYLET_PID") for one in raylet.children()} - {None}
    assert told == {str(raylet.pid)}
    raylet.kill()
    # Its output ends with it; its exit code nobody can ask for.
    output = finish(forked)
    assert "the Ray cluster is gone: its raylet on this machine has ended" in output


def test_a_run_that_is_ended_before_its_first_step_ends_at_once(folder: Path) -> None:
    process = start(folder, "tiny.yaml", "name=early", *OVERRIDES)
    run = folder / "runs" / "early"
    # Made when workers are asked for, who take seconds to come.
    wait_for((run / "ray").exists, process=process)
    family = psutil.Process(process.pid).children(recursive=True)
    end(process)
    output = finish(process, code=75)
    assert "stopping: no step is under way" in output
    assert "asked to stop while no worker was training" in output
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert newest(run / "events.jsonl") == 0
    assert status_in_mlflow(folder, "early") == "KILLED"


def test_ray_job_stop_lets_the_step_be_committed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    places = (
        f"data.root={folder / 'digits'}",
        f"storage={folder / 'runs'}",
        f"tracking.mlflow=sqlite:///{folder / 'mlflow.db'}",
        "name=job",
        *OVERRIDES,
    )
    log = folder / "runs" / "job" / "events.jsonl"

    def sent(*overrides: str) -> str:
        words = (*places, *overrides)
        submission = prepare(
            Path("tiny.yaml"), words, working_dir=folder, excludes=["digits", "runs", "mlflow*"]
        )
        return submit(client, submission)

    words = ["ray", "job", "stop", "--address"]
    with job_cluster(monkeypatch) as address:
        client = connect(address)
        for number in range(ROUNDS):
            before = newest(log)
            job = sent()
            wait_for(lambda before=before: newest(log) >= before + 5)
            struck = time.monotonic()
            subprocess.run(
                [*words, address, job], check=True, capture_output=True, timeout=GRACE_SECONDS
            )
            with pytest.raises(PreemptedError, match="submit the same command to go on"):
                follow(client, job)
            print(f"ray job stop: over after {time.monotonic() - struck:.1f} s")
            stopped = result(folder, "job")
            assert (stopped["state"], stopped["steps"]) == ("preempted", newest(log))
            assert not number or stopped["resumed_from"] == before
            assert status_in_mlflow(folder, "job") == "KILLED"
        follow(client, sent(f"train.max_steps={newest(log) + 5}"))
        assert result(folder, "job")["resumed_from"] == stopped["steps"]
