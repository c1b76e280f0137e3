"""How runs and sweeps stand, from their folders alone: nothing is started and nothing is locked."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.storage.run_files import EVENTS, IDENTITY, RESULT, SWEEP_JOURNAL, SWEEP_RESULT
from orchestrator.tracking.events import read_events
from orchestrator.tracking.goodput import BOOKKEEPING


@dataclass(frozen=True)
class Standing:
    """A run or a sweep.

    Attributes:
        name: of its folder.
        kind: ``run`` or ``sweep``.
        state: as its result says; ``unfinished`` before there is one.
        step: optimizer steps logged; trials that have ended, of a sweep.
        score: AP of the last evaluation, or the best one of a sweep; None before there is one.
        seconds: since something was written; None where nothing was.
        note: what was logged last, or which trial is best.
    """

    name: str
    kind: str
    state: str
    step: int
    score: float | None
    seconds: float | None
    note: str

    def text(self) -> str:
        """On one line."""
        count = f"{self.step} trials ended" if self.kind == "sweep" else f"step {self.step}"
        score = "" if self.score is None else f", AP {self.score:.4f}"
        ago = "" if self.seconds is None else f", last written {_ago(self.seconds)} ago"
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}: {self.kind} {self.state}, {count}{score}{ago}{note}"


def standing(folder: Path) -> Standing:
    """How the run or sweep in a folder stands.

    Raises:
        StorageError: it holds neither.
    """
    if (folder / SWEEP_JOURNAL).is_file():
        return _sweep(folder)
    if (folder / IDENTITY).is_file():
        return _run(folder)
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
        raise StorageError(f"{root}: no such folder. Next: name the `storage` of your experiments")
    kinds = (SWEEP_JOURNAL, IDENTITY)
    found = [f for f in sorted(root.iterdir()) if any((f / kind).is_file() for kind in kinds)]
    return [standing(folder) for folder in found]


def _run(folder: Path) -> Standing:
    result = _read(folder / RESULT)
    step, score, note = 0, None, ""
    for event in read_events(folder / EVENTS):
        step = max(step, event.step)
        score = event.values.get("val/AP", score)
        if event.text and event.kind not in BOOKKEEPING:
            note = f"{event.kind}: {event.text}"
    state = str(result.get("state", "unfinished"))
    # Notes of the way there are no news of a run that has arrived.
    note = "" if state == "done" else note
    return Standing(folder.name, "run", state, step, score, _age(folder / EVENTS), note)


def _sweep(folder: Path) -> Standing:
    summary = _read(folder / SWEEP_RESULT)
    trials: list[dict[str, Any]] = summary.get("trials", [])
    ended = sum(trial["state"] in ("done", "stopped", "failed") for trial in trials)
    best = next((trial for trial in trials if trial["name"] == summary.get("best")), None)
    note = "" if best is None else f"best {best['name']}"
    score = None if best is None else best["score"]
    state = str(summary.get("state", "unfinished"))
    age = _age(folder / SWEEP_JOURNAL)
    return Standing(folder.name, "sweep", state, ended, score, age, note)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
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
