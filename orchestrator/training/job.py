"""Everything a worker needs to know, made once by the driver and the same for every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.initial_weights import InitialWeights
from orchestrator.config.scalars import Json
from orchestrator.config.schema import Experiment
from orchestrator.data.dataset import Dataset, Tiling
from orchestrator.data.label_map import LabelMap
from orchestrator.data.stream.schedule import Schedule
from orchestrator.errors import ConfigError
from orchestrator.storage.local import Storage
from orchestrator.training.schedules import Extension
from orchestrator.training.shards import Shards


@dataclass(frozen=True)
class TrainingJob:
    """One run, resolved: plain data, picklable, without any runtime object.

    Attributes:
        experiment: the validated experiment.
        run_dir: absolute run folder; of a worker that does not see it, a folder of its own.
        label_map: classes, equal in training and validation data.
        schedule: which samples form which step.
        val: validation annotations, what evaluation scores against.
        val_tiling: what part of which validation image each image that is evaluated is; None where
            images are not cut into tiles.
        config_digest, data_digest: identity of what is trained and on what.
        threads: CPU threads of one worker; None leaves torch's default.
        initial: weights that the run begins with; None for freshly drawn ones.
        fence: raises once another start of the run has taken over the folder; asked before every
            commit, so that a worker that was given up but still runs cannot write.
        judged_epochs: after so many the run commits, evaluates and waits to be told whether it goes
            on; see :mod:`orchestrator.training.trial_decision`.
        bucket: URI of the run in a bucket, where its commits are; None where they are in the run
            folder.
        storage: where the commits are, if neither in the run folder nor in a bucket; picklable.
        sampled: what a sweep set, by dotted key; seen to have arrived in the live objects.
        extensions: how the run was made longer since it began.
        shards: how batches are cut.
        evaluates_beside: whether commits are scored by one more worker while training goes on; see
            :mod:`orchestrator.training.validation`.
        driver_began: when this start's driver did, seconds since 1970; for the account of time.
    """

    experiment: Experiment
    run_dir: str
    label_map: LabelMap
    schedule: Schedule
    val: Dataset
    config_digest: str
    data_digest: str
    threads: int | None
    shards: Shards
    initial: InitialWeights | None = None
    fence: Callable[[], None] | None = None
    judged_epochs: tuple[int, ...] = ()
    bucket: str | None = None
    storage: Storage | None = None
    sampled: Mapping[str, Json] = field(default_factory=dict)
    extensions: tuple[Extension, ...] = ()
    evaluates_beside: bool = False
    driver_began: float | None = None
    val_tiling: Tiling | None = None

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, shortened by ``train.max_steps``."""
        limit = self.experiment.train.max_steps
        total = self.schedule.total_steps
        return total if limit is None else min(total, limit)

    def require_ahead(self, done: int, *, where: str | None = None) -> None:
        """Refuse a run that is to end before where it is.

        Args:
            done: optimizer steps behind its newest commit.
            where: that commit, if it is another run's.

        Raises:
            ConfigError: with the arithmetic.
        """
        if done <= self.total_steps:
            return
        train, per_epoch = self.experiment.train, self.schedule.steps_per_epoch
        whole = self.schedule.total_steps
        wanted = f"train.epochs is {train.epochs}, which is {whole} steps of {per_epoch} an epoch"
        key, least = "train.epochs", -(-done // per_epoch)
        if train.max_steps is not None and train.max_steps < whole:
            wanted = f"train.max_steps is {train.max_steps}"
            key, least = "train.max_steps", done
        raise ConfigError(
            f"{wanted}, but {where or self.run_dir} has {done} steps done already. Next: set {key} "
            f"to {least} or more to go on, or give this experiment another name (name=...)"
        )

    def judged_after(self, step: int) -> bool:
        """Whether the run waits for a verdict once ``step`` steps are done."""
        epoch, rest = divmod(step, self.schedule.steps_per_epoch)
        return step < self.total_steps and rest == 0 and epoch in self.judged_epochs

    def evaluates_after(self, step: int) -> bool:
        """Whether validation follows once ``step`` steps are done."""
        return step == self.total_steps or self.judged_after(step) or self._evaluation_due(step)

    def interim_after(self, step: int) -> bool:
        """Whether only ``train.max_steps`` has the run evaluated once ``step`` steps are done."""
        whole = step == self.schedule.total_steps or self._evaluation_due(step)
        return not whole and step == self.total_steps and not self.judged_after(step)

    def counts_after(self, step: int) -> bool:
        """Whether early stopping looks at the evaluation after ``step`` steps.

        It passes over those that only a shortened run or a member of a sweep has, so that it ends
        both after the same step as the whole run.
        """
        return self.experiment.train.early_stopping is not None and self._evaluation_due(step)

    def _evaluation_due(self, step: int) -> bool:
        epoch, rest = divmod(step, self.schedule.steps_per_epoch)
        return step > 0 and rest == 0 and epoch % self.experiment.train.evaluate_every_epochs == 0

    def commits_after(self, step: int) -> bool:
        """Whether a checkpoint is due once ``step`` steps are done."""
        checkpoint = self.experiment.train.checkpoint
        if step == self.total_steps or self.judged_after(step) or self.counts_after(step):
            return True
        if checkpoint.every_steps is not None and step > 0 and step % checkpoint.every_steps == 0:
            return True
        epoch, rest = divmod(step, self.schedule.steps_per_epoch)
        return step > 0 and rest == 0 and epoch % checkpoint.every_epochs == 0


@dataclass(frozen=True)
class Outcome:
    """What rank 0 hands back when its part is over.

    Attributes:
        state: ``done``, also where early stopping ended it; ``preempted`` when the run was asked to
            stop and committed; or ``stopped`` when it was judged and given up.
        steps: optimizer steps behind the last commit.
        samples: images trained on, over all ranks and restarts.
        images_per_s: training throughput of this start, without its first epoch's warm-up and
            without evaluation; 0.0 when too few steps were done to tell.
        metrics: numbers of the last evaluation.
        best_metrics: numbers of the best checkpoint by ``train.checkpoint.metric``.
        best_checkpoint: its folder, if any was scored.
        weights_sha256: digest of the model's state.
        resumed_from: step this start began at.
        early_stopping: why and where it ended the run; None where it did not.
    """

    state: str
    steps: int
    samples: int
    images_per_s: float
    metrics: dict[str, float]
    best_metrics: dict[str, float] | None
    best_checkpoint: str | None
    weights_sha256: str
    resumed_from: int
    early_stopping: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dict(self.__dict__)
