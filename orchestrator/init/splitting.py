"""Images to learn from and images to evaluate on, where a data set has no such parts.

The split is a function of seed and annotations, every class is shared out in the same proportion,
and images that are the same or look the same stay together. Pictures of one fixed camera all look
the same: where keeping such a group whole would leave the parts far from their shares, it is cut
into runs of consecutive files.

Source of the rule: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data",
ECML PKDD 2011, figure 1, with two parts and groups of images in place of single ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, words
from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.images import alike, equal_files, scan
from orchestrator.errors import DataError


class Parts(NamedTuple):
    """A data set in two parts.

    Attributes:
        train: images to learn from.
        val: images to evaluate on.
        cut: images of groups that look the same and lie in both parts all the same.
    """

    train: Dataset
    val: Dataset
    cut: int


def split(
    data: Dataset,
    *,
    share: float,
    seed: int,
    progress: Callable[[int], None] = lambda seen: None,
) -> Parts:
    """The images to learn from and those to evaluate on.

    Args:
        data: all images.
        share: of the second part, between 0 and 1.
        seed: another one gives another split.
        progress: told how many images have been looked at.

    Raises:
        DataError: there are no two groups of images with boxes.
    """
    copies, groups = groups_of(data, progress)
    has = _classes_of_images(data)
    wanted, smaller = share * len(data), min(share, 1.0 - share) * len(data)
    runs = cut_into_runs(data, groups, copies, most=smaller / 2)
    second: list[int] = []
    try:
        second = stratified(groups, has, share=share, seed=seed)
    except DataError:
        if runs == groups:
            raise
    found, cut = sum(len(groups[group]) for group in second), 0
    if abs(found - wanted) >= smaller / 2 and runs != groups:
        whole = set(map(tuple, runs))
        cut = sum(len(group) for group in groups if tuple(group) not in whole)
        groups, second = runs, stratified(runs, has, share=share, seed=seed)
    chosen = np.zeros(len(data), dtype=bool)
    chosen[[image for group in second for image in groups[group]]] = True
    return Parts(take(data, np.flatnonzero(~chosen)), take(data, np.flatnonzero(chosen)), cut)


def groups_of(
    data: Dataset, progress: Callable[[int], None]
) -> tuple[list[list[int]], list[list[int]]]:
    """Images with the same bytes, and images that also look the same, in the order of the first."""
    facts = scan(data, range(len(data)), whole=True, progress=progress)
    equal = [(group[0], other) for group in equal_files(facts) for other in group[1:]]
    return _joined(len(data), equal), _joined(len(data), [*equal, *alike(facts)])


def _joined(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of ``count`` images that pairs of them make."""
    first = list(range(count))

    def root(image: int) -> int:
        while first[image] != image:
            image = first[image]
        return image

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        first[high] = low
    groups: dict[int, list[int]] = {}
    for image in range(count):
        groups.setdefault(root(image), []).append(image)
    return list(groups.values())


def cut_into_runs(
    data: Dataset,
    groups: Sequence[list[int]],
    copies: Sequence[list[int]],
    *,
    most: float,
) -> list[list[int]]:
    """``groups`` with those of more than ``most`` images cut into runs by the names of their files.

    Args:
        data: all images.
        groups: of images that look the same.
        copies: of images with the same bytes, which are parts of those and are not cut.
        most: images of a run, where copies allow it.
    """
    together = {image: group for group in copies for image in group}
    runs: list[list[int]] = []
    for group in groups:
        parts = {together[image][0]: together[image] for image in group}
        if len(group) <= most or len(parts) == 1:
            runs.append(group)
            continue
        run: list[int] = []
        for first in sorted(parts, key=lambda image: _by_number(data.files[image])):
            if run and len(run) + len(parts[first]) > most:
                runs.append(run)
                run = []
            run = [*run, *parts[first]]
        runs.append(run)
    return runs


def _by_number(name: str) -> list[str | int]:
    """What sorts ``frame9`` before ``frame10``: text and numbers in turns."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


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
    # Large groups first: small ones make up for what these bring too much.
    order = np.lexsort((words(seed, Domain.SPLIT, count=len(groups)), -sizes))
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
            off = np.abs(sizes[others] - shares[lacking] * sizes.sum())
            part[others[np.argmin(off)]] = lacking
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
