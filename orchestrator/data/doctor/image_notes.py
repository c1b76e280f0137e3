"""What sound images have about them that makes a run mean something else than was meant."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import STORED, BadImageError
from orchestrator.data.doctor.images import ImageFacts
from orchestrator.data.findings import Finding
from orchestrator.data.images import image_pixels
from orchestrator.data.orientation import UPRIGHT, swaps_sides, turned

#: Detections of a class in an image that COCO counts.
COUNTED = 100
#: Grey levels, of 256, below which images of more than 8 bits are worth a word; and below which
#: there is nothing to learn from.
FEW_LEVELS, NO_LEVELS = 64, 8
#: Kind of the finding for boxes that fit the pictures turned otherwise.
WRONG_ORIENTATION = "wrong_orientation"
#: Tagged images whose pixels are compared with their boxes.
_COMPARED = 24
#: How many times better boxes must fit one orientation than the other.
_BETTER = 1.5
_ENOUGH_BOXES = 8


def alike_classes(data: Dataset) -> Finding | None:
    """Classes whose names people cannot tell apart: in capitals, blanks or composed letters alone.

    Annotators who write one class in two ways make two classes, each with a part of the boxes.
    """
    names: dict[str, list[str]] = {}
    for name in data.label_map.names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        kept = (letter for letter in plain if unicodedata.category(letter)[0] not in "CZ")
        names.setdefault("".join(kept).replace("_", "").replace("-", ""), []).append(name)
    alike = [" and ".join(map(ascii, group)) for group in names.values() if len(group) > 1]
    if not alike:
        return None
    action = "kept as classes of their own; if they are one, give them one name in the annotations"
    return Finding.at("alike_classes", action, alike)


def crowded(data: Dataset) -> Finding | None:
    """Images with more boxes of a class than COCO counts detections."""
    image = np.arange(len(data)).repeat(np.diff(data.offsets))
    real = ~data.crowd
    keys = image[real] * len(data.label_map) + data.labels[real]
    pairs, counts = np.unique(keys, return_counts=True)
    over = counts > COUNTED
    if not over.any():
        return None
    labels = pairs % len(data.label_map)
    ceilings = []
    for label in np.unique(labels).tolist():
        of_class = counts[labels == label]
        recall = float(np.minimum(of_class, COUNTED).sum() / of_class.sum())
        # COCO reads precision at the recalls 0.00, 0.01 ... 1.00.
        ceilings.append(float((np.linspace(0, 1, 101) <= recall).mean()))
    places = [
        f"{data.files[int(pair) // len(data.label_map)]}: {count} of "
        f"{data.label_map.names[int(pair) % len(data.label_map)]}"
        for pair, count in zip(pairs[over], counts[over], strict=True)
    ]
    action = (
        f"used as they are; COCO's numbers count the {COUNTED} best detections of a class in an "
        f"image, so that even perfect ones get AP {np.mean(ceilings):.4f}. "
        "`evaluate --max-detections N` gives AP and AR at another limit beside them"
    )
    return Finding.at("crowded_image", action, places)


def tagged(data: Dataset, facts: Sequence[ImageFacts], *, fractions: bool) -> Finding | None:
    """Images with an orientation tag, and which of the two orientations their boxes fit.

    Args:
        data: the split.
        facts: of its sound images.
        fractions: whether boxes were annotated as fractions of the image.
    """
    found = [one for one in facts if one.kind is None and one.tag != UPRIGHT]
    if not found:
        return None
    now = data.decoding.orientation
    other = "displayed" if now == "stored" else "stored"
    words = [
        f"of {len(facts)} images are to be turned when they are displayed; boxes are taken to be "
        f"of the pixels as {now}"
    ]
    better = _better_fit(data, found, fractions=fractions)
    if better is None:
        words.append(
            "labelling tools mostly show pictures upright; look at `check --page`, and where boxes "
            f"do not fit their objects, set data.orientation={other}"
        )
    elif better == now:
        words.append("which is where they fit")
    else:
        words.append(f"but they fit the picture as {other}: set data.orientation={other}")
    places = [f"{data.files[one.index]}: tag {one.tag}" for one in found]
    kind = WRONG_ORIENTATION if better == other else "orientation_tag"
    return Finding.at(kind, ", ".join(words), places)


def _better_fit(data: Dataset, found: Sequence[ImageFacts], *, fractions: bool) -> str | None:
    """The orientation whose pixels differ more between the inside of boxes and around them."""
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, _COMPARED).astype(int))]
    as_stored = replace(data, decoding=replace(STORED, levels=data.decoding.levels))
    sums = {"stored": 0.0, "displayed": 0.0}
    boxes_seen = sized = 0
    for one in chosen:
        rows = data.boxes_of(one.index)
        try:
            stored = image_pixels(as_stored, one.index, declared=False)
        except BadImageError:
            continue
        boxes = data.boxes_xywh[rows]
        declared = np.array([data.widths[one.index], data.heights[one.index]] * 2, float)
        if swaps_sides(one.tag) and not fractions and stored.shape[0] != stored.shape[1]:
            # The annotated size says which it is, and was compared already.
            sized += 1
            continue
        for name, image in (("stored", stored), ("displayed", turned(stored, one.tag))):
            size = np.array([image.shape[1], image.shape[0]] * 2, float)
            sums[name] += sum(_contrast(image, box) for box in boxes / declared * size)
        boxes_seen += len(boxes)
    if sized == len(chosen):
        return data.decoding.orientation
    if boxes_seen < _ENOUGH_BOXES:
        return None
    worse, best = sorted(sums, key=lambda name: sums[name])
    return best if sums[best] > _BETTER * sums[worse] else None


def _contrast(image: NDArray[np.uint8], xywh: NDArray[np.float64]) -> float:
    """Difference of the mean colours inside a box and in a ring of a quarter of its sides."""
    x, y, w, h = xywh.tolist()
    height, width = image.shape[:2]

    def part(margin: float) -> NDArray[np.uint8]:
        left, top = (max(0, round(at - margin * side)) for at, side in ((x, w), (y, h)))
        right, bottom = (
            min(end, round(at + (1 + margin) * side))
            for at, side, end in ((x, w, width), (y, h, height))
        )
        return image[top:bottom, left:right].reshape(-1, 3)

    inside, around = part(0.0), part(0.25)
    if not len(inside) or len(around) <= len(inside):
        return 0.0
    total, inner = around.sum(axis=0, dtype=np.float64), inside.sum(axis=0, dtype=np.float64)
    ring = (total - inner) / (len(around) - len(inside))
    return float(np.abs(inner / len(inside) - ring).mean())


def few_levels(data: Dataset, facts: Sequence[ImageFacts]) -> tuple[Finding, bool] | None:
    """Images of more than 8 bits that become almost one grey, and whether that is too few."""
    if data.decoding.levels != "full":
        return None
    deep = [(one, *one.levels) for one in facts if one.levels is not None]
    flat = [(one, low, high) for one, low, high in deep if (high - low) / 256 < FEW_LEVELS]
    if not flat:
        return None
    left = float(np.median([(high - low) / 256 for _, low, high in flat]))
    low = math.floor(min(low for _, low, _ in flat))
    high = math.ceil(max(high for _, _, high in flat))
    action = (
        f"of {len(deep)} images of more than 8 bits use little of their range: about "
        f"{max(1, round(left))} of 256 grey levels are left of them. "
        f"data.levels=[{low},{high}] makes the range of all of them black to white, "
        "data.levels=used that of each, and "
        "data.levels=[0,65535] keeps it as it is"
    )
    places = [f"{data.files[one.index]}: {low:g} to {high:g}" for one, low, high in flat]
    return Finding.at("few_grey_levels", action, places), left < NO_LEVELS
