"""What ``import orchestrator`` offers: load, run, evaluate, predict and draw from Python.

Everything here is public and kept; what lies in the rooms below may move from one version to the
next. The classes of :mod:`orchestrator.errors` are what can be raised.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.data.decode import Decoding
from orchestrator.errors import ConfigError, PreemptedError
from orchestrator.evaluation.coco import CocoMetrics
from orchestrator.pages.drawing import DISPLAY_LIMIT, DISPLAY_SCORE, Mark
from orchestrator.pages.drawing import draw as draw_marks
from orchestrator.predict.inputs import UPRIGHT_PICTURES
from orchestrator.predict.loading import LoadedDetector, load_detector
from orchestrator.predict.prediction import holding_threshold, network_of
from orchestrator.predict.predictor import DetectOptions, detect
from orchestrator.storage.run_files import RESULT

#: A path, or (h, w, 3) uint8 RGB pixels.
ImageLike: TypeAlias = str | Path | NDArray[np.uint8]


def load(experiment: str | Path, *overrides: str) -> ResolvedExperiment:
    """Read an experiment file with all its values in place.

    Args:
        experiment: path of the YAML file.
        overrides: ``key.path=value`` each.

    Raises:
        ConfigError: with everything that is wrong with the file and the overrides.
    """
    return load_experiment(experiment, overrides)


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        folder: of the run.
        state: ``done``; or ``preempted``, when it was asked to stop: the same call goes on.
        steps: optimizer steps that were done.
        metrics: numbers of the last evaluation by name, such as ``AP``.
        best_metrics: numbers of the best checkpoint; None where none was scored.
        tree: everything that ``result.json`` holds.
    """

    folder: Path
    state: str
    steps: int
    metrics: dict[str, float]
    best_metrics: dict[str, float] | None
    tree: dict[str, Any] = field(repr=False)


def run(
    experiment: str | Path | ResolvedExperiment, *overrides: str, force_resume: bool = False
) -> RunResult:
    """Train and evaluate as an experiment says, or go on where its run stopped.

    Ray is joined or started, as by ``orchestrator run``, and progress is printed.

    Args:
        experiment: path of the YAML file, or what :func:`load` gave.
        overrides: ``key.path=value`` each; with a path only.
        force_resume: go on with a run folder although its experiment or data has changed.

    Raises:
        ConfigError: the experiment is not valid, or has a sweep, which ``orchestrator run`` runs.
        OrchestratorError: of the class that says what went wrong.
    """
    from orchestrator.config.places import folder_of
    from orchestrator.runs.driver import drive

    if isinstance(experiment, ResolvedExperiment):
        if overrides:
            raise ConfigError("overrides belong to load(); this experiment is resolved already")
        resolved = experiment
    else:
        resolved = load(experiment, *overrides)
    if resolved.experiment.sweep is not None:
        raise ConfigError(
            f"{resolved.source}: has a sweep. Next: orchestrator run {resolved.source}"
        )
    folder = folder_of(resolved.experiment)
    code = drive(resolved, folder, force_resume=force_resume)
    tree: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
    assert code in (0, PreemptedError.exit_code), "other ends raise"
    return RunResult(
        folder=folder,
        state=tree["state"],
        steps=tree["steps"],
        metrics=tree["metrics"],
        best_metrics=tree.get("best_metrics"),
        tree=tree,
    )


@dataclass(frozen=True)
class Prediction:
    """What was detected in one image, best first.

    Attributes:
        boxes: (d, 4) float32 xyxy, absolute pixels of the image.
        scores: (d,) float32.
        labels: (d,) int64, positions in ``names``.
        names: of the classes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)


class TrainedDetector:
    """A detector that is ready to be used.

    Args:
        source: a run folder (its best checkpoint), a checkpoint folder, or a file of weights.
        overrides: ``key.path=value`` each, applied to its experiment.
        experiment: the experiment file; None takes the one in the run folder.
        accelerator: ``auto``, ``cpu``, ``gpu`` or ``npu``.
        batch_size: images that go through the network at a time, at least 1. Their composition is
            part of the bits, their number is not.

    Raises:
        ConfigError: an argument has a value that is not allowed.
        OrchestratorError: nothing there, damaged, or made for another detector.
    """

    def __init__(
        self,
        source: str | Path,
        *overrides: str,
        experiment: str | Path | None = None,
        accelerator: str = "auto",
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: allowed is 1 and more")
        self._loaded: LoadedDetector = load_detector(
            source, experiment=experiment, overrides=overrides
        )
        self._network = network_of(self._loaded, accelerator)
        self._batch = batch_size

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, by label."""
        return tuple(self._loaded.label_map.names)

    @property
    def experiment(self) -> ResolvedExperiment:
        """The experiment it comes from."""
        return self._loaded.resolved

    def predict(
        self,
        images: Sequence[ImageLike],
        *,
        score: float = DISPLAY_SCORE,
        limit: int = DISPLAY_LIMIT,
    ) -> list[Prediction]:
        """Detections in each image.

        Args:
            images: paths, whose pictures are taken upright, or RGB pixels.
            score: what a detection's score has to exceed, 0 to 1.
            limit: most detections of an image, at least 1.

        Raises:
            ConfigError: one image where several are expected, pixels that are none, or a score or
                limit that is not allowed.
            DataError: an image cannot be read.
        """
        # What is no sequence of images to a type checker may be one image all the same.
        given: Any = images
        if isinstance(given, (str, Path)) or (isinstance(given, np.ndarray) and given.ndim < 4):
            raise ConfigError("predict() takes several images. Next: put the one into a list")
        if not 0.0 <= score <= 1.0 or limit < 1:
            raise ConfigError(
                f"score={score}, limit={limit}: allowed are scores from 0 to 1 and limits from 1"
            )
        options = self._loaded.resolved.experiment.detector.postprocess.model_copy(
            update={"score_threshold": score, "max_per_image": limit}
        )
        how, made = DetectOptions(holding_threshold(options), tiles=self._loaded.tiles), []
        for start in range(0, len(images), self._batch):
            some = images[start : start + self._batch]
            pixels = [_pixels(image, self._loaded.pictures) for image in some]
            made += detect(
                self._network,
                pixels,
                how,
                prepare=self._loaded.prepare,
                batch_size=self._batch,
            )
        return [
            Prediction(
                boxes=one.boxes.numpy().astype(np.float32),
                scores=one.scores.numpy().astype(np.float32),
                labels=one.labels.numpy().astype(np.int64),
                names=self.names,
            )
            for one in made
        ]

    def evaluate(self, split: Literal["val", "train"] = "val") -> CocoMetrics:
        """The COCO numbers on ``train`` or ``val`` of the experiment's data set.

        Raises:
            ConfigError: another split.
            DataError: the data set is missing, or has other classes.
        """
        from orchestrator.predict.scoring import evaluate_detector, read_split

        if split not in ("train", "val"):
            raise ConfigError(f"split={split!r}: allowed are 'train' and 'val'")

        experiment = self._loaded.resolved.experiment
        how = DetectOptions(experiment.detector.postprocess, tiles=self._loaded.tiles)
        return evaluate_detector(self._loaded, read_split(experiment, split), how).analysis.metrics


def draw(image: ImageLike, prediction: Prediction) -> NDArray[np.uint8]:
    """A copy of an image, (h, w, 3) uint8 RGB, with a prediction's boxes, names and scores."""
    columns = (prediction.boxes.tolist(), prediction.labels.tolist(), prediction.scores.tolist())
    return draw_marks(
        _pixels(image, UPRIGHT_PICTURES),
        [
            Mark(tuple(box), label, f"{prediction.names[label]} {score:.2f}")
            for box, label, score in zip(*columns, strict=True)
        ],
    )


def _pixels(image: ImageLike, decoding: Decoding) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray):
        from orchestrator.data.decode import read_image

        return read_image(Path(image), decoding=decoding)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConfigError(
            f"an image of shape {image.shape} and type {image.dtype}: allowed is (h, w, 3) uint8, "
            "red, green and blue"
        )
    return image
