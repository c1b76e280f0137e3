"""Detections in the form COCO scores and stores them, and the results files they come in.

A results file is a list of ``{"image_id", "category_id", "bbox", "score"}`` with the data set's own
category ids and ``[x, y, width, height]`` boxes (https://cocodataset.org/#format-results).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.files import read_text_bytes
from orchestrator.data.findings import Problems
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.coco_tables import Table, describe, positions_in
from orchestrator.data.readers.plausibility import refuse_other_units
from orchestrator.errors import DataError
from orchestrator.evaluation.detections import Detections
from orchestrator.storage.atomic import write_atomic

#: Scores beyond it are no numbers that a detector gives, and integers may not fit a float.
_LARGEST = 1e150


@dataclass(frozen=True)
class Results:
    """d detections in float64, as a results file holds them.

    COCO breaks a tie between equal scores by position, so the order within an image is part of the
    result; how images follow each other is not.

    Attributes:
        images: ids of every image that was looked at; (i,) int64.
        image_ids: (d,) int64.
        labels: (d,) int64 contiguous labels.
        boxes_xywh: (d, 4) float64 ``x, y, width, height`` in pixels of the original image.
        scores: (d,) float64.
    """

    images: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(cls, detections: Detections) -> Results:
        """Widen detections; no value is rounded."""
        xywh = detections.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        return cls(
            images=detections.images,
            image_ids=detections.image_ids,
            labels=detections.labels,
            boxes_xywh=xywh,
            scores=detections.scores.astype(np.float64),
        )


def write_results(path: Path, results: Results, label_map: LabelMap) -> None:
    """Write a results file, one detection a line, by image id, every value in full.

    Any COCO evaluator gets the numbers of :func:`orchestrator.evaluation.coco.evaluate` from it;
    from rounded values it would not.
    """
    if not (np.isfinite(results.boxes_xywh).all() and np.isfinite(results.scores).all()):
        raise ValueError("detections that are not finite cannot be written as JSON")
    lines = ",\n".join(_lines(results, label_map))
    write_atomic(path, f"[\n{lines}\n]\n".encode("ascii"))


def _lines(results: Results, label_map: LabelMap) -> Iterator[str]:
    order = np.argsort(results.image_ids, kind="stable")
    categories = np.asarray(label_map.ids, np.int64)[results.labels]
    for image, category, box, score in zip(
        results.image_ids[order].tolist(),
        categories[order].tolist(),
        results.boxes_xywh[order].tolist(),
        results.scores[order].tolist(),
        strict=True,
    ):
        x, y, width, height = box
        # What json.dumps writes, in a fraction of its time.
        yield (
            f'{{"image_id":{image},"category_id":{category},'
            f'"bbox":[{x!r},{y!r},{width!r},{height!r}],"score":{score!r}}}'
        )


def read_results(path: Path, dataset: Dataset, *, label_map: LabelMap | None = None) -> Results:
    """Read a results file of ``dataset``.

    Every image of the data set counts as looked at: the file does not say which ones were.

    Args:
        path: of the file.
        dataset: whose images it is about.
        label_map: whose category ids it has; None for those of the data set. Labels are those of
            this map.

    Raises:
        DataError: no such file, no valid JSON, or entries that are malformed or belong to an
            unknown image or category; the first hundred are listed. Or boxes that are fractions of
            the image, corners or centres.
    """
    entries = _load(path)
    problems = Problems(str(path))
    good = [i for i, entry in enumerate(entries) if isinstance(entry, dict)]
    for i in sorted(set(range(len(entries))) - set(good)):
        problems.add(f"/{i}", f"is {describe(entries[i])}, expected an object")
    table = Table("", [entries[i] for i in good], np.array(good, np.int64), problems)

    image_ids, are_ids = table.ints("image_id")
    positions, known = positions_in(image_ids, dataset.image_ids)
    table.report(
        are_ids & ~known, "image_id", lambda row: f"is {image_ids[row]}, no image of the data set"
    )
    category_ids, are_ids = table.ints("category_id")
    ids = (label_map or dataset.label_map).ids
    owner = "the data set's" if label_map is None else "the detector's"
    labels, known = positions_in(category_ids, np.array(ids, np.int64))
    allowed = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
    table.report(
        are_ids & ~known,
        "category_id",
        lambda row: f"is {category_ids[row]}, but {owner} categories are {allowed}",
    )
    boxes, _ = table.boxes("bbox")
    negative = np.any(boxes[:, 2:] < 0, axis=1)
    table.report(negative, "bbox", lambda row: "has a negative width or height")
    scores = _scores(table)
    problems.raise_any()
    sizes = np.stack([dataset.widths[positions], dataset.heights[positions]], axis=1)
    refuse_other_units(
        boxes, sizes, source=path, place=lambda row: table.at(row, "bbox"), outside=False
    )
    return Results(dataset.image_ids, image_ids, labels, boxes, scores)


def _load(path: Path) -> list[Any]:
    try:
        tree = json.loads(read_text_bytes(path))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); name a results file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}); "
            "write the results again"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(tree, list):
        raise DataError(
            f"{path}: the top level is {describe(tree)}, expected a list of detections; "
            "is this an annotation file?"
        )
    return tree


def _scores(table: Table) -> NDArray[np.float64]:
    """(d,) finite scores; 0 where it was not acceptable."""
    scores = np.zeros(len(table), np.float64)
    for row, entry in enumerate(table.rows):
        score: Any = entry.get("score")
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if number and abs(score) <= _LARGEST:
            scores[row] = score
        else:
            found = describe(score) if "score" in entry else "missing"
            table.problems.add(table.at(row, "score"), f"is {found}, expected a finite number")
    return scores
