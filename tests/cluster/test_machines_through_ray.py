"""Runs over machines with addresses and disks of their own; see ``tests/support/machines.py``.

Every machine's name resolves to 127.0.1.1 there, as Debian and Ubuntu have it. The driver's machine
takes no worker, so rank 0 is never on the disk that the run folder is on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.tracking.events import read_events
from tests.support.experiments import experiment
from tests.support.machines import Machine, entered, machines, needs_machines
from tests.support.user_command import finish, result, start
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, needs_machines]

EXPERIMENT = experiment(
    """\
train:
  epochs: 6
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  evaluate_every_epochs: 3
  checkpoint: {every_steps: 2}
  log_every_steps: 1
cluster: {workers: 2, threads_per_worker: 1, hang_timeout: 15}
tracking: {mlflow: null}
""",
    root="ROOT",
)
HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n"
STEPS = 36
SAME = ("state", "steps", "metrics", "best_metrics", "weights_sha256", "config_digest")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """Result of an unbroken run on this machine alone."""
    (folder / "tiny.yaml").write_text(EXPERIMENT.replace("ROOT", str(folder / "digits")))
    finish(start(folder, "tiny.yaml"), timeout=900.0)
    return result(folder, "tiny")


@pytest.fixture
def cluster(folder: Path) -> Iterator[list[Machine]]:
    """The driver's machine, which is the head and has no CPU for others, and three more.

    Ray runs on the first three of them.
    """
    with machines(folder, folder / "digits", 4, hosts=HOSTS) as made:
        for machine, cpus in zip(made[:3], (0, 2, 2), strict=True):
            machine.join(made[0], cpus=cpus)
        yield made


def begin(
    machine: Machine, head: Machine, *words: str, more: str = "", **surroundings: str
) -> subprocess.Popen[str]:
    text = EXPERIMENT.replace("ROOT", "/mnt/data") + more
    (machine.root / "mnt/home/tiny.yaml").write_text(text)
    address = f"cluster.address={head.ray}"
    strategy = "cluster.placement=strict_spread"
    command = (sys.executable, "-m", "orchestrator.run", "tiny.yaml", address, strategy, *words)
    return machine.start(*command, surroundings=surroundings)


def run_folder(machine: Machine) -> Path:
    return machine.root / "mnt/home/runs/tiny"


def wait_for_step(process: subprocess.Popen[str], log: Path, step: int) -> None:
    wait_for(lambda: max((e.step for e in read_events(log)), default=0) >= step, process=process)


def require_whole(folder: Path, whole: dict[str, Any]) -> None:
    """See that a run ended as the unbroken one, and logged every number once."""
    found = json.loads((folder / "result.json").read_text())
    assert {key: found[key] for key in SAME} == {key: whole[key] for key in SAME}
    events = list(read_events(folder / "events.jsonl"))
    assert [event.seq for event in events] == list(range(len(events)))
    losses = [event.step for event in events if "train/loss" in event.values]
    assert losses == list(range(1, STEPS + 1))
    assert [event.step for event in events if "val/AP" in event.values] == [18, 36]
    assert (folder / "eval" / "coco_results.json").is_file()
    assert (folder / "report.html").is_file()


def test_a_stop_and_a_lost_machine_change_nothing(
    cluster: list[Machine], whole: dict[str, Any]
) -> None:
    driver, *workers, spare = cluster
    log = run_folder(driver) / "events.jsonl"
    first = begin(driver, driver)
    wait_for_step(first, log, 3)
    asked = time.monotonic()
    os.kill(entered(first), signal.SIGTERM)
    output = finish(first, code=75)
    assert time.monotonic() - asked < 20
    assert "on the driver's node alone; workers on m2 (10.77.0.2), m3 (10.77.0.3)" in output
    stopped = max(event.step for event in read_events(log))
    assert (run_folder(driver) / "ckpt" / f"{stopped:09d}" / "MANIFEST.json").is_file()

    second = begin(driver, driver)
    wait_for_step(second, log, stopped + 4)
    # Rank 0 is on either of them.
    workers[0].power_off()
    spare.join(driver, cpus=2)
    finish(second, timeout=900.0)
    require_whole(run_folder(driver), whole)
    best = result(driver.root / "mnt/home", "tiny")["best_checkpoint"]
    assert (run_folder(driver) / best / "weights.safetensors").is_file()
    # What the workers had for themselves is gone.
    for machine in (workers[1], spare):
        left = {path.name for path in (machine.root / "tmp").iterdir()}
        assert not {name for name in left if name.startswith("orchestrator-run-")}
        assert not run_folder(machine).exists()


def test_a_link_between_workers_that_is_cut_is_waited_for(
    cluster: list[Machine], whole: dict[str, Any]
) -> None:
    driver, *workers, _ = cluster
    log = run_folder(driver) / "events.jsonl"
    run = begin(driver, driver)
    wait_for_step(run, log, 6)
    for worker in workers:
        worker.set_apart(True)
    # Ranks that stand still are killed, and the next attempt is begun while the link is cut.
    time.sleep(20)
    for worker in workers:
        worker.set_apart(False)
    output = finish(run, timeout=900.0)
    assert "got no further for" in output
    require_whole(run_folder(driver), whole)
    attempts = [event.text for event in read_events(log) if event.kind == "resume"]
    assert len(attempts) == 1, attempts


# Seconds until a machine refuses a port that nobody listens at: one packet there, one back.
TRIP = """
import socket, sys, time
began = time.monotonic()
socket.socket().connect_ex((sys.argv[1], 1))
print(time.monotonic() - began)
"""


def test_a_line_of_two_hundred_milliseconds_restarts_nothing(
    folder: Path, whole: dict[str, Any]
) -> None:
    with machines(folder, folder / "digits", 3, hosts=HOSTS) as made:
        driver, second, third = made
        third.delay(0.2)
        for machine, cpus in zip(made, (0, 2, 2), strict=True):
            machine.join(driver, cpus=cpus)
        assert float(second.run(sys.executable, "-c", TRIP, third.address)) >= 0.4
        finish(begin(driver, driver), timeout=1500.0)
        require_whole(run_folder(driver), whole)
        log = run_folder(driver) / "events.jsonl"
        assert not [event.text for event in read_events(log) if event.kind == "resume"]


SWEEP = """
sweep:
  metric: val/AP
  trials: 8
  search: random
  space: {train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}}
"""


def test_a_sweep_does_without_a_machine_that_is_lost(cluster: list[Machine]) -> None:
    driver, second, _, spare = cluster
    spare.join(driver, cpus=2)
    words = ("cluster.workers=1", "train.epochs=2", "train.evaluate_every_epochs=1")
    sweep = begin(driver, driver, *words, more=SWEEP)
    folder = driver.root / "mnt/home/runs/tiny"
    # All three are at work, and one trial has ended.
    wait_for(lambda: list(folder.glob("trial-*/result.json")), process=sweep)
    second.power_off()
    output = finish(sweep, timeout=900.0)
    assert "3 at a time" in output
    tree = json.loads((folder / "sweep.json").read_text())
    assert [trial["state"] for trial in tree["trials"]] == ["done"] * 8
    for number in range(8):
        found = json.loads((folder / f"trial-{number:03d}/result.json").read_text())
        assert (found["state"], found["steps"]) == ("done", 12)
        events = read_events(folder / f"trial-{number:03d}/events.jsonl")
        losses = [event.step for event in events if "train/loss" in event.values]
        assert losses == list(range(1, 13))


def test_predict_does_without_a_machine_that_is_lost(
    cluster: list[Machine], folder: Path, whole: dict[str, Any]
) -> None:
    driver, second, _, spare = cluster
    spare.join(driver, cpus=2)
    small = folder / "digits" / "small"
    small.mkdir()
    rng = np.random.Generator(np.random.PCG64(1))
    for number in range(500):
        pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
        assert cv2.imwrite(str(small / f"{number:03d}.png"), pixels)
    shutil.copytree(folder / "runs" / "tiny", driver.root / "mnt/home/trained")
    words = ("-m", "orchestrator.cli.main", "predict", "trained", "/mnt/data/small", "--all")
    alone = driver.start(sys.executable, *words, "--output", "alone.json")
    finish(alone, timeout=900.0)
    several = (f"cluster.address={driver.ray}", "--workers", "4")
    run = driver.start(sys.executable, *words, *several)
    home = driver.root / "mnt/home"
    wait_for(lambda: list(home.glob("predictions.json.parts/*/part-*")), process=run)
    second.power_off()
    assert "500 images" in finish(run, timeout=900.0)
    assert (home / "predictions.json").read_bytes() == (home / "alone.json").read_bytes()


def test_what_cannot_work_is_refused_before_the_first_step(cluster: list[Machine]) -> None:
    driver, _, third, _ = cluster
    third.run("ip", "route", "add", "unreachable", "10.77.0.2/32")
    began = time.monotonic()
    output = finish(begin(driver, driver), code=64)
    assert time.monotonic() - began < 60
    assert "m3 (10.77.0.3) does not reach m2 (10.77.0.2) on port " in output

    third.run("ip", "route", "del", "unreachable", "10.77.0.2/32")
    third.run("umount", "/mnt/data")
    output = finish(begin(driver, driver), code=64)
    assert "data.train.images: /mnt/data/images" in output
    assert "cannot be read on m3 (10.77.0.3)" in output

    output = finish(
        begin(driver, driver, "cluster.workers=1", "cluster.cpus_per_worker=3"), code=64
    )
    assert "m2 (10.77.0.2): 2 CPU for 0" in output
    # Nothing was begun that would refuse the next start.
    assert not (run_folder(driver) / "run.json").exists()


def test_a_run_in_a_bucket_goes_on_from_another_machine(
    folder: Path, whole: dict[str, Any]
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    with machines(folder, folder / "digits", 4, hosts=HOSTS) as made:
        driver, _, other, store = made
        options = f"region=us-east-1&scheme=http&endpoint_override={store.address}:9000"
        module = ("-m", "tests.support.s3_server", store.address, "9000")
        store.start(sys.executable, *module)
        for machine, cpus in zip(made[:3], (0, 2, 2), strict=True):
            machine.join(driver, cpus=cpus, surroundings=keys)
        driver.run(
            sys.executable,
            "-c",
            "import sys, pyarrow.fs; f, _ = pyarrow.fs.FileSystem.from_uri(sys.argv[1]); "
            "f.create_dir('runs')",
            f"s3://runs?{options}&allow_bucket_creation=true",
            surroundings=keys,
        )
        storage = f"storage=s3://runs/all?{options}"
        first = begin(driver, driver, storage, **keys)
        wait_for_step(first, run_folder(driver) / "events.jsonl", 3)
        os.kill(entered(first), signal.SIGTERM)
        finish(first, code=75)

        # The folder that this driver works in, and its event log, have never been there.
        output = finish(begin(other, driver, storage, **keys), timeout=900.0)
        assert "report: /mnt/home/runs/tiny/report.html" in output
        require_whole(run_folder(other), whole)
        # What the bucket has is what yet another start finds.
        assert "val AP" not in finish(begin(driver, driver, storage, **keys), timeout=900.0)
        require_whole(run_folder(driver), whole)
