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
from orchestrator.data.images import image_header, image_pixels
from orchestrator.data.orientation import UPRIGHT, Orientation, swaps_sides, turned

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
#: Formats whose annotations say of what size an image is; of others its header does.
_SIZED = ("coco", "voc")


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


def tagged(
    data: Dataset,
    facts: Sequence[ImageFacts],
    *,
    kind: str,
    change: str = "set data.orientation={}",
) -> Finding | None:
    """Images with an orientation tag, and which of the two orientations their boxes fit.

    Args:
        data: the split.
        facts: of its images.
        kind: format of the annotations that were read.
        change: what makes boxes be of the other orientation, whose name takes the place of ``{}``.
    """
    found = [one for one in facts if one.kind is None and one.tag != UPRIGHT]
    if not found:
        return None
    now = data.decoding.orientation
    other: Orientation = "displayed" if now == "stored" else "stored"
    words = [
        f"of {len(facts)} images are to be turned when they are displayed; boxes are taken to be "
        f"of the pixels as {now}"
    ]
    better, size_tells = _better_fit(data, found, kind), _size_tells(data, found, kind)
    if better == now:
        words.append("which is where they fit")
    elif better is None and size_tells:
        words.append("to which the annotated sizes belong")
    elif better is None and now == "displayed":
        words.append("as labelling tools mostly show them")
    elif better is None:
        words.append(
            "labelling tools mostly show pictures upright; look at `check --page`, and where boxes "
            f"do not fit their objects, {change.format(other)}"
        )
    elif size_tells:
        words.append(
            f"but they fit the picture as {other}, although the annotated sizes are those as {now}:"
            " the tool that wrote the sizes overlooked the tags. Have it, or `orchestrator convert "
            f"data --orientation {other}`, make these annotations again from those they were "
            "made of"
        )
    else:
        words.append(f"but they fit the picture as {other}: {change.format(other)}")
    places = [f"{data.files[one.index]}: tag {one.tag}" for one in found]
    note = WRONG_ORIENTATION if better == other else "orientation_tag"
    return Finding.at(note, ", ".join(words), places)


def orientation_of(data: Dataset, facts: Sequence[ImageFacts], *, kind: str) -> Orientation | None:
    """The orientation in which the images that have a tag fit their annotations.

    Args:
        data: as it is read when boxes are taken to be of the pixels as stored.
        facts: of its images.
        kind: format of the annotations that were read.

    Returns:
        None where no image has a tag, or nothing tells.
    """
    found = [one for one in facts if one.tag != UPRIGHT]
    sound = [one for one in found if one.kind is None]
    turned_fit = [
        image_header(data, one.index).size("displayed")
        == (int(data.heights[one.index]), int(data.widths[one.index]))
        for one in found
        if one.kind == "wrong_size_image"
    ]
    better = _better_fit(data, sound, kind)
    if _size_tells(data, sound, kind):
        # Read as displayed, these would be images of another size than annotated.
        return "stored" if better != "displayed" and not any(turned_fit) else None
    return "displayed" if any(turned_fit) else better


def _size_tells(data: Dataset, found: Sequence[ImageFacts], kind: str) -> bool:
    """Whether the annotations themselves have sizes that fit images in one orientation alone."""
    sized = kind in _SIZED or data.shards is not None
    return sized and any(
        swaps_sides(one.tag) and data.widths[one.index] != data.heights[one.index] for one in found
    )


def _better_fit(data: Dataset, found: Sequence[ImageFacts], kind: str) -> Orientation | None:
    """The orientation whose pixels differ more between the inside of boxes and around them.

    Annotated sizes alone do not say it: a tool that reads them from headers may overlook the tags,
    and multiply fractions of the picture that was seen by them.
    """
    if not found:
        return None
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, _COMPARED).astype(int))]
    as_stored = replace(data, decoding=replace(STORED, levels=data.decoding.levels))
    # Where only a header says the size, boxes may be pixels of a picture of another.
    in_pixels = kind not in (*_SIZED, "yolo") and data.shards is None
    fractions, pixels = ({"stored": 0.0, "displayed": 0.0} for _ in range(2))
    boxes_seen = 0
    for one in chosen:
        try:
            stored = image_pixels(as_stored, one.index, declared=False)
        except BadImageError:
            continue
        boxes = data.boxes_xywh[data.boxes_of(one.index)]
        declared = np.array([data.widths[one.index], data.heights[one.index]] * 2, float)
        for name, image in (("stored", stored), ("displayed", turned(stored, one.tag))):
            size = np.array([image.shape[1], image.shape[0]] * 2, float)
            fractions[name] += sum(_contrast(image, box) for box in boxes / declared * size)
            if in_pixels:
                pixels[name] += sum(_contrast(image, box) for box in boxes)
        boxes_seen += len(boxes)
    if boxes_seen < _ENOUGH_BOXES:
        return None
    stored_fit, displayed_fit = (max(fractions[name], pixels[name]) for name in fractions)
    if stored_fit > _BETTER * displayed_fit:
        return "stored"
    return "displayed" if displayed_fit > _BETTER * stored_fit else None


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
