"""A run as plain processes of this machine, one per rank and without Ray.

The same engine, the same commits, and a start of less than a second: what proves that a run
survives being killed, hundreds of times over, and what ``orchestrator check-resume`` uses.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist
from typing_extensions import Self

from orchestrator.accelerators import Accelerator
from orchestrator.cluster.heartbeat import HangWatch, Heartbeat
from orchestrator.credentials import mask
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import OrchestratorError, PreemptedError, first_line
from orchestrator.runs.plan import Plan
from orchestrator.storage.run_files import HEARTBEATS
from orchestrator.training.interrupt import asked_to_stop, stopping_politely
from orchestrator.training.job import Outcome
from orchestrator.training.session import run_rank

#: Exit code of a rank whose error is none of ours; such as the loss of another rank.
_FAILED = 70
#: Times as long as in a run that ranks may get no further: nobody starts these again, and a machine
#: with other work to do may hardly let them compute.
_PATIENCE = 10.0
#: Seconds that ranks get to notice that another one has ended before they are killed.
_GRACE = 5.0


@dataclass(frozen=True)
class RankTask:
    """What one process does; plain data, picklable.

    Attributes:
        plan: job and batches.
        accelerator: the kind of device.
        rank, world: which share of it.
        meeting: a file that does not exist yet, where the ranks find each other.
        beats: folder for signs of life; None where nobody looks for any.
    """

    plan: Plan
    accelerator: Accelerator
    rank: int
    world: int
    meeting: str
    beats: str | None = None

    def run(self) -> Outcome:
        """Train this rank's share in this process."""
        timeout = self.plan.job.experiment.cluster.hang_timeout
        alive: AbstractContextManager[Any] = nullcontext()
        if self.beats is not None and timeout is not None:
            alive = Heartbeat(Path(self.beats), self.rank, timeout)
        with alive:
            return self._joined()

    def _joined(self) -> Outcome:
        """Train in the company of the other ranks, if there are any."""
        if self.world == 1:
            return self._train()
        # NCCL takes the current device, and hccl is not known before torch_npu is imported.
        self.accelerator.device(self.rank)
        dist.init_process_group(
            self.accelerator.backend,
            # By its path: an address would end at a # or ? in it.
            store=dist.FileStore(self.meeting, self.world),  # type: ignore[attr-defined]
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(minutes=5),
        )
        try:
            return self._train()
        finally:
            dist.destroy_process_group()

    def _train(self) -> Outcome:
        return run_rank(
            self.plan.job,
            LocalStream(self.plan.batches, rank=self.rank, world=self.world),
            accelerator=self.accelerator,
            local_rank=self.rank,
        )


def rank_main(task: RankTask) -> None:
    """Run a task as a whole process, which exits with 0 when done and with 75 when stopped.

    SIGTERM or SIGINT to any rank lets all of them finish and commit their step.
    """
    try:
        with stopping_politely(asked_to_stop.set):
            outcome = task.run()
    except OrchestratorError as error:
        print(f"rank {task.rank}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except RuntimeError as error:
        # How torch says that another rank is gone; that one's story is the one worth telling.
        print(f"rank {task.rank}: {mask(first_line(error))}", file=sys.stderr)
        sys.exit(_FAILED)
    sys.exit(0 if outcome.state == "done" else PreemptedError.exit_code)


def _process(target: Callable[..., None], *arguments: Any) -> None:
    """Call ``target`` and end this process, all of whose files are then closed.

    Threads of gloo that are still there when the interpreter is taken down abort the process now
    and then, which would pass for a failure of the rank.
    """
    code: Any = 0
    try:
        target(*arguments)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


class LocalRanks:
    """The processes of one start of a run; a context manager that leaves none behind.

    Args:
        plan: what to train; ``cluster.workers`` of its experiment says in how many processes.
        accelerator: the kind of device.
        target: what runs in each of them; gets its :class:`RankTask`, then ``arguments``.
        arguments: see ``target``.
        context: how processes are made. Forked ones would inherit torch's threads, broken.
        watched: kill ranks that stand still, by the rules of ``cluster.hang_timeout``.

    Attributes:
        hung: what was done to ranks that stood still, a line each; complete once all have ended.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        accelerator: Accelerator,
        target: Callable[..., None] = rank_main,
        arguments: tuple[Any, ...] = (),
        context: Any = None,
        watched: bool = False,
    ) -> None:
        self._context = context or multiprocessing.get_context("spawn")
        world = plan.job.experiment.cluster.workers
        timeout = plan.job.experiment.cluster.hang_timeout
        self.hung: list[str] = []
        self._watch: HangWatch | None = None
        beats: str | None = None
        if watched and timeout is not None:
            folder = plan.job.path / HEARTBEATS / uuid.uuid4().hex
            # None of them is anywhere else.
            self._watch = HangWatch(folder, timeout, lambda *_: False, patience=_PATIENCE)
            self.hung, beats = self._watch.hung, str(folder)
        # A folder of this user's alone: nobody else can put a file where the ranks meet.
        self._meeting = Path(tempfile.mkdtemp(prefix="ranks-"))
        self.processes: list[BaseProcess] = [
            self._context.Process(
                target=_process,
                args=(
                    target,
                    RankTask(plan, accelerator, rank, world, str(self._meeting / "store"), beats),
                    *arguments,
                ),
                name=f"rank-{rank}",
            )
            for rank in range(world)
        ]

    def __enter__(self) -> Self:
        for process in self.processes:
            process.start()
        if self._watch is not None:
            self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for process in self.processes:
            process.join()
            process.close()
        if self._watch is not None:
            self._watch.__exit__()
        shutil.rmtree(self._meeting, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL to every rank that still runs."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all."""
        chosen = self.processes if rank is None else [self.processes[rank]]
        for process in chosen:
            if process.pid is not None and process.exitcode is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def join(self, timeout: float | None = None) -> list[int] | None:
        """Wait until all ranks have ended, or one has failed and the others were killed.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            Exit codes by rank, negative for a signal; None when the time is over.
        """
        over = math.inf if timeout is None else time.monotonic() + timeout
        patience = math.inf
        running = list(self.processes)
        while running:
            left = min(over, patience) - time.monotonic()
            sentinels = [process.sentinel for process in running]
            if not wait(sentinels, None if left == math.inf else max(0.0, left)):
                if time.monotonic() >= over:
                    return None
                self.kill()
                patience = math.inf
            for process in running:
                if process.exitcode not in (None, 0, PreemptedError.exit_code):
                    # The others wait for it in a collective, perhaps for minutes.
                    patience = min(patience, time.monotonic() + _GRACE)
            running = [process for process in running if process.exitcode is None]
        return [process.exitcode or 0 for process in self.processes]
