from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import load_experiment

TRAIN = "train: {images: a, annotations: a.json}"
Mistakes = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("split", "places"),
    [
        ("{shards: s3://bucket/train}", (None, None, "s3://bucket/train")),
        ("{images: a, annotations: b, shards: c}", ("a", "b", "c")),
    ],
)
def test_a_split_may_be_shards(
    split: str, places: tuple[str | None, ...], minimal: str, tmp_path: Path
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(minimal.replace(TRAIN, f"train: {split}\n  window: 100"))
    resolved = load_experiment(path, [])
    train = resolved.experiment.data.train
    assert (train.images, train.annotations, train.shards) == places
    assert resolved.experiment.data.window == 100
    path.write_text(dump_yaml(resolved))
    assert load_experiment(path, []).digest == resolved.digest


@pytest.mark.parametrize(
    ("split", "line"),
    [
        ("{}", "data.train.images: required key is missing; allowed is text, not empty"),
        ("{}", "data.train.annotations: required key is missing; allowed is text, not empty"),
        ("{shards: c, images: a}", "data.train.annotations: required key is missing; images"),
        ("{shards: c, annotations: a}", "data.train.images: required key is missing; annotations"),
        ("{shards: ''}", "data.train.shards: found '', allowed is text, not empty"),
    ],
)
def test_what_a_split_lacks_is_said(
    split: str, line: str, mistakes: Mistakes, minimal: str
) -> None:
    found = mistakes(minimal.replace(TRAIN, f"train: {split}"))
    assert any(line in one for one in found), found


def test_a_window_needs_shards(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(minimal.replace(TRAIN, f"{TRAIN}\n  window: 100"))
    assert "data.window: data.window is 100, but data.train.shards names no shards" in found
