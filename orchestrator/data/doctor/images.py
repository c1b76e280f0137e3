"""Looking at every image file, many at a time: is it sound, and is it there twice."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import (
    BadImageError,
    Header,
    deep_values,
    naming_image,
    other_size,
    require_decodable,
    require_sound,
    used_levels,
)
from orchestrator.data.images import image_bytes, image_exists, image_header, image_name
from orchestrator.data.orientation import UPRIGHT

#: Called with the number of images seen so far.
Progress = Callable[[int], None]
Kind = Literal["missing_image", "unreadable_image", "wrong_size_image"]

#: Bits in which two images that look alike may differ, of 64. At most this many, and at least one
#: of four groups of 16 bits is the same, which makes looking for them fast.
LOOK_DISTANCE = 3
_GROUPS, _GROUP_BITS = 4, 16
#: Grey levels that an image must span to be told from others by its look.
_MIN_CONTRAST = 16
#: Above it, only equal looks are looked for in a group: pictures of almost nothing.
_MAX_GROUP = 500
_THREADS = 16


@dataclass(frozen=True)
class ImageFacts:
    """What is known of one image file.

    Attributes:
        index: of the image in its data set.
        kind: what is wrong; None for a sound image.
        problem: the same in words.
        content: SHA-256 of the file; empty where only the header was read.
        look: difference hash of 64 bits; None where it would say nothing.
        tag: of its orientation.
        deep: whether its values have more than 8 bits.
        levels: values of such an image between which almost all of it lies; None where it was not
            decoded.
    """

    index: int
    kind: Kind | None = None
    problem: str = ""
    content: str = ""
    look: int | None = None
    tag: int = UPRIGHT
    deep: bool = False
    levels: tuple[float, float] | None = None


def scan(
    data: Dataset,
    indices: Sequence[int],
    *,
    whole: bool,
    progress: Progress = lambda seen: None,
) -> list[ImageFacts]:
    """Look at image files.

    Args:
        data: that the images belong to.
        indices: of the images to look at.
        whole: read whole files and hash them, instead of headers alone.
        progress: called after every image.
    """
    look = _whole if whole else _header
    facts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for seen, one in enumerate(pool.map(lambda index: look(data, index), indices), start=1):
            facts.append(one)
            progress(seen)
    return facts


def _declared(data: Dataset, index: int) -> tuple[int, int]:
    return int(data.heights[index]), int(data.widths[index])


def _header(data: Dataset, index: int) -> ImageFacts:
    try:
        header = image_header(data, index)
        with naming_image(image_name(data, index)):
            require_decodable(header, data.decoding)
    except BadImageError as error:
        return _bad(data, index, str(error))
    return _sized(data, index, header)


def _bad(data: Dataset, index: int, problem: str) -> ImageFacts:
    kind: Kind = "unreadable_image" if image_exists(data, index) else "missing_image"
    return ImageFacts(index, kind, problem)


def _sized(data: Dataset, index: int, header: Header) -> ImageFacts:
    problem = other_size(header, _declared(data, index), data.decoding.orientation)
    if not problem:
        return ImageFacts(index, tag=header.tag, deep=header.deep)
    place = image_name(data, index)
    return ImageFacts(index, "wrong_size_image", f"{place}: {problem}", tag=header.tag)


def levels_of(content: bytes, *, max_pixels: int | None = None) -> tuple[float, float] | None:
    """Between which values almost all of an image lies; None for one of 8 bits.

    Args:
        content: of the file.
        max_pixels: as of :func:`~orchestrator.data.decode.deep_values`.

    Raises:
        BadImageError: it cannot be decoded.
    """
    values = deep_values(content, max_pixels=max_pixels)
    return None if values is None else used_levels(values)


def _whole(data: Dataset, index: int) -> ImageFacts:
    try:
        content = image_bytes(data, index)
    except BadImageError as error:
        return _bad(data, index, str(error))
    try:
        sized = _sized(data, index, require_sound(content, decoding=data.decoding))
        if sized.kind is not None:
            return sized
        look = look_of(content)
        levels = levels_of(content, max_pixels=data.decoding.max_pixels) if sized.deep else None
    except BadImageError as error:
        return _bad(data, index, f"{image_name(data, index)}: {error}")
    digest = hashlib.sha256(content).hexdigest()
    return replace(sized, content=digest, look=look, levels=levels)


def look_of(content: bytes) -> int | None:
    """The difference hash of an image: is each of 9 by 8 means brighter than its right neighbour.

    Source: Neal Krawetz, "Kind of Like That", hackerfactor.com, 2013. It survives other
    compression and another size.

    Returns:
        64 bits; None for an image that is almost of one grey.

    Raises:
        BadImageError: it cannot be decoded.
    """
    flags = cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        grey = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise BadImageError(f"cannot be decoded ({error.err})") from error
    if grey is None:
        raise BadImageError("cannot be decoded; the file is truncated or damaged")
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    if int(small.max()) - int(small.min()) < _MIN_CONTRAST:
        return None
    bits = np.packbits(small[:, :-1] > small[:, 1:])
    return int.from_bytes(bits.tobytes(), "big")


def equal_files(facts: Sequence[ImageFacts]) -> list[list[int]]:
    """Positions in ``facts`` of each group of files with the same bytes."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position, one in enumerate(facts):
        if one.content:
            groups[one.content].append(position)
    return [group for group in groups.values() if len(group) > 1]


def alike(facts: Sequence[ImageFacts]) -> list[tuple[int, int]]:
    """Pairs of positions in ``facts`` whose files differ, but not in their look."""
    positions = [i for i, one in enumerate(facts) if one.look is not None]
    looks = np.array([facts[i].look for i in positions], dtype=np.uint64)
    pairs = {
        (positions[a], positions[b])
        for a, b in _close(looks)
        if facts[positions[a]].content != facts[positions[b]].content
    }
    return sorted(pairs)


def _close(looks: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of rows, the first before the second, that differ in few bits; some of them twice."""
    for group in range(_GROUPS):
        shift = np.uint64(group * _GROUP_BITS)
        keys = (looks >> shift) & np.uint64((1 << _GROUP_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[order])) + 1
        for rows in np.split(order, cuts):
            yield from _close_within(rows.tolist(), looks)


def _close_within(rows: list[int], looks: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    if len(rows) > _MAX_GROUP:
        rows = sorted(rows, key=lambda row: (int(looks[row]), row))
        candidates: Iterable[tuple[int, int]] = pairwise(rows)
    else:
        candidates = combinations(rows, 2)
    for a, b in candidates:
        if (int(looks[a]) ^ int(looks[b])).bit_count() <= LOOK_DISTANCE:
            yield min(a, b), max(a, b)
