"""Boxes that a trained detector contradicts: left out, spurious, of the wrong class or place.

How much a contradiction says depends on how often the detector is right otherwise. Over the data
set itself, it is counted how often detections of a class with some score have a box of their class
(precision), how often those that lie on any box have its class, and how often boxes of a class are
found (recall). A detection without a box is then as suspicious as its like have boxes; a box that
nothing was found for, as its like are found; where a detection and a box contradict each other both
count. So few wrong boxes among many right ones stand out, and what the detector is bad at does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.tile_merging import intersections, overlaps

Kind: TypeAlias = Literal["missed", "spurious", "wrong_class", "wrong_place"]

#: Overlap from which a detection stands for a box.
SAME = 0.5
#: Below it, with any box, a detection is of something that has no box.
_APART = 0.3
#: Overlap of a box that was put into a wrong place with what was found in the right one.
_MOVED = 0.1
#: Trust from which a detection names what is wrong with a box, rather than that nothing is there.
_BELIEVED = 0.5
#: Detections or boxes, of the same class, whose average says how often they are right.
_PRIOR_COUNT = 2.0


@dataclass(frozen=True)
class Suspect:
    """One contradiction.

    Attributes:
        kind: ``missed``, an object without box; ``spurious``, a box without object; ``wrong_class``
            and ``wrong_place``.
        suspicion: how far the detector is to be trusted in it, 0 to 1.
        image: index in the data set.
        row: of the box in the data set; None where one is missing.
        label: of the box, or of the detection where there is none.
        box: xyxy in pixels, likewise.
        found_label, found_box, found_score: of the detection; None where there is none.
    """

    kind: Kind
    suspicion: float
    image: int
    row: int | None
    label: int
    box: tuple[float, float, float, float]
    found_label: int | None = None
    found_box: tuple[float, float, float, float] | None = None
    found_score: float | None = None


@dataclass(frozen=True)
class _Pair:
    """Boxes and detections of one image, and their overlaps (boxes, detections)."""

    image: int
    rows: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    found: NDArray[np.int64]
    iou: NDArray[np.float64]


def find_suspects(data: Dataset, found: Detections) -> list[Suspect]:
    """All contradictions, the most suspicious first.

    Crowds are no boxes here, and what lies mostly in one is not missed.

    Args:
        data: the annotations in question.
        found: by the detector in its images, by their ids, with its labels.
    """
    order = np.argsort(-found.scores, kind="stable")
    found = Detections(
        found.images,
        found.image_ids[order],
        found.labels[order],
        found.boxes[order],
        found.scores[order],
    )
    pairs = _pairs(data, found)
    trust = _Trust.of(data, found, pairs)
    suspects: list[Suspect] = []
    for pair in pairs:
        suspects += _in_image(pair, found, trust)
    return sorted(suspects, key=lambda one: (-one.suspicion, -(one.found_score or 0.0)))


def _pairs(data: Dataset, found: Detections) -> list[_Pair]:
    where, known = positions_in(found.image_ids, data.image_ids)
    rows_of = np.flatnonzero(known)
    image_of = where[rows_of]
    grouped = np.argsort(image_of, kind="stable")
    starts = np.searchsorted(image_of[grouped], np.arange(len(data) + 1))
    looked_at, _ = positions_in(found.images, data.image_ids)
    pairs = []
    for image in np.unique(looked_at).tolist():
        span = data.boxes_of(image)
        all_rows = np.arange(span.start, span.stop)
        xywh = data.boxes_xywh[span]
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        mine = rows_of[grouped[starts[image] : starts[image + 1]]]
        boxes = found.boxes[mine].astype(np.float64)
        crowd = data.crowd[span]
        areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
        hidden = (intersections(xyxy[crowd], boxes) > SAME * areas).any(axis=0)
        mine, boxes = mine[~hidden], boxes[~hidden]
        real = xyxy[~crowd]
        pairs.append(
            _Pair(
                image=image,
                rows=all_rows[~crowd],
                boxes=real,
                labels=data.labels[span][~crowd],
                found=mine,
                iou=overlaps(real, boxes),
            )
        )
    return pairs


@dataclass(frozen=True)
class _Trust:
    """How often the detector is right: for each detection, and for boxes of each class.

    Attributes:
        precision: (d,) of detections of that class and score, a box of the class is there.
        agrees: (d,) of those that lie on a box, it has the class.
        recall: (K,) of the boxes of a class, found.
    """

    precision: NDArray[np.float64]
    agrees: NDArray[np.float64]
    recall: NDArray[np.float64]

    @classmethod
    def of(cls, data: Dataset, found: Detections, pairs: list[_Pair]) -> _Trust:
        true_positive = np.zeros(len(found), np.bool_)
        on_box = np.zeros(len(found), np.bool_)
        is_found = np.zeros(len(data.labels), np.bool_)
        for pair in pairs:
            free = np.ones(len(pair.rows), np.bool_)
            same = pair.labels[:, None] == found.labels[pair.found][None]
            matches = np.where(same, pair.iou, 0.0)
            for column, row in enumerate(pair.found.tolist()):
                if not len(pair.rows):
                    break
                on_box[row] = pair.iou[:, column].max() >= SAME
                candidates = np.where(free, matches[:, column], 0.0)
                best = int(candidates.argmax())
                if candidates[best] >= SAME:
                    free[best], true_positive[row] = False, True
            if len(pair.found) and len(pair.rows):
                is_found[pair.rows] = (matches >= SAME).any(axis=1)
        seen = np.concatenate([[], *(pair.rows for pair in pairs)]).astype(np.int64)
        classes = len(data.label_map)
        boxes = np.bincount(data.labels[seen], minlength=classes)
        got = np.bincount(data.labels[seen], weights=is_found[seen], minlength=classes)
        overall = got.sum() / max(1, boxes.sum())
        return cls(
            precision=_by_score(found, true_positive, np.ones(len(found), np.bool_)),
            agrees=_by_score(found, true_positive, on_box),
            recall=(got + _PRIOR_COUNT * overall) / (boxes + _PRIOR_COUNT),
        )


def _by_score(
    found: Detections, good: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(d,) share of the good among detections like each: of its class, never falling with score."""
    shares = np.zeros(len(found))
    for label in np.unique(found.labels).tolist():
        rows = found.labels == label
        some = rows & counted
        if not some.any():
            continue
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        curve.fit(found.scores[some].astype(np.float64), good[some].astype(np.float64))
        shares[rows] = curve.predict(found.scores[rows].astype(np.float64))
        # The top of the curve may stand on few: not more certain than so many allow.
        shares[rows] *= some.sum() / (some.sum() + _PRIOR_COUNT)
    return shares


def _in_image(pair: _Pair, found: Detections, trust: _Trust) -> list[Suspect]:
    labels, scores = found.labels[pair.found], found.scores[pair.found]
    precision, agrees = trust.precision[pair.found], trust.agrees[pair.found]
    seen = pair.iou.shape[1]
    same = pair.labels[:, None] == labels[None]
    explains = same & (pair.iou >= SAME)
    # How certain the detector is that a box is right: of what it found of its class there.
    confirmed = np.where(explains, precision[None], 0.0).max(axis=1, initial=0.0)
    explained = explains.any(axis=0)
    suspects = []
    used = explained.copy()
    for box in np.argsort(confirmed, kind="stable").tolist():
        row, label = int(pair.rows[box]), int(pair.labels[box])
        undetected = trust.recall[label] * (1.0 - confirmed[box])
        kind: Kind = "spurious"
        column, belief = None, 0.0
        if seen:
            other = ~same[box] & (pair.iou[box] >= SAME) & ~used
            moved = same[box] & (pair.iou[box] < SAME) & (pair.iou[box] >= _MOVED) & ~used
            choices: list[tuple[Kind, NDArray[np.bool_], NDArray[np.float64]]] = [
                ("wrong_class", other, agrees),
                ("wrong_place", moved, precision),
            ]
            for choice, rows, trusted in choices:
                best = int(np.where(rows, trusted, -1.0).argmax())
                if rows[best] and trusted[best] > max(belief, _BELIEVED):
                    kind, column, belief = choice, best, float(trusted[best])
        if column is not None:
            suspicion = (1.0 - confirmed[box]) * (1.0 - (1.0 - belief) * (1.0 - undetected))
        else:
            near = np.where(pair.iou[box] >= _APART, precision, 0.0).max(initial=0.0)
            suspicion = undetected * (1.0 - near)
        if suspicion <= 0.0:
            continue
        if column is not None:
            used[column] = True
        suspects.append(
            _suspect(
                kind, float(suspicion), pair, found, box=box, row=row, column=column, label=label
            )
        )
    free = ~used & (pair.iou.max(axis=0, initial=0.0) < _APART) if seen else used
    for column in np.flatnonzero(free).tolist():
        box_of = found.boxes[pair.found[column]]
        suspects.append(
            Suspect(
                kind="missed",
                suspicion=float(precision[column]),
                image=pair.image,
                row=None,
                label=int(labels[column]),
                box=_corners(box_of),
                found_label=int(labels[column]),
                found_box=_corners(box_of),
                found_score=float(scores[column]),
            )
        )
    return suspects


def _suspect(
    kind: Kind,
    suspicion: float,
    pair: _Pair,
    found: Detections,
    *,
    box: int,
    row: int,
    column: int | None,
    label: int,
) -> Suspect:
    detection = None if column is None else int(pair.found[column])
    return Suspect(
        kind=kind,
        suspicion=suspicion,
        image=pair.image,
        row=row,
        label=label,
        box=_corners(pair.boxes[box]),
        found_label=None if detection is None else int(found.labels[detection]),
        found_box=None if detection is None else _corners(found.boxes[detection]),
        found_score=None if detection is None else float(found.scores[detection]),
    )


def _corners(box: NDArray[np.floating]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return x0, y0, x1, y1
