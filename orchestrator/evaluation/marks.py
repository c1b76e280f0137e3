"""What is drawn on an image: its detections and annotations, told apart; and samples of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.evaluation.matching import match_image
from orchestrator.evaluation.results import Results
from orchestrator.pages.drawing import (
    DISPLAY_LIMIT,
    DISPLAY_SCORE,
    Kind,
    Mark,
    contact_sheet,
    draw,
    encode_jpeg,
    shrunk,
)
from orchestrator.storage.atomic import write_atomic

_SAMPLES: Final = 6
_SIDE: Final = 400


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        xywh: (b, 4) float64, pixels.
        labels: (b,) int64.
        scores: (b,) float64 of detections; zeros for annotations.
        crowd: (b,) whether an annotation is a crowd; False for detections.
    """

    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @classmethod
    def detected(
        cls, xywh: NDArray[np.float64], labels: NDArray[np.int64], scores: NDArray[np.float64]
    ) -> Boxes:
        """Detections."""
        return cls(xywh.reshape(-1, 4), labels, scores, np.zeros(len(labels), np.bool_))

    @classmethod
    def annotated(
        cls, xywh: NDArray[np.float64], labels: NDArray[np.int64], crowd: NDArray[np.bool_]
    ) -> Boxes:
        """Annotations."""
        return cls(xywh.reshape(-1, 4), labels, np.zeros(len(labels)), crowd)

    def mark(self, row: int, text: str, kind: Kind) -> Mark:
        """A box as it is drawn."""
        x, y, w, h = self.xywh[row].tolist()
        return Mark((x, y, x + w, y + h), int(self.labels[row]), text, kind)


def marks_of(
    detections: Boxes, annotations: Boxes, names: Sequence[str]
) -> tuple[list[Mark], list[Mark]]:
    """Marks of the detections, true and false positives, and of the annotations, missed or not.

    Args:
        detections: of an image, those that are to be shown.
        annotations: of the same.
        names: of the classes, by label.
    """
    matched = match_image(
        (detections.xywh, detections.labels, detections.scores),
        (annotations.xywh, annotations.labels, annotations.crowd),
    )
    right = (matched.true_positive | matched.ignored).tolist()
    missed = (~matched.matched & ~annotations.crowd).tolist()
    return (
        [
            detections.mark(
                row,
                f"{names[detections.labels[row]]} {detections.scores[row]:.2f}",
                "detection" if right[row] else "false positive",
            )
            for row in range(len(right))
        ],
        [
            annotations.mark(row, names[annotations.labels[row]], "missed")
            if missed[row]
            else annotations.mark(row, "", "annotation")
            for row in range(len(missed))
        ],
    )


def marks_in(
    dataset: Dataset, index: int, results: Results, *, score: float, limit: int | None = None
) -> tuple[list[Mark], list[Mark]]:
    """:func:`marks_of` for an image of a data set.

    Args:
        dataset: annotations.
        index: of the image.
        results: detections in all images.
        score: lowest that is shown.
        limit: most detections, the best; None for all.
    """
    rows = np.flatnonzero(
        (results.image_ids == dataset.image_ids[index]) & (results.scores >= score)
    )
    rows = rows[np.argsort(-results.scores[rows], kind="stable")][:limit]
    there = dataset.boxes_of(index)
    return marks_of(
        Boxes.detected(results.boxes_xywh[rows], results.labels[rows], results.scores[rows]),
        Boxes.annotated(dataset.boxes_xywh[there], dataset.labels[there], dataset.crowd[there]),
        dataset.label_map.names,
    )


def write_samples(path: Path, dataset: Dataset, results: Results) -> bool:
    """A sheet of a few images, always the same ones, with detections and annotations on them.

    Args:
        path: of the JPEG file.
        dataset: images and annotations.
        results: detections of an evaluation.

    Returns:
        Whether there was any image that could be read here.
    """
    annotated = np.flatnonzero(np.diff(dataset.offsets) > 0)
    some = annotated if len(annotated) else np.arange(len(dataset))
    chosen = np.unique(some[np.linspace(0, len(some) - 1, _SAMPLES).astype(np.int64)])
    drawn = []
    for index in chosen.tolist():
        try:
            pixels = image_pixels(dataset, index, declared=False)
        except (BadImageError, OSError):
            continue  # Reading it in training says what is wrong with it.
        detections, annotations = marks_in(
            dataset, index, results, score=DISPLAY_SCORE, limit=DISPLAY_LIMIT
        )
        drawn.append(draw(*shrunk(pixels, [*detections, *annotations], _SIDE)))
    if drawn:
        write_atomic(
            path, encode_jpeg(contact_sheet(drawn, columns=3, cell=_SIDE, gap=4), quality=85)
        )
    return bool(drawn)
