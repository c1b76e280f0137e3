"""How much of a run's time went into steps that count, and what the rest went into.

Goodput is the time of those steps over the time that the run took, from the start of each driver to
the last that was heard of it; what lies between two starts of the same command is nobody's time.
Rank 0 leaves two kinds of notes in the event log: when it begins, with the start of its driver, and
with every commit how the seconds since then were spent. Steps that a failure undid are thereby part
of what the failure cost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.storage.plain_files import parse_json
from orchestrator.tracking.events import Event

#: Kinds of the notes; they are for this account and not for people.
ATTEMPT, ACCOUNT = "attempt", "account"
BOOKKEEPING = frozenset({ATTEMPT, ACCOUNT})
_RESUME = "resume"

#: What the time of steps is booked as.
STEP = "step"
#: What the time of a phase of the step loop is booked as; of the others, as themselves.
_BOOKED_AS = {
    "after the step": STEP,
    "waiting for a batch": "data",
    "commit": "checkpoint",
    "evaluator": "evaluation",
}


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run went, in seconds.

    Attributes:
        wall: of all its starts together.
        steps: in steps whose result the run has kept.
        losses: of the rest, by cause: ``start``, ``failure``, phases of the loop such as ``data``,
            ``evaluation`` and ``checkpoint``, and ``other``. Causes that cost nothing are left out.
    """

    wall: float
    steps: float
    losses: Mapping[str, float]

    @property
    def share(self) -> float:
        """Of the time, that went into steps; 0 of a run that took none."""
        return self.steps / self.wall if self.wall else 0.0

    def __str__(self) -> str:
        lost = sorted(self.losses.items(), key=lambda item: -item[1])
        text = ", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in lost)
        return f"{self.share:.1%} of {self.wall:.0f} s" + (f"; {text}" if text else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"share": self.share, "wall": self.wall, "steps": self.steps} | {
            "losses": dict(self.losses)
        }


@dataclass
class _Attempt:
    """From a note of beginning to the next one.

    Attributes:
        driver: when its driver says that it began: attempts of one driver share it.
        started: the same moment by the clock of the log, as all other times here.
    """

    driver: int
    started: int
    began: int
    resumed: int = 0
    last: int = 0
    #: Step, time and seconds by phase of each account, in their order.
    accounts: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)

    def kept(self, until: int | None) -> tuple[int, dict[str, float]]:
        """When the last account was made whose steps the run has kept, and what it says.

        Args:
            until: step that the next attempt went on from; None where there is none.
        """
        kept = [a for a in self.accounts if until is None or a[0] <= until]
        return (kept[-1][1], kept[-1][2]) if kept else (self.began, {})


def attempt_text(began: float) -> str:
    """Text of the note of a rank 0 that begins.

    Args:
        began: when its driver was started, seconds since 1970.
    """
    return json.dumps({"driver_ms": int(began * 1000)})


def account_text(spent: Mapping[str, float]) -> str:
    """Text of the note with a commit.

    Args:
        spent: seconds since this rank began, by phase of the step loop.
    """
    booked: dict[str, float] = {}
    for phase, seconds in spent.items():
        cause = _BOOKED_AS.get(phase, phase)
        booked[cause] = booked.get(cause, 0.0) + seconds
    return json.dumps({cause: round(seconds, 3) for cause, seconds in booked.items()})


def goodput(events: Iterable[Event]) -> Goodput | None:
    """The account of a run; None where its log has no such notes."""
    attempts = list(_attempts(events))
    if not attempts:
        return None
    wall = steps = 0.0
    losses: dict[str, float] = {}

    def lose(cause: str, seconds: float) -> None:
        losses[cause] = losses.get(cause, 0.0) + max(0.0, seconds)

    for place, attempt in enumerate(attempts):
        before = attempts[place - 1] if place else None
        after = attempts[place + 1] if place + 1 < len(attempts) else None
        first = before is None or before.driver != attempt.driver
        last = after is None or after.driver != attempt.driver
        if first:
            lose("start", (attempt.began - attempt.started) / 1000)
        time, spent = attempt.kept(None if after is None else after.resumed)
        counted = (time - attempt.began) / 1000
        steps += spent.get(STEP, 0.0)
        for phase, seconds in spent.items():
            if phase != STEP:
                lose(phase, seconds)
        lose("other", counted - sum(spent.values()))
        end = attempt.last if last or after is None else after.began
        lose("failure", (end - time) / 1000)
        if last:
            wall += (end - next(a for a in attempts if a.driver == attempt.driver).started) / 1000
    return Goodput(wall, steps, {cause: lost for cause, lost in losses.items() if lost >= 0.05})


def _attempts(events: Iterable[Event]) -> Iterator[_Attempt]:
    attempt: _Attempt | None = None
    now = ahead = 0
    for event in events:
        # A clock that was put back had run ahead before; no time has passed at that moment.
        ahead += max(0, now - (event.time_ms + ahead))
        now = event.time_ms + ahead
        if event.kind == ATTEMPT:
            if attempt is not None:
                yield attempt
            driver = int(_values(event.text).get("driver_ms", event.time_ms))
            attempt = _Attempt(driver, now - max(0, event.time_ms - driver), now)
        if attempt is None:
            continue
        attempt.last = now
        if event.kind == _RESUME:
            attempt.resumed = event.step
        elif event.kind == ACCOUNT:
            attempt.accounts.append((event.step, now, _values(event.text)))
    if attempt is not None:
        yield attempt


def _values(text: str) -> dict[str, float]:
    """Content of a note; nothing of one that is damaged."""
    try:
        values = {str(key): float(value) for key, value in parse_json(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError):
        return {}
    return values if all(map(math.isfinite, values.values())) else {}
