"""The user's command on a sweep: unbroken, killed again and again, and with trials added."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow.tracking import MlflowClient
from sweep_runs import journal, progress, summary, write_experiment

from tests.support.small_run import make_data
from tests.support.user_command import finish, result, start
from tests.support.waiting import wait_for

pytestmark = pytest.mark.ray

#: For a whole sweep, and for a step of one, on a machine with other work.
SECONDS, STEP_SECONDS = 1500.0, 600.0
SPACE = """
space:
  train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
  train.schedule.warmup_epochs: {uniform: [0, 1]}
"""
#: What a trial leaves behind, whatever happened on the way.
KEPT = ("name", "state", "values", "score", "metrics", "weights_sha256", "steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep-through-ray")
    make_data(folder / "squares")
    asha = "trials: 3\nscheduler: asha\nasha: {reduction_factor: 2}"
    write_experiment(folder, asha + SPACE, epochs=3, mlflow='"sqlite:///mlflow.db"')
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[str, dict[str, Any]]:
    """Output and summary of an unbroken sweep."""
    output = finish(start(folder, "sweep.yaml"), timeout=SECONDS)
    return output, summary(folder, "whole")


def results(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: trial[key] for key in KEPT} for trial in found["trials"]]


def kill(process: subprocess.Popen[str], when: Callable[[], bool]) -> None:
    """Send SIGKILL once ``when`` holds."""
    wait_for(when, STEP_SECONDS, process)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_trials_are_distinct_runs_nested_in_mlflow(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    output, found = whole
    assert "at a time: one trial takes 1 worker x 1 CPU, plus 1 CPU for reading data" in output
    assert found["state"] == "finished"
    assert len({trial["digest"] for trial in found["trials"]}) == 3
    assert {trial["state"] for trial in found["trials"]} <= {"done", "stopped"}
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    address = urlsplit(output.splitlines()[-1].removeprefix("# "))
    assert address.fragment.startswith("/compare-runs?")
    compared = parse_qs(address.fragment.partition("?")[2])
    assert json.loads(compared["experiments"][0]) == [experiment.experiment_id]
    trials = {run.info.run_id for name, run in runs.items() if name != "whole"}
    assert len(trials) == 3
    assert set(json.loads(compared["runs"][0])) == trials
    parent = runs["whole"]
    assert parent.data.tags["best_trial"] == found["best"]
    assert parent.data.tags["best_run_id"] == runs[found["best"]].info.run_id
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "best")} == {
        "best/resolved.yaml",
        "best/checkpoint",
    }
    for trial in found["trials"]:
        run = runs[trial["name"]]
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["trial"] == trial["name"]
        assert tags["ended"] == trial["state"]
        assert tags["config_digest"] == trial["config_digest"]
        assert tags["data_digest"] == trial["data_digest"]
        rate = trial["values"]["train.optimizer.lr"]
        assert float(run.data.params["train.optimizer.lr"]) == rate


@pytest.mark.slow
def test_a_killed_driver_changes_nothing(whole: tuple[str, dict[str, Any]], folder: Path) -> None:
    for trial, step in (("trial-000", 2), ("trial-001", 2)):
        log = folder / "runs" / "broken" / trial / "events.jsonl"
        mark = f'"step":{step},'
        kill(
            start(folder, "sweep.yaml", "name=broken"),
            lambda log=log, mark=mark: log.exists() and mark in log.read_text(),
        )
    finish(start(folder, "sweep.yaml", "name=broken"), timeout=SECONDS)
    broken = summary(folder, "broken")
    assert results(broken) == results(whole[1])
    assert broken["ranking"] == whole[1]["ranking"]
    assert sorted(entry["trial"] for entry in journal(folder, "broken", "end")) == [0, 1, 2]
    assert journal(folder, "broken", "judged") == journal(folder, "whole", "judged")


@pytest.mark.slow
def test_the_best_trial_is_repeated_to_the_bit(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    best = whole[1]["best"]
    words = ("rerun", "runs/whole", "--trial", "best")
    said = finish(start(folder, *words, module="orchestrator.cli.main"), timeout=SECONDS)
    assert f"{best}: the same weights, to the bit" in said
    (first,) = (trial for trial in whole[1]["trials"] if trial["name"] == best)
    again = result(folder, f"whole-{best}-rerun")
    assert again["weights_sha256"] == first["weights_sha256"]
    assert again["metrics"] == first["metrics"]


@pytest.mark.slow
def test_trials_are_added_to_a_finished_sweep_and_other_sweeps_refused(
    whole: tuple[str, dict[str, Any]], folder: Path
) -> None:
    refused = finish(start(folder, "sweep.yaml", "sweep.scheduler=none"), code=64)
    assert "holds another sweep" in refused
    assert "sweep.scheduler" in refused
    finish(start(folder, "sweep.yaml", "sweep.trials=4"), timeout=SECONDS)
    found = summary(folder, "whole")
    assert found["trials"][:3] == whole[1]["trials"]
    assert found["trials"][3]["state"] in ("done", "stopped")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray that outlives drivers and gives out eight CPUs, whatever there are."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Of a machine that others use as well, whose memory is none of this test's business.
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False}
        )
        try:
            yield made.address
        finally:
            made.shutdown()


@pytest.mark.parametrize(
    ("trials", "kills"),
    [
        pytest.param(5, 2, marks=pytest.mark.slow),
        pytest.param(50, 10, marks=pytest.mark.chaos),
    ],
)
def test_killed_at_random_each_trial_ends_once_and_as_it_would_have(
    trials: int, kills: int, cluster: str, tmp_path: Path
) -> None:
    make_data(tmp_path / "squares")
    # Four beside each other: what they are does not depend on who comes first.
    write_experiment(tmp_path, f"trials: {trials}\nconcurrency: 4{SPACE}", epochs=2)
    began = time.monotonic()
    finish(start(tmp_path, "sweep.yaml", address=cluster), timeout=2 * SECONDS)
    unbroken = time.monotonic() - began
    whole = summary(tmp_path, "whole")
    lines = progress(tmp_path, "whole")
    draw = random.Random(trials)
    moments = sorted(draw.sample(range(1, int(0.95 * lines)), kills))
    running = []
    for moment in moments:
        least = max(moment, progress(tmp_path, "broken") + 1)
        pause = draw.random()

        def reached(least: int = least, pause: float = pause) -> bool:
            if progress(tmp_path, "broken") < least:
                return False
            time.sleep(pause)
            return True

        kill(start(tmp_path, "sweep.yaml", "name=broken", address=cluster), reached)
        known = {e["trial"] for e in journal(tmp_path, "broken", "end")}
        logs = (tmp_path / "runs" / "broken").glob("trial-*/events.jsonl")
        running.append(sum(int(log.parent.name[-3:]) not in known for log in logs))
    finish(start(tmp_path, "sweep.yaml", "name=broken", address=cluster), timeout=2 * SECONDS)
    broken = summary(tmp_path, "broken")
    print(
        f"{trials} trials, unbroken {unbroken:.0f} s, killed {kills} times with {running} under "
        f"way, {time.monotonic() - began - unbroken:.0f} s"
    )
    ends = [entry["trial"] for entry in journal(tmp_path, "broken", "end")]
    assert sorted(ends) == list(range(trials))
    assert results(broken) == results(whole)
    assert broken["ranking"] == whole["ranking"]
    assert len({trial["weights_sha256"] for trial in broken["trials"]}) == trials
