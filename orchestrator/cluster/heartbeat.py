"""Signs of life and of progress, and ending those that give none.

A rank that is stopped, or whose interpreter is locked by a call that never returns, is no failure
to anybody: Ray asks after ten minutes, a collective gives up after thirty. So each rank has a
thread that raises a counter in a small file of the run folder a few times within
``cluster.hang_timeout``. It needs the interpreter, and so stands still when the rank does, and it
costs the step nothing: one write of a few bytes every few seconds. The driver looks at the files
and kills a rank whose counter stands still; that is then a failure like any other. A rank that
would run if the machine let it, because too many others want its processors, gets more time. Ray
Train's controller and the evaluator beside training have such a thread as well.

The files also say how far the ranks have come: :mod:`orchestrator.training.pulse`. Ranks that are
alive but get no further, because a link between them is cut, or nobody makes their next batch, all
stand still together: one that computes, or waits for something that may take long, is what the
others wait for. So they are killed once none of them has got further for half the timeout, or four
times as long as the longest such pause of this start if that is more. Until the first step nobody
knows how long a step takes, and they have ten timeouts. So long, and two minutes at least, has the
controller to bring them up.

No clock of one machine is compared with that of another.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from typing_extensions import Self

from orchestrator.storage.lease import Holder
from orchestrator.storage.plain_files import read_json
from orchestrator.training.pulse import pulse

log = logging.getLogger(__name__)


#: Names of those who are watched for life alone; ranks have ``rank0.json`` and so on.
CONTROLLER, EVALUATOR = "controller", "evaluator"

#: Parts of the timeout: between two signs of life, between two looks at them, and without a sign
#: until a rank counts as hung. Together they stay below one.
_BEAT, _LOOK, _PATIENCE = 1 / 6, 1 / 12, 2 / 3
#: Timeouts after which a rank that only waits for a processor is killed all the same.
_STARVED_PATIENCE = 4.0
#: Seconds in which it is found out whether it does, and waiting per running that says so.
_SAMPLE, _STARVED = 1.0, 4.0
#: Timeouts without progress until the first step, and after it, and longest pauses until then.
_FIRST_PATIENCE, _NEXT_PATIENCE, _PAUSES = 10.0, 1 / 2, 4.0
#: Processes of other nodes that are killed at a time.
_AT_ONCE = 32
#: Seconds that processes may at least take to start, whatever the timeout.
_START_SECONDS = 120.0
#: Share of its time that a thread has a processor when it computes.
_BUSY = 0.2


@dataclass(frozen=True)
class Beat:
    """What a file says.

    Attributes:
        process: the rank's.
        node: Ray's id of its node; None without Ray.
        count: raised with every sign of life.
        step: optimizer steps that are done.
        phase: what it does now.
        marks: raised with all progress.
        moving: whether it computes, or does what may take as long as it likes.
        taken: of the steps, those of this start.
    """

    process: Holder
    node: str | None
    count: int
    step: int = 0
    phase: str = "start"
    marks: int = 0
    moving: bool = True
    taken: int = 0

    @classmethod
    def read(cls, path: Path) -> Beat | None:
        """None when the file is just being written, or gone."""
        try:
            tree = read_json(path)
            return cls(**{**tree, "process": Holder(**tree["process"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


class Heartbeat:
    """Gives signs of life of this process inside a ``with`` block.

    Args:
        folder: where; made if need be.
        rank: of this process; a name for one that is no rank, and is watched for life alone.
        timeout: ``cluster.hang_timeout``, in seconds.
        node: Ray's id of this node.
        send: takes the name of the file and its text, or None to remove it, where ``folder`` is
            on another machine's disk.
    """

    def __init__(
        self,
        folder: Path,
        rank: int | str,
        timeout: float,
        *,
        node: str | None = None,
        send: Callable[[str, str | None], None] | None = None,
    ) -> None:
        self._path = folder / f"{f'rank{rank}' if isinstance(rank, int) else rank}.json"
        self._interval = timeout * _BEAT
        self._node = node
        self._send = send or self._write
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        # Whoever it is sent to may be gone.
        with suppress(Exception):
            self._send(self._path.name, None)

    def _write(self, name: str, text: str | None) -> None:
        if text is None:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: closing is what makes NFS show it to others.
        self._path.write_text(text)

    def _beat(self) -> None:
        process = Holder.this_process()
        count = 0
        computed, since = pulse.seconds(), time.monotonic()
        while True:
            count += 1
            before = computed, since
            computed, since = pulse.seconds(), time.monotonic()
            busy = computed - before[0] > _BUSY * (since - before[1])
            beat = Beat(
                process,
                self._node,
                count,
                pulse.step,
                pulse.phase,
                pulse.marks,
                busy or pulse.patient,
                pulse.taken,
            )
            try:
                self._send(self._path.name, json.dumps(asdict(beat)))
            except Exception as error:
                log.warning("%s: no sign of life written: %s", self._path, error)
            if self._over.wait(self._interval):
                return


class HangWatch:
    """Kills what gave signs of life, or of progress, and then stopped to, inside a ``with`` block.

    Args:
        folder: that the ranks' :class:`Heartbeat` write to; deleted at the end.
        timeout: ``cluster.hang_timeout``, in seconds.
        kill: does to a process of another machine or container what :func:`end_if_still` does.
        patience: how many times as long as usual ranks may get no further.

    Attributes:
        hung: what was done, one line for each process that was killed.
    """

    def __init__(
        self,
        folder: Path,
        timeout: float,
        kill: Callable[[Beat, bool], bool],
        *,
        patience: float = 1.0,
    ) -> None:
        self.hung: list[str] = []
        self._folder = folder
        self._timeout = timeout
        self._kill = kill
        self._progress = _Progress(timeout * patience)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        #: By file: the newest sign of life, and when it was first seen.
        seen: dict[Path, tuple[Beat, float]] = {}
        looked = time.monotonic()
        while not self._over.wait(self._timeout * _LOOK):
            now = time.monotonic()
            if now - looked > self._timeout * _PATIENCE / 2:
                # This process was held up itself, so it cannot say for how long others were.
                seen.clear()
                self._progress.restart(now)
            looked = now
            present = set(self._folder.glob("*.json"))
            seen = {path: value for path, value in seen.items() if path in present}
            for path in present:
                beat = Beat.read(path)
                if beat is None:
                    continue
                before, since = seen.get(path, (None, now))
                if before != beat:
                    seen[path] = beat, now
                elif now - since > self._timeout * _PATIENCE:
                    self._end(path, beat, now - since)
                    # That may have taken a while, in which this thread was not held up.
                    looked = time.monotonic()
            ranks = {p: beat for p, (beat, _) in seen.items() if p.stem.startswith("rank")}
            still = self._progress.look(ranks.values(), now)
            if still is not None:
                self._end_all(ranks, still)
                for path, (beat, _) in seen.items():
                    if path.stem == CONTROLLER and not ranks:
                        self._end_starter(path, beat, still)
                looked = time.monotonic()

    def _end_all(self, ranks: Mapping[Path, Beat], silence: float) -> None:
        """Kill all ranks, none of which gets any further."""
        # At once: what kills a process of another node has to be started there first.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for path, beat in sorted(ranks.items()):
                where = f"{beat.phase}, {beat.step} steps done"
                text = f"{path.stem} ({beat.process}) got no further for {silence:.0f} s ({where})"
                pool.submit(self._kill_one, path, beat, text, spare=False)

    def _end_starter(self, path: Path, beat: Beat, silence: float) -> None:
        """Kill who was to start the ranks, none of which has come."""
        text = f"{path.stem} ({beat.process}) has had no worker begin for {silence:.0f} s"
        self._kill_one(path, beat, text, spare=False)

    def _end(self, path: Path, beat: Beat, silence: float) -> None:
        text = f"{path.stem} ({beat.process}) gave no sign of life for {silence:.0f} s"
        self._kill_one(path, beat, text, spare=silence < self._timeout * _STARVED_PATIENCE)

    def _kill_one(self, path: Path, beat: Beat, text: str, *, spare: bool) -> None:
        try:
            if beat.process.is_here():
                killed = end_if_still(beat.process, spare)
            else:
                killed = self._kill(beat, spare)
        # Whatever goes wrong far away must not end the watch over the others.
        except Exception as error:
            log.warning("%s, and could not be killed: %s", text, error)
            return
        if not killed:
            return
        with suppress(OSError):
            path.unlink(missing_ok=True)
        log.warning("%s and was killed", text)
        if path.stem != EVALUATOR:
            # The ranks go on without it.
            self.hung.append(f"{text} and was killed")


class _Progress:
    """For how long none of the ranks has got any further."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._began = self._moved = time.monotonic()
        #: Whether a rank has ever begun.
        self._come = False
        self._longest: float | None = None
        self._marks: tuple[tuple[int, int], ...] = ()

    def restart(self, now: float) -> None:
        """Forget the pause under way: nobody was looking."""
        self._moved = now

    def look(self, ranks: Collection[Beat], now: float) -> float | None:
        """Seconds without progress, once they are too many; None before."""
        marks = tuple(sorted((beat.process.pid, beat.marks) for beat in ranks))
        self._come = self._come or bool(ranks)
        if marks != self._marks:
            pause, self._moved, self._marks = now - self._moved, now, marks
            if self._longest is not None:
                self._longest = max(self._longest, pause)
            elif any(beat.taken for beat in ranks):
                # What went before was the start, and says nothing about the pauses to come.
                self._longest = 0.0
        elif any(beat.moving for beat in ranks) or (not ranks and self._come):
            self._moved = now
        patience = _FIRST_PATIENCE * self._timeout
        if not self._come:
            patience = max(patience, _START_SECONDS)
        if self._longest is not None:
            patience = max(self._timeout * _NEXT_PATIENCE, _PAUSES * self._longest)
        silence = now - self._moved
        if silence <= patience:
            return None
        self._moved = now
        return silence


def end_if_still(process: Holder, spare_starved: bool) -> bool:
    """Kill a process of this machine, unless it only waits for a processor; whether it is gone."""
    if not process.is_here():
        return True
    if spare_starved and _is_starved(process.pid):
        return False
    os.kill(process.pid, signal.SIGKILL)
    return True


def _is_starved(pid: int) -> bool:
    """Whether a process wants to run and hardly gets to: it waits far longer than it runs."""
    ran, waited = _scheduled(pid)
    time.sleep(_SAMPLE)
    ran_later, waited_later = _scheduled(pid)
    ran, waited = ran_later - ran, waited_later - waited
    # A thread that waits for the interpreter lock asks for it 200 times a second, and on a busy
    # machine waits a little for a processor each time; that alone is not to starve.
    return waited > _SAMPLE / 2 and waited > _STARVED * ran


def _scheduled(pid: int) -> tuple[float, float]:
    """Seconds that a process's threads ran, and that they were runnable and waited: proc(5)."""
    ran = waited = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        # Threads end, and not every kernel keeps these numbers.
        with suppress(OSError, ValueError):
            fields = thread.read_text().split()
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return ran / 1e9, waited / 1e9
