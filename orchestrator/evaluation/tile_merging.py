"""From detections in overlapping tiles to those in the whole image.

Where tiles overlap, both may find an object. If both see it whole, the boxes overlap and the better
one is kept, as in any suppression. If one sees only a part, its box ends at the tile's edge, a
seam: it gives way to the whole box that covers it. An object larger than the overlap is whole in no
tile; the boxes that end at seams, and agree in what both tiles see, become one box around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Tiling
from orchestrator.evaluation.detections import Detections

#: A box ends at a seam where it comes nearer than this share of the tile's side, or this many
#: pixels: detectors place edges no better.
_SEAM_SHARE, _SEAM_PIXELS = 0.02, 2.0
#: Overlap, of what two tiles see, from which two cut boxes are one object.
_CONTINUES = 0.5
#: Share of a cut box from which it is a part of a whole one.
_PART = 0.5


@dataclass(frozen=True)
class _Boxes:
    """Boxes with the tile each was found in, -1 for those made of several.

    ``cut`` is (d, 4) bool: which sides of a box end at a seam.
    """

    xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    tiles: NDArray[np.int64]
    cut: NDArray[np.bool_]

    @property
    def is_cut(self) -> NDArray[np.bool_]:
        """(d,) bool: not whole."""
        return np.asarray(self.cut.any(axis=1))


def merge_tiles(
    found: Detections,
    tiling: Tiling,
    *,
    iou: float,
    class_agnostic: bool = False,
    max_per_class: int | None = None,
    limit: int | None = None,
) -> Detections:
    """Detections of whole images from those of their tiles.

    Args:
        found: in pixels of the tiles, by their ids, which are positions in ``tiling``.
        tiling: what part of which image each tile is.
        iou: overlap above which two boxes are one object.
        class_agnostic: whether boxes of different classes can be.
        max_per_class: boxes kept of one class of an image, the best; of all classes together where
            they are one; None for all.
        limit: boxes kept of an image, the best; None for all.

    Returns:
        By the ids of the images, each one's best first.
    """
    windows = tiling.windows.astype(np.float64)
    shift = windows[found.image_ids][:, [0, 1, 0, 1]]
    boxes = found.boxes.astype(np.float64) + shift
    of_image = tiling.image_ids[found.image_ids]
    looked_at = np.unique(tiling.image_ids[found.images])
    order = np.argsort(of_image, kind="stable")
    ends = np.searchsorted(of_image[order], looked_at, side="right")
    starts = np.searchsorted(of_image[order], looked_at, side="left")
    parts = []
    for image, start, end in zip(looked_at.tolist(), starts, ends, strict=True):
        rows = order[start:end]
        tiles = found.image_ids[rows]
        height, width = tiling.sizes[tiles[0]] if len(tiles) else (0, 0)
        merged = merge_image(
            boxes[rows],
            found.scores[rows].astype(np.float64),
            found.labels[rows],
            windows[tiles],
            tiles,
            size=(int(height), int(width)),
            iou=iou,
            class_agnostic=class_agnostic,
            max_per_class=max_per_class,
            limit=limit,
        )
        parts.append((image, *merged))
    none = np.zeros((0, 4))
    return Detections(
        images=looked_at,
        image_ids=np.concatenate([[], *(np.full(len(p[2]), p[0]) for p in parts)]).astype(np.int64),
        labels=np.concatenate([[], *(p[3] for p in parts)]).astype(np.int64),
        boxes=np.concatenate([none, *(p[1] for p in parts)]).astype(np.float32),
        scores=np.concatenate([[], *(p[2] for p in parts)]).astype(np.float32),
    )


def merge_image(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    windows: NDArray[np.float64],
    tiles: NDArray[np.int64],
    *,
    size: tuple[int, int],
    iou: float,
    class_agnostic: bool = False,
    max_per_class: int | None = None,
    limit: int | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Boxes, scores and labels of one image, best first.

    Args:
        boxes: (d, 4) xyxy in pixels of the image.
        scores: (d,).
        labels: (d,).
        windows: (d, 4) ``left, top, right, bottom`` of the tile of each.
        tiles: (d,) number of that tile.
        size: height and width of the image.
        iou, class_agnostic, max_per_class, limit: as of :func:`merge_tiles`.
    """
    groups = np.zeros(len(labels), np.int64) if class_agnostic else labels
    kept = []
    for group in np.unique(groups).tolist():
        rows = np.flatnonzero(groups == group)
        cut = _cut(boxes[rows], windows[rows], size)
        of_group = _Boxes(boxes[rows], scores[rows], labels[rows], tiles[rows], cut)
        alone = _suppressed(*_joined(of_group, windows[rows]), iou)
        kept.append(_best(alone, max_per_class))
    if not kept:
        return boxes, scores, labels
    all_boxes = np.concatenate([one.xyxy for one in kept])
    all_scores = np.concatenate([one.scores for one in kept])
    all_labels = np.concatenate([one.labels for one in kept])
    order = np.argsort(-all_scores, kind="stable")[:limit]
    return all_boxes[order], all_scores[order], all_labels[order]


def _cut(
    boxes: NDArray[np.float64], windows: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(d, 4) bool: which sides end at an edge of their tile that is no edge of the image."""
    sides = windows[:, 2:] - windows[:, :2]
    near = np.maximum(_SEAM_PIXELS, _SEAM_SHARE * sides)
    height, width = size
    low = (boxes[:, :2] - windows[:, :2] < near) & (windows[:, :2] > 0)
    high = (windows[:, 2:] - boxes[:, 2:] < near) & (windows[:, 2:] < (width, height))
    return np.concatenate([low, high], axis=1)


def _joined(boxes: _Boxes, windows: NDArray[np.float64]) -> tuple[_Boxes, NDArray[np.float64]]:
    """Cut boxes that continue each other across seams as one box around them, and all windows."""
    cut = np.flatnonzero(boxes.is_cut)
    if len(cut) < 2:
        return boxes, windows
    group = np.arange(len(cut))
    # One pixel more, so that tiles without overlap meet.
    shown = windows[cut] + (-1, -1, 1, 1)
    grown = boxes.xyxy[cut] + (-1, -1, 1, 1)
    for i, j in _of_neighbours(boxes.tiles[cut], shown):
        strip = _within(shown[i[:1]], shown[j[:1]])
        mine, theirs = _within(grown[i], strip), _within(grown[j], strip)
        for first, second in zip(*np.nonzero(overlaps(mine, theirs) >= _CONTINUES), strict=True):
            group[group == group[j[second]]] = group[i[first]]
    names, members = np.unique(group, return_counts=True)
    several = names[members > 1]
    made = [cut[group == name] for name in several.tolist()]
    gone = np.zeros(len(boxes.scores), np.bool_)
    gone[cut[np.isin(group, several)]] = True
    rest = ~gone
    # The member that reaches furthest to each side: where it is cut, so is the box around all.
    outward = boxes.xyxy * (-1, -1, 1, 1)
    ends = [rows[outward[rows].argmax(axis=0)] for rows in made]
    sides = np.arange(4)
    hulls = [boxes.xyxy[furthest, sides] for furthest in ends]
    still_cut = [boxes.cut[furthest, sides] for furthest in ends]
    best = [rows[boxes.scores[rows].argmax()] for rows in made]
    joined = _Boxes(
        xyxy=np.concatenate([boxes.xyxy[rest], np.array(hulls).reshape(-1, 4)]),
        scores=np.concatenate([boxes.scores[rest], boxes.scores[best]]),
        labels=np.concatenate([boxes.labels[rest], boxes.labels[best]]),
        tiles=np.concatenate([boxes.tiles[rest], np.full(len(made), -1)]),
        cut=np.concatenate([boxes.cut[rest], np.array(still_cut, np.bool_).reshape(-1, 4)]),
    )
    return joined, np.concatenate([windows[rest], np.zeros((len(made), 4))])


def _suppressed(boxes: _Boxes, windows: NDArray[np.float64], iou: float) -> _Boxes:
    """Without boxes that a better one of another tile stands for; whole ones are better."""
    order = np.lexsort((-boxes.scores, boxes.is_cut))
    rank = np.argsort(order)
    areas = np.prod(np.maximum(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2], 0.0), axis=1)
    cut = boxes.is_cut
    found = []
    for i, j in _of_neighbours(boxes.tiles, windows):
        inter = intersections(boxes.xyxy[i], boxes.xyxy[j])
        at, to = np.nonzero(inter > 0)
        first, second, shared = i[at], j[to], inter[at, to]
        swap = rank[first] > rank[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        same = shared > iou * (areas[first] + areas[second] - shared)
        part = cut[second] & (shared >= _PART * areas[second])
        found.append(np.stack([first, second])[:, same | part])
    alive = np.ones(len(order), np.bool_)
    if found:
        pairs = np.concatenate(found, axis=1)
        for better, worse in pairs[:, np.argsort(rank[pairs[0]], kind="stable")].T.tolist():
            if alive[better]:
                alive[worse] = False
    return _rows(boxes, np.flatnonzero(alive))


def _best(boxes: _Boxes, count: int | None) -> _Boxes:
    """As many boxes of highest score, in the order they had; None for all."""
    return _rows(boxes, np.sort(np.argsort(-boxes.scores, kind="stable")[:count]))


def _rows(boxes: _Boxes, rows: NDArray[np.int64]) -> _Boxes:
    return _Boxes(
        boxes.xyxy[rows], boxes.scores[rows], boxes.labels[rows], boxes.tiles[rows], boxes.cut[rows]
    )


def _of_neighbours(
    tiles: NDArray[np.int64], windows: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of the boxes of two tiles, for all pairs of tiles that see a common part of the image.

    Boxes made of several, whose tile is -1, are neighbours of all, and each of the others.
    """
    order = np.argsort(tiles, kind="stable")
    names, starts = np.unique(tiles[order], return_index=True)
    rows_of = np.split(order, starts[1:])
    if len(names) and names[0] < 0:
        several, rows_of, starts = rows_of[0], rows_of[1:], starts[1:]
        for place, row in enumerate(several.tolist()):
            others = np.concatenate([several[place + 1 :], *rows_of])
            yield np.array([row]), others
    seen = windows[order[starts]]
    for place, rows in enumerate(rows_of):
        low = np.maximum(seen[place, :2], seen[place + 1 :, :2])
        high = np.minimum(seen[place, 2:], seen[place + 1 :, 2:])
        for other in np.flatnonzero((high > low).all(axis=1)).tolist():
            yield rows, rows_of[place + 1 + other]


def _within(boxes: NDArray[np.float64], strip: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, 4) parts of boxes in a strip; where there is none, its sides are not positive."""
    return np.concatenate(
        [np.maximum(boxes[:, :2], strip[:, :2]), np.minimum(boxes[:, 2:], strip[:, 2:])], axis=1
    )


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, l) IoU; 0 where one is empty."""
    inter = intersections(a, b)
    areas = [np.prod(np.maximum(one[:, 2:] - one[:, :2], 0.0), axis=1) for one in (a, b)]
    union = areas[0][:, None] + areas[1][None] - inter
    there = (union > 0) & (inter > 0)
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=there))


def intersections(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, l) common areas."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    return np.asarray(np.maximum(width, 0.0) * np.maximum(height, 0.0))
