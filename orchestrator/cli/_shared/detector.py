"""The arguments by which every command after training names a detector and its use."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.parser import number_between
from orchestrator.errors import ConfigError
from orchestrator.layouts.files import is_file
from orchestrator.memory import importing

if TYPE_CHECKING:
    from orchestrator.data.tiling import Tiles
    from orchestrator.predict.loading import LoadedDetector, NamedDetector
    from orchestrator.predict.predictor import DetectOptions


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Words that are ``key.path=value`` overrides, and the others; files are never overrides."""
    overrides = [
        word
        for word in words
        if "=" in word and "/" not in word.partition("=")[0] and not is_file(Path(word))
    ]
    return overrides, [word for word in words if word not in overrides]


def require_source(source: str) -> None:
    """Refuse a detector that is not there, before the seconds that loading PyTorch takes.

    Raises:
        StorageError: it is not.
    """
    from orchestrator.storage.run_files import require_there

    require_there(Path(source))


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`load`."""
    group = parser.add_argument_group("which detector")
    group.add_argument(
        "--experiment",
        type=Path,
        metavar="FILE",
        help="experiment the weights belong to (default: the one in the run folder)",
    )
    group.add_argument(
        "--step",
        type=number_between(0, whole=True),
        metavar="N",
        help="which checkpoint of a run (default: the best)",
    )
    group.add_argument(
        "--averaged",
        action=argparse.BooleanOptionalAction,
        help="take the averaged weights, or the plain ones (default: averaged, if there are any)",
    )


def add_detect_options(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`detect_options`; thresholds, suppression and limits are overrides."""
    group = parser.add_argument_group(
        "how to detect",
        "Thresholds, suppression and limits are values of the experiment, to be given as "
        "overrides: detector.postprocess.nms=soft_linear, .score_threshold=0.3, "
        ".class_agnostic=true, .max_per_class=50, .max_per_image=100",
    )
    group.add_argument("--flip", action="store_true", help="look at every image mirrored as well")
    group.add_argument(
        "--scales",
        default="1",
        metavar="S,S",
        help="look at parts of images: 2 covers an image with four windows of half its width and "
        "height (default: 1, the whole image)",
    )
    group.add_argument(
        "--fusion",
        choices=("nms", "wbf"),
        default="nms",
        help="several views of an object become one by suppression of all candidates together, or "
        "by weighted boxes fusion",
    )
    group.add_argument(
        "--fusion-iou",
        type=number_between(0, 1, ends="()"),
        default=0.55,
        metavar="IOU",
        help="of wbf (default: 0.55)",
    )
    group.add_argument(
        "--tiles",
        metavar="HEIGHTxWIDTH+OVERLAP",
        help="look at images tile by tile, such as 640x640+64, and merge what is found; none looks "
        "at whole images (default: data.tiles of the experiment)",
    )


def load(source: str, overrides: list[str], arguments: argparse.Namespace) -> LoadedDetector:
    """The detector that the arguments name."""
    with importing():
        from orchestrator.predict.loading import load_detector

    return load_detector(source, overrides=overrides, **_which(arguments))


def name(source: str, overrides: list[str], arguments: argparse.Namespace) -> NamedDetector:
    """The detector that the arguments name, without its weights."""
    from orchestrator.predict.loading import name_detector

    return name_detector(source, overrides=overrides, **_which(arguments))


def _which(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("experiment", "step", "averaged")}


def detect_options(loaded: LoadedDetector, arguments: argparse.Namespace) -> DetectOptions:
    """Views and post-processing that the arguments ask for.

    Raises:
        ConfigError: scales or tiles that are none.
    """
    from orchestrator.predict.predictor import DetectOptions
    from orchestrator.predict.tta import Views

    return DetectOptions(
        postprocess=loaded.resolved.experiment.detector.postprocess,
        views=Views(scales=_scales(arguments.scales), flip=arguments.flip),
        fusion=arguments.fusion,
        fusion_iou=arguments.fusion_iou,
        tiles=loaded.tiles if arguments.tiles is None else _tiles(arguments.tiles),
    )


def _tiles(text: str) -> Tiles | None:
    from orchestrator.data.tiling import Tiles

    if text == "none":
        return None
    found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?(?:\+(\d{1,6}))?", text)
    if found is not None:
        height, width = int(found[1]), int(found[2] or found[1])
        overlap = int(found[3] or 0)
        if overlap < min(height, width):
            return Tiles((height, width), overlap)
    raise ConfigError(
        f"--tiles {text}: expected height x width + overlap in pixels, the overlap below both, "
        "such as 640x640+64, or none"
    )


def shown_options(
    loaded: LoadedDetector, arguments: argparse.Namespace, overrides: list[str]
) -> DetectOptions:
    """Like :func:`detect_options`, for people rather than for scoring.

    Unless ``--all`` or COCO results are asked for, what is not worth a look is left out; a
    threshold or limit among the overrides is taken as it is. ``--threshold`` holds for both.
    """
    from orchestrator.predict.prediction import for_display, holding_threshold

    how = detect_options(loaded, arguments)
    of_scoring = arguments.all or arguments.form == "coco"
    if of_scoring and arguments.threshold is None:
        return how
    chosen = [word.partition("=")[0].strip() for word in overrides]
    prefix = "detector.postprocess."
    overridden = {key.removeprefix(prefix) for key in chosen if key.startswith(prefix)}
    rule = holding_threshold if of_scoring else for_display
    return replace(how, postprocess=rule(how.postprocess, overridden))


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0.1 <= scale <= 10 for scale in scales):
        raise ConfigError(
            f"--scales {text}: expected numbers from 0.1 to 10 with commas between them, such as "
            "1,1.5,2"
        )
    if len(set(scales)) != len(scales):
        raise ConfigError(f"--scales {text}: names a scale twice; each counts once")
    return scales
