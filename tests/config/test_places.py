"""Every field of an experiment that names a place is in the one list of places."""

from __future__ import annotations

import inspect
import re
import typing

from detectors.config import Settings
from orchestrator.config import schema
from orchestrator.config.places import places_of
from orchestrator.config.schema import data, experiment, sweep, train

#: Fields that take a path or an address, by the keys that ``places_of`` gives them; folders that
#: others are relative to are part of these.
FIELDS = {
    "SplitConfig.images": "data.train.images",
    "SplitConfig.annotations": "data.train.annotations",
    "SplitConfig.shards": "data.val.shards",
    "SourceConfig.images": "data.sources.0.images",
    "SourceConfig.annotations": "data.sources.0.annotations",
    "SourceConfig.classes": "data.sources.0.classes",
    "SourceConfig.root": "data.sources.0.images",
    "DataConfig.root": "data.train.images",
    "DataConfig.classes": "data.classes",
    "DataConfig.cache": "data.cache",
    "TrainConfig.init_from": "train.init_from",
    "TrainConfig.continue_from": "train.continue_from",
    "Experiment.storage": "storage",
    "Experiment.scratch": "scratch",
    "TrackingConfig.mlflow": "tracking.mlflow",
}


def test_every_field_that_takes_a_place_is_listed() -> None:
    found = set()
    for module in (schema, data, experiment, sweep, train):
        for name, model in inspect.getmembers(module, inspect.isclass):
            if issubclass(model, Settings):
                hints = typing.get_type_hints(model, include_extras=True)
                found |= {f"{name}.{key}" for key, hint in hints.items() if takes_place(hint)}
    assert found == set(FIELDS)


def takes_place(hint: object) -> bool:
    return re.search("_no_home|_no_password", repr(hint)) is not None


def test_all_of_them_are_named_with_the_folder_they_are_relative_to(load, minimal) -> None:
    resolved = load(
        minimal,
        "data={format: voc, root: r, train: {images: a, annotations: b}, "
        "val: {images: /a, annotations: 's3://b/x', shards: c}, classes: n, cache: k}",
        "data.sources=[{images: d, annotations: e, classes: f, root: q}]",
        "train.init_from=w",
        "storage=s3://bucket/runs",
        "scratch=s",
        "tracking.mlflow=sqlite:///m.db",
    )
    named = {place.key: place.location for place in places_of(resolved.experiment)}
    assert named == {
        "data.train.images": "r/a",
        "data.train.annotations": "r/b",
        "data.val.images": "/a",
        "data.val.annotations": "s3://b/x",
        "data.val.shards": "r/c",
        "data.sources.0.images": "q/d",
        "data.sources.0.annotations": "q/e",
        "data.sources.0.classes": "q/f",
        "data.classes": "r/n",
        "data.cache": "k",
        "train.init_from": "w",
        "storage": "s3://bucket/runs",
        "scratch": "s",
        "tracking.mlflow": "m.db",
    }
    # It and train.init_from exclude each other.
    other = load(minimal, "train.continue_from=runs/a").experiment
    assert {place.key: place.location for place in places_of(other)}[
        "train.continue_from"
    ] == "runs/a"
    assert {*named, "train.continue_from"} >= set(FIELDS.values())
