"""A run folder that is moved, copied, removed or mounted over while its run trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.manifest import POINTER_NAME
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.errors import StorageError
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.events import read_events
from tests.support.experiments import experiment
from tests.support.user_command import finish, result, start
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

EXPERIMENT = experiment(
    """\
train:
  epochs: 8
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  evaluate_every_epochs: 4
  checkpoint: {every_steps: EVERY}
  log_every_steps: 1
cluster: {threads_per_worker: 1}
"""
)
STEPS = 48
SAME = ("state", "steps", "metrics", "best_metrics", "weights_sha256", "config_digest")
#: In which a run has to see that its folder is not there any more.
SECONDS = 60


@dataclass
class Place:
    """Where a run trains.

    Attributes:
        folder: of the run.
        stack: what has to be undone.
    """

    folder: Path
    stack: ExitStack

    @property
    def away(self) -> Path:
        return self.folder.with_name("away")

    def mount(self, *words: str) -> None:
        subprocess.run(["mount", *words, str(self.folder)], check=True)
        self.stack.callback(self.unmount, check=False)

    def unmount(self, *, check: bool = True) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=check, capture_output=True)


def _remove(place: Place) -> None:
    while place.folder.exists():  # A commit may be under way.
        shutil.rmtree(place.folder, ignore_errors=True)


def _nothing(_: Place) -> None:
    pass


#: What is done to the folder, and what is done before the run is started again.
LOST: dict[str, tuple[Callable[[Place], object], Callable[[Place], object]]] = {
    "moved": (lambda p: p.folder.rename(p.away), lambda p: p.away.rename(p.folder)),
    "removed": (_remove, _nothing),
    "mounted-over": (lambda p: p.mount("-t", "tmpfs", "none"), Place.unmount),
    "unmounted": (Place.unmount, lambda p: p.mount("--bind", str(p.away))),
}
needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, which takes root")
WAYS = [
    "moved",
    "removed",
    pytest.param("mounted-over", marks=needs_mount),
    pytest.param("unmounted", marks=needs_mount),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Result of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    prepare(folder, every=3)
    finish(start(folder, "tiny.yaml"))
    return result(folder, "tiny")


def prepare(folder: Path, *, every: int) -> None:
    build_digits(folder / "digits", Recipe(train=24, val=6, seed=3))
    (folder / "tiny.yaml").write_text(EXPERIMENT.replace("EVERY", str(every)))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path / "runs" / "tiny", stack)


def steps_of(folder: Path) -> int:
    return max((event.step for event in read_events(folder / EVENTS)), default=0)


def require_whole(folder: Path, whole: dict[str, Any]) -> None:
    """See that a run ended as the undisturbed one, and logged every loss once."""
    found = result(folder, "tiny")
    assert {key: found[key] for key in SAME} == {key: whole[key] for key in SAME}
    events = list(read_events(folder / "runs" / "tiny" / EVENTS))
    assert [event.seq for event in events] == list(range(len(events)))
    losses = [event.step for event in events if "train/loss" in event.values]
    assert losses == list(range(1, STEPS + 1))


@pytest.mark.parametrize("every", [3, 1000], ids=["between-commits", "before-any-commit"])
@pytest.mark.parametrize("how", WAYS)
def test_a_folder_that_is_lost_ends_the_run_and_nothing_else_is(
    how: str, every: int, tmp_path: Path, place: Place, whole: dict[str, Any]
) -> None:
    lose, find = LOST[how]
    prepare(tmp_path, every=every)
    if how == "unmounted":
        place.away.mkdir(parents=True)
        place.folder.mkdir()
        place.mount("--bind", str(place.away))
    run = start(tmp_path, "tiny.yaml")
    wait_for(lambda: steps_of(place.folder) >= 10, process=run)
    if every < STEPS:
        wait_for((place.folder / POINTER_NAME).exists, process=run)
    lose(place)
    began = time.monotonic()
    output = finish(run, code=StorageError.exit_code)
    assert time.monotonic() - began < SECONDS
    assert str(place.folder) in output
    assert "Traceback" not in output
    # Nothing was put where the folder had been, or into another one.
    assert not (place.folder / EVENTS).exists()
    find(place)
    finish(start(tmp_path, "tiny.yaml"))
    require_whole(tmp_path, whole)


def test_a_copy_made_under_way_goes_on_by_itself(
    tmp_path: Path, place: Place, whole: dict[str, Any]
) -> None:
    prepare(tmp_path, every=3)
    other = tmp_path / "other"
    prepare(other, every=3)
    run = start(tmp_path, "tiny.yaml")
    wait_for(lambda: steps_of(place.folder) >= 10, process=run)
    wait_for((place.folder / POINTER_NAME).exists, process=run)
    # As `cp -r` makes it: what goes while it is copied is not in it.
    subprocess.run(
        ["cp", "-r", str(tmp_path / "runs"), str(other / "runs")], check=False, capture_output=True
    )
    finish(run)
    require_whole(tmp_path, whole)
    shutil.rmtree(tmp_path / "runs")
    finish(start(other, "tiny.yaml"))
    require_whole(other, whole)
