"""Every place that an experiment names, in one list for all who look at them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.config.schema import Experiment
from orchestrator.storage.address import below

#: Before the name of published weights, which is no path.
PUBLISHED = "torchvision:"


class NamedPlace(NamedTuple):
    """A place and what named it.

    Attributes:
        key: of the experiment.
        location: path or address; what is relative to ``data.root`` is joined with it.
        is_written: whether a run writes there.
        given: what the experiment says, where that is more than the location.
    """

    key: str
    location: str
    is_written: bool = False
    given: str | None = None

    @property
    def is_absolute(self) -> bool:
        """Whether it is the same from every folder."""
        return "://" in self.location or os.path.isabs(self.location)  # noqa: PTH117


def bucket_of(experiment: Experiment) -> str | None:
    """URI of a run or sweep in its bucket, with the options of the store; None for a folder."""
    if not experiment.in_bucket:
        return None
    return below(experiment.storage, experiment.name)


def folder_of(experiment: Experiment) -> Path:
    """Where a run or sweep works on this machine: its folder, or the working copy of a bucket."""
    root = experiment.scratch if experiment.in_bucket else experiment.storage
    return Path(root).resolve() / experiment.name


def places_of(experiment: Experiment) -> Iterator[NamedPlace]:
    """Every place that an experiment names, in the order of its file."""
    data = experiment.data
    for name, split in (("train", data.train), ("val", data.val)):
        for key in ("images", "annotations", "shards"):
            given = getattr(split, key)
            if given is not None:
                yield NamedPlace(f"data.{name}.{key}", _below(data.root, given))
    for number, source in enumerate(data.sources):
        root = data.root if source.root is None else source.root
        for key in ("images", "annotations", "classes"):
            given = getattr(source, key)
            if given is not None:
                yield NamedPlace(f"data.sources.{number}.{key}", _below(root, given))
    if data.classes is not None:
        yield NamedPlace("data.classes", _below(data.root, data.classes))
    if data.cache is not None:
        yield NamedPlace("data.cache", data.cache, is_written=True)
    initial = experiment.train.init_from
    if initial is not None and not initial.startswith(PUBLISHED):
        yield NamedPlace("train.init_from", initial)
    if experiment.train.continue_from is not None:
        yield NamedPlace("train.continue_from", experiment.train.continue_from)
    yield NamedPlace("storage", experiment.storage, is_written=True)
    if experiment.in_bucket:
        yield NamedPlace("scratch", experiment.scratch, is_written=True)
    mlflow = experiment.tracking.mlflow
    if mlflow is not None:
        scheme, mark, path = mlflow.partition(":///")
        local = scheme == "sqlite" and mark
        location = path if local else mlflow
        yield NamedPlace("tracking.mlflow", location, is_written=True, given=mlflow)


def _below(root: str, given: str) -> str:
    if "://" in given or os.path.isabs(given):  # noqa: PTH117
        return given
    return f"{root.rstrip('/')}/{given}" if "://" in root else os.path.normpath(f"{root}/{given}")
