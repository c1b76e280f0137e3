"""Every file of a run folder damaged in every way, one at a time: exact, or refused with a reason.

The files are those that the folder has, so that one which is new is damaged, too.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from orchestrator.cluster.placement import Placement
from orchestrator.config.resolve import load_experiment
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import OrchestratorError
from orchestrator.runs import driver
from orchestrator.runs import plan as planning
from orchestrator.runs.plan import Plan
from orchestrator.runs.run import Run
from orchestrator.storage.run_files import EVENTS, IDENTITY, LABEL_MAP, RESOLVED, RESULT, STOP
from orchestrator.tracking.events import metric_history
from orchestrator.training import session
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.session import run_rank
from tests.support.chaos_run import CPU, EXPERIMENT, STEPS, digests, small_detector
from tests.support.local_runs import StoppingStream

#: What people and clean-up jobs get wrong: anything but a bug in the program.
REFUSALS = {64, 65, 71, 77}


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def _dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "junk": lambda file: file.write_bytes(bytes(range(256)) * 4),
    "folder": _folder,
    "link": _link,
    "dangling": _dangling,
}


@contextmanager
def alone() -> Iterator[None]:
    """The driver trains in this process, as if its cluster were here."""

    def trained(_: Run, plan: Plan, job: TrainingJob, *__: object) -> Outcome:
        (job.path / STOP).unlink(missing_ok=True)
        return run_rank(job, STREAM(plan), accelerator=CPU)

    here = Placement(CPU, {"CPU": 1.0}, 1)
    with ExitStack() as patches:
        for target, name, replacement in (
            (driver, "connected", lambda *_, **__: nullcontext()),
            (driver, "place", lambda *_, **__: here),
            (driver, "place_evaluation", lambda *_, **__: "there is no cluster"),
            (driver, "wait_for_room", lambda *_: None),
            (driver, "marked_folder", lambda *_, **__: nullcontext()),
            (driver, "_train", trained),
            (driver, "_report", lambda *_: None),  # A process of its own, for seconds.
            (session, "build_detector", small_detector),
            (session, "_STOP_POLL_SECONDS", 0.0),
            (planning, "skeleton", small_detector),
        ):
            patches.enter_context(mock.patch.object(target, name, replacement))
        yield


def _whole(plan: Plan) -> LocalStream:
    return LocalStream(plan.batches)


STREAM: Callable[[Plan], LocalStream] = _whole


def start(file: Path, folder: Path, said: io.StringIO) -> dict[str, Any]:
    """Start the run, or go on with it; content of its result."""
    console = Console(file=said, soft_wrap=True)
    return driver.train(
        load_experiment(file), folder, force_resume=False, console=console, trial=None
    )


def losses(folder: Path) -> list[tuple[int, float]]:
    """What the event log says of the loss: step and value."""
    return [(p.step, p.value) for p in metric_history(folder / EVENTS, "train/loss")]


def copies(folder: Path, target: Path, damage: str) -> Iterator[tuple[Path, Path]]:
    """A copy of a run for each of its files, in which that file is damaged; and the file."""
    for original in sorted(path for path in folder.rglob("*") if path.is_file()):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target, symlinks=True)
        file = target / original.relative_to(folder)
        DAMAGE[damage](file)
        yield target, file


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Path]:
    """A run that was interrupted, the same when it has ended, and the experiment."""
    global STREAM
    root = tmp_path_factory.mktemp("every")
    file = root / "e.yaml"
    text = EXPERIMENT.replace("every_steps: 1, keep_last: 20", "every_steps: 3, keep_last: 2")
    file.write_text(text % json.dumps(str(digits)))
    folder = root / "chaos"
    with alone():
        STREAM = lambda plan: StoppingStream(plan, 6)  # noqa: E731
        try:
            assert start(file, folder, io.StringIO())["state"] == "preempted"
        finally:
            STREAM = _whole
        interrupted = shutil.copytree(folder, root / "interrupted")
        assert start(file, folder, io.StringIO())["state"] == "done"
    return {"file": file, "interrupted": interrupted, "finished": folder}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("state", ["interrupted", "finished"])
def test_going_on_is_exact_or_refused(
    state: str, damage: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    expected = digests(runs["finished"])[STEPS]
    metrics = json.loads((runs["finished"] / RESULT).read_bytes())["metrics"]
    points = losses(runs["finished"])
    problems: list[str] = []
    for folder, file in copies(runs[state], tmp_path / "run", damage):
        name, said = file.relative_to(folder), io.StringIO()
        try:
            with alone():
                result = start(runs["file"], folder, said)
        except OrchestratorError as error:
            if error.exit_code not in REFUSALS or str(folder) not in str(error):
                problems.append(f"{name}: exit code {error.exit_code}: {error}")
            continue
        except Exception as error:
            problems.append(f"{name}: {error!r}")
            continue
        if result["state"] != "done" or result["metrics"] != metrics:
            problems.append(f"{name}: {result['state']}, {result['metrics']}")
        if digests(folder).get(STEPS) != expected:
            problems.append(f"{name}: other weights")
        kept = losses(folder)
        # A run that has nothing left to do says so each time, and adds nothing to its log.
        if kept != points and f"warning: {EVENTS}: " not in said.getvalue():
            problems.append(f"{name}: {len(kept)} of {len(points)} points, and no word")
    assert not problems, "\n".join(problems)


class _Disturbed(LocalStream):
    """Removes what says what the run is, while it trains."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.batches)
        self._folder = plan.job.path

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step == 4:
                for name in DESCRIPTION:
                    (self._folder / name).unlink()
            yield batch


DESCRIPTION = (IDENTITY, LABEL_MAP, RESOLVED)


def test_what_is_removed_while_a_run_trains_is_there_at_its_end(
    tmp_path: Path, digits: Path
) -> None:
    global STREAM
    file, said = tmp_path / "e.yaml", io.StringIO()
    file.write_text(EXPERIMENT % json.dumps(str(digits)))
    folder = tmp_path / "chaos"
    STREAM = _Disturbed
    try:
        with alone():
            assert start(file, folder, said)["state"] == "done"
    finally:
        STREAM = _whole
    assert f"written anew: {', '.join((IDENTITY, RESOLVED, LABEL_MAP))}" in said.getvalue()
    before = [(folder / name).read_bytes() for name in DESCRIPTION]
    shutil.rmtree(folder)
    with alone():
        assert start(file, folder, said)["state"] == "done"
    assert [(folder / name).read_bytes() for name in DESCRIPTION] == before
