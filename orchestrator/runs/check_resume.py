"""Proof, on a user's own experiment, that killing it changes nothing.

The first steps are trained twice, by plain processes on this machine: once in one go, once killed
and started again. The SHA-256 of weights, optimizer and average must agree.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.accelerators import Accelerator, of_this_process
from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError, OrchestratorError, error_with
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.runs.processes import LocalRanks
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.events import read_events
from orchestrator.training.job import TrainingJob
from orchestrator.training.session import open_store

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class _UnscoredJob(TrainingJob):
    """Scores no images: what is compared is the state, and validation sets can be large."""

    def evaluates_after(self, step: int) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Comparison:
    """The two ends.

    Attributes:
        steps: trained.
        kills: that the second run survived; fewer than were asked for where it had ended before.
        redone: most steps that one kill cost.
        unbroken, broken: SHA-256 by file of the last commit.
    """

    steps: int
    kills: int
    redone: int
    unbroken: dict[str, str]
    broken: dict[str, str]

    @property
    def differing(self) -> list[str]:
        """Files that are not the same."""
        names = sorted({*self.unbroken, *self.broken})
        return [name for name in names if self.unbroken.get(name) != self.broken.get(name)]


def check_resume(
    experiment: Path,
    overrides: Sequence[str],
    *,
    steps: int,
    kills: int,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
) -> Comparison:
    """Train the first steps of an experiment twice, unbroken and killed.

    Args:
        experiment: its file.
        overrides: ``key.path=value``.
        steps: how many to train; fewer if the run has no more.
        kills: SIGKILLs to all ranks at once, at random instants.
        seed: of the instants.
        folder: empty, for the two runs.
        say: takes a line about how it goes.

    Raises:
        ConfigError: the run is over before anything could be killed.
        OrchestratorError: a run failed by itself, with the exit code of its ranks; or its ranks
            stood still, by the rules of ``cluster.hang_timeout``.
    """
    resolved = load_experiment(
        experiment,
        [
            *overrides,
            f"train.max_steps={steps}",
            "train.checkpoint.every_steps=1",
            "train.log_every_steps=1",
            "tracking.mlflow=null",
        ],
    )
    cluster = resolved.experiment.cluster
    accelerator = of_this_process(cluster.accelerator)

    def plan_in(name: str) -> Plan:
        path = folder / name
        path.mkdir()
        plan = make_plan(resolved, path, threads=_threads(cluster, accelerator))
        return replace(plan, job=_UnscoredJob(**vars(plan.job)))

    whole = plan_in("unbroken")
    total = whole.job.total_steps
    say(f"{resolved.experiment.name}: {total} steps on {cluster.workers} {accelerator.kind}, whole")
    _finish(whole, accelerator)
    torn = plan_in("killed")
    rng = random.Random(seed)
    redone = survived = 0
    instants = sorted(rng.uniform(1, total) for _ in range(kills))
    for number, instant in enumerate(instants, start=1):
        at = _kill(torn, accelerator, instant)
        if at is None:
            say(f"kill {number} of {kills}: too late, the run had ended")
            continue
        left = _newest(torn)
        redone, survived = max(redone, at - left), survived + 1
        say(f"kill {number} of {kills} after step {at}: goes on from commit {left}")
    if not survived:
        raise ConfigError(
            f"check-resume: a run of {total} steps was over before any of {kills} kills, so it is "
            "not known what a kill changes. Next: raise --steps, or train.epochs where the run has "
            "no more"
        )
    _finish(torn, accelerator)
    return Comparison(total, survived, redone, _digests(whole), _digests(torn))


def _threads(cluster: ClusterConfig, accelerator: Accelerator) -> int | None:
    if cluster.threads_per_worker is not None or accelerator.kind != "cpu":
        return cluster.threads_per_worker
    return max(1, (os.cpu_count() or 1) // cluster.workers)


def _finish(plan: Plan, accelerator: Accelerator) -> None:
    with LocalRanks(plan, accelerator=accelerator, watched=True) as ranks:
        codes = ranks.join()
    _require_success(codes, plan, ranks.hung)


def _require_success(codes: Sequence[int] | None, plan: Plan, hung: Sequence[str] = ()) -> None:
    if hung:
        raise OrchestratorError(
            f"check-resume: the run in {plan.job.run_dir} stood still: {'; '.join(hung)}. Next: "
            "raise cluster.hang_timeout if that was only slow, or make the experiment run before "
            "looking at how it resumes"
        )
    if codes is not None and any(codes):
        # The others have lost a rank, or were killed for it.
        refusals = (kind for kind in map(error_with, codes) if kind is not OrchestratorError)
        kind = next(refusals, OrchestratorError)
        raise kind(
            f"check-resume: the run in {plan.job.run_dir} failed by itself (exit codes "
            f"{', '.join(map(str, codes))}); its reason is printed above. Next: make the "
            "experiment run before looking at how it resumes"
        )


def _logged(plan: Plan) -> int:
    """Newest step in the log of a run."""
    return max((event.step for event in read_events(plan.job.path / EVENTS)), default=0)


def _kill(plan: Plan, accelerator: Accelerator, instant: float) -> int | None:
    """Start, and kill at ``instant``, in steps: 3.5 is half a step after the third one.

    Returns:
        Steps that were done; None where the run ended before it could be killed.
    """
    began = time.monotonic()
    codes: list[int] | None = None
    with LocalRanks(plan, accelerator=accelerator, watched=True) as ranks:
        first = before = _logged(plan)
        step_seconds = 0.0
        while codes is None and ((step := _logged(plan)) < int(instant) or step == first):
            if step != before:
                # The first one comes with the imports, and would have the run end before the kill.
                step_seconds = 0.0 if before == first else time.monotonic() - began
                began, before = time.monotonic(), step
            codes = ranks.join(_POLL_SECONDS)
        if codes is None:
            codes = ranks.join(step_seconds * (instant % 1.0))
    _require_success(codes, plan, ranks.hung)
    return None if codes is not None else _logged(plan)


def _newest(plan: Plan) -> int:
    commit = open_store(plan.job).latest().commit
    return 0 if commit is None else commit.step


def _digests(plan: Plan) -> dict[str, str]:
    commit = open_store(plan.job).latest().commit
    if commit is None or commit.step != plan.job.total_steps:
        raise OrchestratorError(f"check-resume: the run in {plan.job.run_dir} has no last commit")
    files = commit.manifest.files
    return {name: files[name].sha256 for name in sorted(files) if name.endswith(".safetensors")}
