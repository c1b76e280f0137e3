"""How runs and sweeps stand, from their folders alone: nothing is started and nothing is locked."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.manifest import Commit, checked_commits
from orchestrator.errors import StorageError
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import (
    CHECKPOINTS,
    EVENTS,
    IDENTITY,
    RESOLVED,
    RESULT,
    SWEEP_JOURNAL,
    SWEEP_RESULT,
    refuse_addresses,
)
from orchestrator.storage.sealed import UnusableError, unseal
from orchestrator.tracking.events import Event, lost_since, read_events
from orchestrator.tracking.goodput import BOOKKEEPING

#: Any of these makes a folder one of a run or a sweep: what is damaged has to be seen.
_OF_A_SWEEP = (SWEEP_JOURNAL, SWEEP_RESULT)
_OF_A_RUN = (IDENTITY, RESOLVED, EVENTS)
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Standing:
    """A run or a sweep.

    Attributes:
        name: of its folder.
        kind: ``run`` or ``sweep``.
        state: as its result says; ``unfinished`` before there is one.
        step: optimizer steps logged; trials that have ended, of a sweep.
        score: AP of the last evaluation, or the best score of a sweep; None before there is one.
        seconds: since something was written; None where nothing was.
        note: what was logged last, or which trial is best.
        troubles: what of the folder is missing or damaged, and what is therefore not known.
        metric: that the score is of.
    """

    name: str
    kind: str
    state: str
    step: int
    score: float | None
    seconds: float | None
    note: str
    troubles: tuple[str, ...] = ()
    metric: str = "AP"

    def text(self) -> str:
        """On one line."""
        count = f"{self.step} trials ended" if self.kind == "sweep" else f"step {self.step}"
        score = "" if self.score is None else f", {self.metric} {self.score:.4f}"
        ago = "" if self.seconds is None else f", last written {_ago(self.seconds)} ago"
        note = f"; {self.note}" if self.note else ""
        troubles = "".join(f"\n  warning: {line}" for line in self.troubles)
        return f"{self.name}: {self.kind} {self.state}, {count}{score}{ago}{note}{troubles}"


def standing(folder: Path) -> Standing:
    """How the run or sweep in a folder stands.

    Raises:
        StorageError: it holds neither.
    """
    if _is_any(folder, _OF_A_SWEEP):
        return _sweep(folder)
    if _is_any(folder, _OF_A_RUN):
        return _run(folder)
    refuse_addresses(folder)
    raise StorageError(
        f"{folder}: is no folder of a run or a sweep. Next: `orchestrator list FOLDER` lists those "
        "below a folder"
    )


def standings(root: Path) -> list[Standing]:
    """Runs and sweeps right below a folder, by name.

    Raises:
        StorageError: there is no such folder.
    """
    if not root.is_dir():
        refuse_addresses(root)
        raise StorageError(f"{root}: no such folder. Next: name the `storage` of your experiments")
    found = [f for f in sorted(root.iterdir()) if _is_any(f, (*_OF_A_SWEEP, *_OF_A_RUN))]
    return [standing(folder) for folder in found]


def _is_any(folder: Path, names: tuple[str, ...]) -> bool:
    """Whether a folder has one of these, in whatever condition."""
    return any(os.path.lexists(folder / name) for name in names)


def _run(folder: Path) -> Standing:
    result, troubles = read_result(folder), run_troubles(folder)
    step, score, note = 0, None, ""
    last: Event | None = None
    try:
        for last in read_events(folder / EVENTS):
            step = max(step, last.step)
            score = _finite(last.values.get("val/AP", score))
            if last.text and last.kind not in BOOKKEEPING:
                note = f"{last.kind}: {last.text}"
    except OSError:
        pass  # One of the troubles.
    if last is not None and is_outdated(result, last.step):
        result = {}
    state = str(result.get("state", "unfinished"))
    if state == "done":
        # Notes of the way there are no news of a run that has arrived, and its log may be gone.
        note, step = "", max(step, int(result["steps"]))
        score = result["metrics"].get("AP", score)
    age = _age(folder / EVENTS)
    return Standing(folder.name, "run", state, step, score, age, note, tuple(troubles))


def read_result(folder: Path) -> dict[str, Any]:
    """What ``result.json`` of a run says; nothing where there is none that can be read."""
    result = _read(folder / RESULT)
    metrics = result.get("metrics")
    if not isinstance(result.get("steps"), int) or not isinstance(metrics, dict):
        return {}
    score = metrics.get("AP")
    # Of a class without boxes it is -1; what is no number at all lies nowhere.
    known = score is None or (isinstance(score, float | int) and -1 <= score <= 1)
    return result if known else {}


def _finite(value: float | None) -> float | None:
    """A value as JSON can say it, which has no NaN."""
    return value if value is None or math.isfinite(value) else None


def is_outdated(result: Mapping[str, Any], step: int) -> bool:
    """Whether a result is that of an earlier end, which the run has left behind since.

    Args:
        result: of the run; may be empty.
        step: that the run has come to.
    """
    return step > int(result.get("steps", step))


def newest_commit(folder: Path) -> Commit | None:
    """The newest checkpoint of a run whose files are there; None without any.

    Raises:
        OSError: something else is in the place of the folder that holds them.
    """
    return next(iter(checked_commits(LocalStorage(folder))), None)


def run_troubles(folder: Path) -> list[str]:
    """What of a run folder is missing or damaged, and what is therefore not known.

    Nothing of a run that only began, or of one that is whole.
    """
    lines = []
    if os.path.lexists(folder / RESOLVED):
        try:
            unseal("run", LocalStorage(folder).read_file(IDENTITY, limit=_MAX_BYTES))
        except (OSError, UnusableError, StorageError) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"{error}"
            lines.append(f"{IDENTITY} {why}, so what decided the result is not recorded")
    result, newest = read_result(folder), None
    try:
        newest = newest_commit(folder)
    except OSError as error:
        lines.append(f"{CHECKPOINTS}: {error.strerror}, so no checkpoint of it can be used")
    except StorageError as error:  # Of another program.
        lines.append(str(error))
    if os.path.lexists(folder / RESULT) and not result:
        lines.append(f"{RESULT} cannot be read, so it is not known how the run ended")
    if newest is not None and is_outdated(result, newest.step):
        lines.append(
            f"{RESULT} is that of step {result['steps']}, and the run has gone on to step "
            f"{newest.step} since"
        )
    mark = None if newest is None else newest.manifest.log
    try:
        lost = None if mark is None else lost_since(folder / EVENTS, mark)
        if newest is not None and lost is not None:
            lines.append(f"{EVENTS}: {lost} when step {newest.step} was committed")
    except OSError as error:
        lines.append(f"{EVENTS}: {error.strerror}, so it is not known what was measured")
    return lines


def _sweep(folder: Path) -> Standing:
    summary, troubles = _read(folder / SWEEP_RESULT), []
    trials: list[dict[str, Any]] = summary.get("trials", [])
    try:
        ended = sum(trial["state"] in ("done", "stopped", "failed") for trial in trials)
        scores = {str(trial["name"]): trial["score"] for trial in trials}
        if not all(isinstance(score, float | int | None) for score in scores.values()):
            raise TypeError("a score is no number")
    except (TypeError, KeyError):
        summary, ended, scores = {}, 0, {}
    if os.path.lexists(folder / SWEEP_RESULT) and not summary:
        troubles.append(f"{SWEEP_RESULT} cannot be read, so it is not known how its trials stand")
    best = str(summary.get("best"))
    score = _finite(scores.get(best))
    note = f"best {best}" if best in scores else ""
    state = str(summary.get("state", "unfinished"))
    age = _age(folder / SWEEP_JOURNAL)
    metric = str(summary.get("metric", "AP")).removeprefix("val/")
    return Standing(folder.name, "sweep", state, ended, score, age, note, tuple(troubles), metric)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _age(path: Path) -> float | None:
    return time.time() - path.stat().st_mtime if path.is_file() else None


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
