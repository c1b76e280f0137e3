"""The experiment file that ``orchestrator init`` leaves: short, commented, ready to run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.scalars import scalar_text
from orchestrator.data.dataset import Dataset
from orchestrator.data.orientation import Orientation
from orchestrator.init.choosing import Choice, Recipe, typical_side


@dataclass(frozen=True)
class DataSection:
    """Where the data lies, as ``data`` has it.

    Attributes:
        format: coco, voc, txt or yolo.
        root: folder that the others are relative to.
        classes: file that names the classes; None where the annotations do.
        train: images and annotations to learn from.
        val: images and annotations to evaluate on.
        comments: what was found, one line each.
        orientation: what boxes belong to where images have an orientation tag.
    """

    format: str
    root: str
    classes: str | None
    train: tuple[str, str]
    val: tuple[str, str]
    comments: Sequence[str]
    orientation: Orientation = "stored"


def experiment_text(
    name: str,
    file: str,
    data: DataSection,
    train: Dataset,
    choice: Choice,
    *,
    weights: bool,
    made_by: str,
    commands: Sequence[str],
) -> str:
    """The file.

    Args:
        name: of the run.
        file: that this becomes.
        data: where the images and boxes are.
        train: images to learn from.
        choice: what to train.
        weights: whether the published weights can be had.
        made_by: command that made the file.
        commands: that use it.
    """
    recipe = choice.recipe
    image, box = typical_side(train)
    fit = f"A typical image has {image:.0f} pixels a side, a typical box {box:.0f}"
    if choice.recall is not None:
        fit += f"; {choice.recall:.0%} of the boxes have a fitting prior"
    lines = [
        f"# Made by: {made_by}",
        *(f"# {comment}" for comment in data.comments),
        "#",
        *(f"#   {line}" for line in commands),
        "#",
        "# Any value can be changed here, or on the command line as in train.epochs=20. All:",
        f"#   {shlex.join(['orchestrator', 'config', 'show', file])}",
        "",
        f"name: {scalar_text(name)}",
        "seed: 1",
        "",
        f"# {recipe.why[0].upper()}{recipe.why[1:]}.",
        f"# {fit}.",
        "detector:",
        *_section(recipe.detector),
        "",
        "data:",
        f"  format: {data.format}",
        f"  root: {scalar_text(data.root)}",
        *([] if data.classes is None else [f"  classes: {scalar_text(data.classes)}"]),
        *(
            [_commented("  orientation: displayed", "boxes are of the pictures as people see them")]
            if data.orientation == "displayed"
            else []
        ),
        *(
            f"  {key}: {{images: {scalar_text(images)}, annotations: {scalar_text(annotations)}}}"
            for key, (images, annotations) in (("train", data.train), ("val", data.val))
        ),
        "  augmentation:",
        *_section(recipe.augmentation, "    "),
        _commented("    flip_probability: 0.5", "0.0 where a mirrored object is another one"),
        "",
        "train:",
        _commented(f"  epochs: {choice.epochs}", f"{choice.steps} steps in all"),
        _commented(f"  batch_size: {choice.batch_size}", "over all workers together"),
        *_weights(recipe, available=weights),
        f"  optimizer: {_flow(recipe.optimizer)}",
        "  schedule: {name: cosine, warmup_epochs: 1}",
        *([] if recipe.clip_norm is None else [f"  clip_norm: {scalar_text(recipe.clip_norm)}"]),
        f"  ema: {{decay: {0.999 if choice.steps > 1500 else 0.99}, warmup_steps: 100}}",
        f"  evaluate_every_epochs: {choice.evaluate_every}",
        f"  checkpoint: {{every_epochs: {choice.evaluate_every}, keep_last: 2, keep_best: 1, "
        "metric: val/AP}",
        "",
        "cluster: {workers: 1, accelerator: auto}",
        "storage: runs",
        f'tracking: {{mlflow: "sqlite:///runs/mlflow.db", experiment: {scalar_text(name)}}}',
    ]
    return "\n".join(lines) + "\n"


def _commented(line: str, comment: str) -> str:
    return f"{line:<30}  # {comment}"


def _weights(recipe: Recipe, *, available: bool) -> list[str]:
    """The line for starting weights, as a comment where they cannot be had."""
    if recipe.weights is None:
        return [_commented("  init_from: null", "random weights; or a file, a run, a name")]
    if available:
        return [_commented(f"  init_from: {recipe.weights}", "fetched once, then kept")]
    return [
        "  # Published weights could not be reached when this file was written, so it begins with",
        "  # random ones, which learn more slowly. With a network,",
        f"  # {recipe.with_weights}:",
        f"  # init_from: {recipe.weights}",
    ]


def _section(values: Mapping[str, Any], indent: str = "  ") -> list[str]:
    return [f"{indent}{key}: {_flow(value)}" for key, value in values.items()]


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return scalar_text(value)
