"""The whole experiment file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from detectors.config import Settings
from detectors.registry import AnyDetectorConfig
from orchestrator.config.fields import (
    Conflict,
    Count,
    Folder,
    FolderOrBucket,
    Positive,
    Seed,
    no_variable,
    refuse,
)
from orchestrator.config.schema.data import DataConfig
from orchestrator.config.schema.sweep import SweepConfig
from orchestrator.config.schema.train import TrainConfig
from orchestrator.config.tracking_uri import refusal
from orchestrator.credentials import holds_secret


def _no_password(uri: str) -> str:
    # The resolved configuration is printed, stored and sent to MLflow: a password would travel
    # along. MLflow takes it from the environment, and so do the database drivers.
    if holds_secret(uri):
        raise PydanticCustomError(
            "password_in_uri",
            "the address holds a password, which would be stored with the run; take it out and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead",
        )
    return uri


def _served(uri: str) -> str:
    problem = refusal(uri)
    if problem is not None:
        raise PydanticCustomError("not_served", "{problem}", {"problem": problem})
    return uri


#: Characters that MLflow takes in the name of an experiment.
_LONGEST_EXPERIMENT = 500


def _taken(name: str) -> str:
    if len(name) > _LONGEST_EXPERIMENT:
        raise PydanticCustomError(
            "name_too_long",
            "found a name of {found} characters, allowed by MLflow are {allowed}; shorten it",
            {"found": len(name), "allowed": _LONGEST_EXPERIMENT},
        )
    return name


TrackingURI: TypeAlias = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_no_password),
    AfterValidator(no_variable),
    AfterValidator(_served),
]


class ClusterConfig(Settings):
    """Where the run computes.

    Attributes:
        workers: processes that train, one device each. ``{min: 1, max: 4}`` stands for a number
            that follows the cluster: the most, and the least as ``min_workers``.
        min_workers: workers that the run begins and goes on with where there is no room for more;
            null for no fewer than ``workers``. Batches are computed in as many parts as the most
            workers, by any number that divides them, in the same bits.
        accelerator: kind of device; ``auto`` takes an NPU or GPU where the cluster has one.
        cpus_per_worker: CPU cores reserved for each worker.
        threads_per_worker: torch threads of each worker; null takes its share of the machine that
            it is put on.
        placement: where Ray puts the workers: ``pack`` on as few nodes as there is room on,
            ``spread`` over as many as there are, ``strict_pack`` on one node or not at all,
            ``strict_spread`` each on a node of its own or not at all.
        accelerator_type: that a node must have to get a worker, as Ray names it: ``H100``,
            ``A10G``; null for any.
        labels: that a node must have to get a worker, as ``ray start --labels`` gave them to it:
            ``{market-type: on-demand}``.
        hang_timeout: seconds within which a worker that stands still is noticed and killed, and
            training goes on from the newest commit; null to wait for ever. Standing still is to be
            stopped, or locked in a call that lets nothing else run, not to be slow.
        spare_processes: whether copies of the controller's and each worker's process, with
            everything imported, wait for the next start of workers, which then takes seconds
            less. Each takes about 400 MB. Null for where there are several workers. Trials have
            none.
        address: of a running Ray cluster; null joins the one the run is submitted to, or starts
            one here.
    """

    workers: Count = 1
    min_workers: Count | None = None
    accelerator: Literal["auto", "cpu", "gpu", "npu"] = "auto"
    cpus_per_worker: Positive = 1.0
    threads_per_worker: Count | None = None
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    accelerator_type: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[Annotated[str, Field(min_length=1)], str] = Field(default_factory=dict)
    hang_timeout: Annotated[float, Field(ge=5.0)] | None = 30.0
    spare_processes: bool | None = None
    address: Annotated[str, Field(min_length=1)] | None = None

    @property
    def least_workers(self) -> int:
        """Workers without which nothing begins."""
        return self.workers if self.min_workers is None else self.min_workers


class TrackingConfig(Settings):
    """Where a run is reported. The event log in the run folder is written in any case.

    Attributes:
        mlflow: tracking URI, of a server or a database; null for none.
        experiment: MLflow experiment that holds the runs.
    """

    mlflow: TrackingURI | None = "sqlite:///runs/mlflow.db"
    experiment: Annotated[str, Field(min_length=1), AfterValidator(_taken)] = "detectors"


#: What a run may be called: its folder, and the end of addresses, have this name.
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Experiment(Settings):
    """One experiment: a detector, its data, how it is trained and where.

    Attributes:
        name: of the run, and of its folder below ``storage``.
        seed: everything random is a function of it. Null draws one at the first start of the run,
            which its later starts take over.
        detector: network and recipe.
        data: images and boxes.
        train: optimisation.
        cluster: where it computes.
        storage: folder that holds the run folders, or ``s3://bucket/prefix`` or
            ``gs://bucket/prefix``, with options of the store behind a question mark:
            ``?region=...&endpoint_override=...``. Keys come from the environment.
        scratch: where the driver of a run or sweep whose ``storage`` is a bucket works: a folder
            that may be lost afterwards. Workers that do not see it get one of their own. Not used
            otherwise.
        tracking: where it is reported.
        sweep: what to vary, for many runs of it; null for one run.
    """

    name: Annotated[str, Field(pattern=RUN_NAME)]
    seed: Seed = 1
    detector: AnyDetectorConfig
    data: DataConfig
    train: TrainConfig
    cluster: ClusterConfig = ClusterConfig()
    storage: FolderOrBucket = "runs"
    scratch: Folder = "runs"
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig | None = None

    @property
    def in_bucket(self) -> bool:
        """Whether ``storage`` is a bucket and not a folder."""
        return "://" in self.storage

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        if self.sweep is not None:
            if self.train.evaluation == "beside":
                yield Conflict(
                    "train.evaluation",
                    "train.evaluation is beside, which takes a place on the cluster that sweep "
                    "gives to another trial; write in_loop or auto, or remove sweep",
                )
            yield from self._sweep_conflicts(self.sweep)
        if self.cluster.min_workers is not None:
            yield from self._range_conflicts(self.cluster.min_workers)
        if self.train.batch_size % self.data.lanes:
            yield Conflict(
                "data.lanes",
                f"data.lanes is {self.data.lanes}, which does not divide train.batch_size "
                f"{self.train.batch_size}; write a divisor of it, best a multiple of the nodes",
            )
        if isinstance(self.train.virtual_shards, int):
            yield from self._shard_conflicts(self.train.virtual_shards)
            return
        pieces = self.cluster.workers * self.train.accumulate
        size = self.train.batch_size
        if size % pieces:
            below, above = size - size % pieces, size + pieces - size % pieces
            fitting = f"{above}" if below == 0 else f"{below} or {above}"
            yield Conflict(
                "train.batch_size",
                f"train.batch_size is {size} and must be divisible by cluster.workers x "
                f"train.accumulate = {self.cluster.workers} x {self.train.accumulate}; "
                f"{fitting} would be",
            )

    def _range_conflicts(self, least: int) -> Iterator[Conflict]:
        most, train = self.cluster.workers, self.train
        if least > most:
            yield Conflict(
                "cluster.workers", f"cluster.workers goes from {least} to {most}, not upwards"
            )
        if train.virtual_shards is None or train.sync_batch_norm:
            key, value = "train.sync_batch_norm", "true"
            if train.virtual_shards is None:
                key, value = "train.virtual_shards", "null"
            yield Conflict(
                key,
                f"{key} is {value}, with which another number of workers ends in other bits, and "
                "cluster.workers is a range; name one number of workers, or leave this key out",
            )
        if self.sweep is not None:
            yield Conflict(
                "cluster.workers",
                "cluster.workers is a range, and trials of a sweep share the cluster by one number "
                "each; name one",
            )

    def _shard_conflicts(self, shards: int) -> Iterator[Conflict]:
        size, workers = self.train.batch_size, self.cluster.workers
        if size % shards:
            yield Conflict(
                "train.virtual_shards",
                f"train.virtual_shards is {shards} and must divide train.batch_size, which is "
                f"{size}",
            )
        if shards % workers:
            yield Conflict(
                "train.virtual_shards",
                f"train.virtual_shards is {shards} and must be divisible by cluster.workers, "
                f"which is {workers}",
            )

    def _sweep_conflicts(self, sweep: SweepConfig) -> Iterator[Conflict]:
        if sweep.scheduler == "none":
            return
        first = {
            "asha": ("asha.grace_epochs", sweep.asha.grace_epochs),
            "pbt": ("pbt.interval_epochs", sweep.pbt.interval_epochs),
        }
        key, epochs = first[sweep.scheduler]
        if epochs >= self.train.epochs:
            yield Conflict(
                f"sweep.{key}",
                f"sweep.{key} is {epochs} and must be below train.epochs, which is "
                f"{self.train.epochs}: no trial would be judged before its end",
            )
        if sweep.scheduler == "pbt" and self.train.early_stopping is not None:
            yield Conflict(
                "sweep.scheduler",
                "sweep.scheduler pbt clones members of the same age, which train.early_stopping "
                "would keep some from reaching; remove one of them",
            )
        for length in ("train.epochs", "train.max_steps"):
            if length in sweep.space or (length == "train.max_steps" and self.train.max_steps):
                yield Conflict(
                    "sweep.scheduler",
                    f"sweep.scheduler {sweep.scheduler} compares trials of the same age, so "
                    f"{length} cannot be used with it",
                )
