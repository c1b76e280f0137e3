"""One rank's part of a run, from plain data to an outcome: the same with and without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from detectors.base import Detector
from detectors.registry import build_detector
from orchestrator.accelerators import Accelerator
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.schema import Experiment
from orchestrator.data.batch import BatchStream
from orchestrator.storage.bucket import open_storage
from orchestrator.storage.bucket_mirror import Records
from orchestrator.storage.disk_errors import run_folder_errors
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import EVENTS, MEASURED, STOP
from orchestrator.tracking.events import EventLog
from orchestrator.training.collective import Collective, collective_timeout
from orchestrator.training.engine import Engine
from orchestrator.training.freeze import adapt
from orchestrator.training.interrupt import asked_to_stop
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.pulse import pulse
from orchestrator.training.rank import Rank
from orchestrator.training.validation import Evaluator

#: A file of this name in the run folder asks the ranks to finish their step, commit and end.
_STOP_POLL_SECONDS = 0.5


def watch_for_stop(run_dir: Path) -> Callable[[], bool]:
    """A cheap question to ask every step: has somebody asked this run to stop?

    Asking is done by a file in the run folder or by a signal to this process. The file system is
    looked at no more than twice a second, because the folder may be remote.
    """
    state = {"next": 0.0, "stop": False}

    def stop_requested() -> bool:
        if asked_to_stop.is_set():
            return True
        now = time.monotonic()
        if not state["stop"] and now >= state["next"]:
            state["next"] = now + _STOP_POLL_SECONDS
            state["stop"] = (run_dir / STOP).exists()
        return bool(state["stop"])

    return stop_requested


def open_store(job: TrainingJob, bring: Callable[[], None] | None = None) -> CommitStore:
    """The commits of a run.

    Args:
        job: the run.
        bring: brings what was measured to the driver; None where the driver sees it.
    """
    checkpoint = job.experiment.train.checkpoint
    first_of_all = [] if bring is None else [bring]
    if job.bucket is not None and job.fence is not None:
        # After the driver: what the bucket has, the driver has, too.
        records = Records(job.bucket, job.path, job.fence)
        first_of_all.append(partial(records.push, MEASURED))

    def beside() -> None:
        for step in first_of_all:
            step()

    storage = job.storage
    if storage is None:
        storage = LocalStorage(job.path) if job.bucket is None else open_storage(job.bucket)
    return CommitStore(
        storage,
        keep_last=checkpoint.keep_last,
        keep_best=checkpoint.keep_best,
        metric=checkpoint.metric,
        fence=job.fence,
        beside=beside if first_of_all else None,
        awaited=job.evaluates_after,
        interim=job.interim_after,
    )


def initial_model(
    experiment: Experiment, num_classes: int, accelerator: Accelerator, device: torch.device
) -> Detector:
    """The detector before step 0, in training mode; every rank draws the same weights."""
    torch.manual_seed(experiment.seed)
    model = build_detector(experiment.detector, num_classes=num_classes)
    adapt(model, experiment.train)
    return accelerator.place(model, device).train()


def run_rank(
    job: TrainingJob,
    stream: BatchStream,
    *,
    accelerator: Accelerator,
    local_rank: int = 0,
    evaluator: Evaluator | None = None,
    bring: Callable[[], None] | None = None,
) -> Outcome:
    """Train this process's share of ``job``.

    ``torch.distributed`` must be initialised already when there is more than one rank.

    Args:
        job: the run.
        stream: this rank's batches.
        accelerator: kind of device.
        local_rank: among the ranks of this machine.
        evaluator: of rank 0 in a run that evaluates beside its steps; closed in the end.
        bring: see :func:`open_store`.

    Raises:
        OrchestratorError: what went wrong, if it was no bug.
    """
    with run_folder_errors(job.path):
        experiment = job.experiment
        accelerator.set_determinism(experiment.train.deterministic, job.threads)
        device = accelerator.device(local_rank)
        model = initial_model(experiment, len(job.label_map), accelerator, device)
        precision = accelerator.resolve_precision(experiment.train.precision)
        collective = Collective(device, collective_timeout(experiment.cluster.hang_timeout))
        if accelerator.kind != "cpu":
            stream.allocate = accelerator.host_array
        store = open_store(job, bring)
        events = EventLog(job.path / EVENTS) if collective.is_main else None
        try:
            if events is not None:
                for rejected in store.sweep():
                    events.note("checkpoint_rejected", rejected.describe(), step=0)
                text = accelerator.numerics_text(experiment.train.deterministic, precision)
                events.note("device", text, step=0)
                # The last start may have been killed between a commit and the deletions it allows.
                store.collect()
            stop = watch_for_stop(job.path)
            rank = Rank(job, accelerator, precision, collective, stream, store, events, stop)
            engine = Engine(rank, model, evaluator=evaluator)
            with accelerator.naming_operators():
                outcome = engine.run()
            with pulse.waiting("end"):
                store.require_kept()
                store.close()
            if events is not None:
                events.flush(sync=True)
            return outcome
        except BaseException:
            # What is being written must not meet the next start, which sweeps up first.
            with suppress(Exception):
                store.close()
            raise
        finally:
            if evaluator is not None:
                evaluator.close()
            if events is not None:
                events.close()
