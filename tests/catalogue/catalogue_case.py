"""What an entry of the catalogue of malformed input is, and how one is tried."""

from __future__ import annotations

import enum
import hashlib
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator.data.decode import BadImageError
from orchestrator.errors import ConfigError, DataError, SecurityError

#: Seconds of work until an entry counts as a hang.
PATIENCE = 10
#: Times as long on the clock, for what waits; a machine with other work to do is slow.
_WAITS = 6


class Verdict(enum.Enum):
    """How malformed input ends: the class of the error and the exit code it stands for.

    ``QUARANTINED`` is an image that is counted and replaced while training goes on, and ends a
    command that was given nothing else. ``FINDING`` is put right or left out, counted and listed.
    """

    CONFIG = (ConfigError, 64)
    DATA = (DataError, 65)
    QUARANTINED = (BadImageError, 65)
    SECURITY = (SecurityError, 77)
    FINDING = (None, 0)


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        kind: of input, such as ``coco``.
        name: unique within its kind; says what is wrong.
        build: writes the input to an empty folder and returns the call that reads it.
        verdict: documented outcome.
        where: the place that the message must name: a file, a line, a key or a pointer.
        says: what the message must say about it; of a finding, its kind.
    """

    kind: str
    name: str
    build: Callable[[Path], partial[Any]]
    verdict: Verdict
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


class HangError(BaseException):
    """Reading did not end in time; no error of the program's, so nothing may swallow it."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Interrupt what works longer, or waits, as for a pipe, several times as long."""
    began, worked = time.monotonic(), time.process_time()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        waited = time.monotonic() - began
        if time.process_time() - worked >= seconds or waited >= _WAITS * seconds:
            raise HangError(f"did not end within {waited:.0f} s")
        signal.setitimer(signal.ITIMER_REAL, seconds)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: partial[Any]) -> tuple[Verdict | None, str]:
    """The verdict on a call and its message; whatever is no verdict is raised as it is."""
    try:
        with no_longer_than(PATIENCE):
            result = call()
    except (ConfigError, DataError, SecurityError) as error:
        for verdict in (Verdict.QUARANTINED, Verdict.CONFIG, Verdict.DATA, Verdict.SECURITY):
            expected, code = verdict.value
            if expected is not None and isinstance(error, expected):
                if error.exit_code != code:
                    break
                return verdict, str(error)
        raise
    findings = getattr(result, "findings", ())
    return (Verdict.FINDING if findings else None), "\n".join(map(str, findings))


def identity(folder: Path, call: partial[Any]) -> str:
    """Digest of everything that was built and of what is read of it: equal input, equal digest."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        sha.update(repr((str(path.relative_to(folder)), stat.S_IFMT(mode))).encode())
        if stat.S_ISLNK(mode):
            sha.update(str(path.readlink()).replace(str(folder), "").encode())
        elif stat.S_ISREG(mode):
            size = path.stat().st_size
            sha.update(f"{size}:".encode())
            with path.open("rb") as file:
                sha.update(file.read(1 << 21))
    shown = repr((call.func, call.args, sorted(call.keywords.items())))
    sha.update(shown.replace(str(folder), "").encode("utf-8", "surrogatepass"))
    return sha.hexdigest()
