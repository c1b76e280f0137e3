"""Images to learn from and images to evaluate on, where a data set has no such parts.

The split is a function of seed and annotations, every class is shared out in the same proportion,
and images that are the same or look the same stay together.

Source of the rule: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data",
ECML PKDD 2011, figure 1, with two parts and groups of images in place of single ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, words
from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.images import alike, equal_files, scan
from orchestrator.errors import DataError


def split(
    data: Dataset,
    *,
    share: float,
    seed: int,
    progress: Callable[[int], None] = lambda seen: None,
) -> tuple[Dataset, Dataset]:
    """The images to learn from and those to evaluate on.

    Args:
        data: all images.
        share: of the second part, between 0 and 1.
        seed: another one gives another split.
        progress: told how many images have been looked at.

    Raises:
        DataError: there are no two groups of images with boxes.
    """
    groups = groups_of(data, progress)
    second = stratified(groups, _classes_of_images(data), share=share, seed=seed)
    chosen = np.zeros(len(data), dtype=bool)
    chosen[[image for group in second for image in groups[group]]] = True
    return take(data, np.flatnonzero(~chosen)), take(data, np.flatnonzero(chosen))


def groups_of(data: Dataset, progress: Callable[[int], None]) -> list[list[int]]:
    """Images that belong together, in the order of their first ones."""
    facts = scan(data, range(len(data)), whole=True, progress=progress)
    first = list(range(len(data)))

    def root(image: int) -> int:
        while first[image] != image:
            image = first[image]
        return image

    equal = [(group[0], other) for group in equal_files(facts) for other in group[1:]]
    for one, other in [*equal, *alike(facts)]:
        low, high = sorted((root(one), root(other)))
        first[high] = low
    groups: dict[int, list[int]] = {}
    for image in range(len(data)):
        groups.setdefault(root(image), []).append(image)
    return list(groups.values())


def _classes_of_images(data: Dataset) -> NDArray[np.int64]:
    """(n, K + 1) 0 or 1: which classes are in an image; the last is that of empty images."""
    has = np.zeros((len(data), len(data.label_map) + 1), dtype=np.int64)
    image = np.arange(len(data)).repeat(np.diff(data.offsets))
    has[image[~data.crowd], data.labels[~data.crowd]] = 1
    has[:, -1] = ~has.any(axis=1)
    return has


def stratified(
    groups: Sequence[Sequence[int]], has: NDArray[np.int64], *, share: float, seed: int
) -> list[int]:
    """Positions of the groups that make up the second part.

    Args:
        groups: images of each group.
        has: (n, K + 1) 0 or 1, whether an image shows a class; the last column is of empty ones.
        share: of the second part.
        seed: decides the order in which groups are dealt out.

    Raises:
        DataError: one of the parts would have no boxes.
    """
    counts = np.array([has[list(group)].sum(axis=0) for group in groups]).reshape(len(groups), -1)
    sizes = np.array([len(group) for group in groups])
    order = np.argsort(words(seed, Domain.SPLIT, count=len(groups)), kind="stable")
    shares = np.array([1.0 - share, share])
    wanted = shares[:, None] * counts.sum(axis=0)
    room = shares * sizes.sum()
    left = np.ones(len(groups), dtype=bool)
    part = np.zeros(len(groups), dtype=np.int64)
    while left.any():
        remaining = counts[left].sum(axis=0)
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.iinfo(np.int64).max)))
        for group in order[left[order] & (counts[order, rarest] > 0)].tolist():
            # Who lacks most of the class gets it; among equals, who lacks most images.
            to = int(np.lexsort((-room, -wanted[:, rarest].round(9)))[0])
            part[group] = to
            left[group] = False
            wanted[to] -= counts[group]
            room[to] -= sizes[group]
    boxed = counts[:, :-1].sum(axis=1) > 0
    for lacking in (1, 0):
        others = order[boxed[order] & (part[order] != lacking)]
        if not (boxed & (part == lacking)).any() and len(others) > 1:
            part[others[-1]] = lacking
    if any(not (boxed & (part == one)).any() for one in (0, 1)):
        raise DataError(
            f"{int(sizes[boxed].sum())} images with boxes, in {int(boxed.sum())} groups that look "
            "alike: too few to learn from some and evaluate on others\nNext: annotate more images"
        )
    return [int(group) for group in np.flatnonzero(part == 1)]


def take(data: Dataset, images: NDArray[np.int64]) -> Dataset:
    """The data set of some images, in the order given."""
    rows = [np.arange(*data.boxes_of(int(image)).indices(len(data.labels))) for image in images]
    counts = np.array([len(some) for some in rows], dtype=np.int64)
    kept = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    return replace(
        data,
        files=[data.files[int(image)] for image in images],
        image_ids=data.image_ids[images],
        widths=data.widths[images],
        heights=data.heights[images],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=data.boxes_xywh[kept],
        labels=data.labels[kept],
        areas=data.areas[kept],
        crowd=data.crowd[kept],
    )
