"""The one record type behind every annotation format.

A :class:`Dataset` holds all annotations of one split in a few flat NumPy arrays rather than a
Python object per box: it is placed once per node in shared memory, and sixteen readers cost what
one costs.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.bucket_images import BucketImages
from orchestrator.data.columns import with_columns
from orchestrator.data.decode import STORED, Decoding
from orchestrator.data.decoded_cache import DecodedCache
from orchestrator.data.label_map import LabelMap
from orchestrator.data.sharded_images import ShardedImages
from orchestrator.data.string_column import Names

_PIECE_ROWS = 1 << 18


@dataclass(frozen=True)
class Tiling:
    """Which part of which image each image of a tiled data set is.

    Attributes:
        images: (n,) int64 index of the whole image.
        image_ids: (n,) int64 its id.
        windows: (n, 4) int32 ``left, top, right, bottom`` there.
        sizes: (n, 2) int32 its height and width.
    """

    images: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    windows: NDArray[np.int32]
    sizes: NDArray[np.int32]


@dataclass(frozen=True)
class Dataset:
    """One split: its images in a fixed order and their boxes.

    Shape legend: n images, m boxes. Boxes of image ``i`` are rows
    ``offsets[i]:offsets[i + 1]`` of the box arrays.

    Attributes:
        label_map: classes of the data set.
        root: absolute folder the image files lie under; the location of the shards where
            ``shards`` is given.
        files: n file names relative to ``root``, as a
            :class:`~orchestrator.data.string_column.Names`.
        image_ids: (n,) int64 data-set ids, unique.
        widths, heights: (n,) int32 pixels, as declared by the annotation file.
        offsets: (n + 1,) int64.
        boxes_xywh: (m, 4) float64 ``x, y, width, height`` exactly as annotated: what evaluation
            scores against.
        labels: (m,) int64 contiguous labels.
        areas: (m,) float64 annotated area in square pixels (segment area in COCO).
        crowd: (m,) bool; crowd boxes are ignored by matching and treated as COCO does in
            evaluation.
        shards: holds the images, where they are no files.
        bucket: has the image files, where they are in no folder.
        decoding: how image files become pixels, in whose space the boxes are.
        parts: first image and absolute folder of each part whose files lie elsewhere, in order.
        tiling: what part of which image each one is, where images are tiles of others.
        decoded: keeps decoded images on the node; None for nothing kept.
    """

    label_map: LabelMap
    root: str
    files: Sequence[str]
    image_ids: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    shards: ShardedImages | None = None
    bucket: BucketImages | None = None
    decoding: Decoding = STORED
    parts: tuple[tuple[int, str], ...] = ()
    tiling: Tiling | None = None
    decoded: DecodedCache | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", Names.of(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def __getstate__(self) -> dict[str, Any]:
        """Columns of a manifest beside shards are not sent, but their places."""
        state = dict(self.__dict__)
        manifest = None if self.shards is None else self.shards.manifest
        return state if manifest is None else manifest.without_columns(state)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(with_columns(state))

    def path(self, index: int) -> Path:
        """Absolute path of image ``index``."""
        root = next((root for first, root in reversed(self.parts) if index >= first), self.root)
        return Path(root) / self.files[index]

    @property
    def in_folder(self) -> bool:
        """Whether the images are files that this machine can open."""
        return self.shards is None and self.bucket is None

    def stored_index(self, index: int) -> int:
        """Which image, as stored, image ``index`` is or is a tile of."""
        return index if self.tiling is None else int(self.tiling.images[index])

    def boxes_of(self, index: int) -> slice:
        """Rows of the box arrays that belong to image ``index``."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def training_boxes(
        self, index: int, *, with_crowd: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Boxes to learn from, clipped to the image.

        Args:
            index: position of the image in this data set.
            with_crowd: keep crowd boxes (the MindSpore SSD seed does).

        Returns:
            (k, 4) float32 xyxy in original pixels, each with positive area, and (k,) int64 labels.
        """
        rows = self.boxes_of(index)
        xywh = self.boxes_xywh[rows]
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        width, height = float(self.widths[index]), float(self.heights[index])
        np.maximum(xyxy, 0.0, out=xyxy)
        np.minimum(xyxy, (width, height, width, height), out=xyxy)
        keep = (xyxy[:, 2] > xyxy[:, 0]) & (xyxy[:, 3] > xyxy[:, 1])
        if not with_crowd:
            keep &= ~self.crowd[rows]
        return xyxy[keep].astype(np.float32), self.labels[rows][keep]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over labels, file names, ids, sizes and boxes: equal data, equal digest.

        The folder is left out, so that the same data set at another place keeps its identity.
        """
        sha = hashlib.sha256()
        sha.update(self.label_map.to_json().encode())
        files = Names.of(self.files)
        for rows in _pieces(len(self)):
            sha.update(b"\0" * (rows.start > 0) + files.joined(rows, b"\0"))
        _update(sha, self.image_ids, "<i8")
        _update(sha, self.widths, "<i4")
        _update(sha, self.heights, "<i4")
        _update(sha, self.offsets, "<i8")
        _update(sha, self.boxes_xywh, "<f8")
        _update(sha, self.labels, "<i8")
        _update(sha, self.areas, "<f8")
        _update(sha, self.crowd, "|b1")
        return sha.hexdigest()

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 over class names, images, boxes and labels, whatever format they came in.

        Left out is what some formats do not hold: ids of images and classes, and areas other than
        width times height. ``sub/../a.jpg`` is the same file as ``a.jpg``.
        """
        sha = hashlib.sha256()
        sha.update("\n".join(self.label_map.names).encode())
        for rows in _pieces(len(self)):
            names = "\0".join(posixpath.normpath(file) for file in self.files[rows])
            # A name that is no text has its own bytes.
            sha.update(b"\0" * (rows.start > 0) + names.encode("utf-8", "surrogateescape"))
        _update(sha, self.widths, "<i4")
        _update(sha, self.heights, "<i4")
        _update(sha, self.offsets, "<i8")
        _update(sha, self.boxes_xywh, "<f8", plus=0.0)  # -0.0 is 0.0
        _update(sha, self.labels, "<i8")
        _update(sha, self.crowd, "|b1")
        return sha.hexdigest()


def _pieces(count: int) -> Iterator[slice]:
    """Rows that are worked on at a time, so that no copy of all is made."""
    for first in range(0, count, _PIECE_ROWS):
        yield slice(first, min(first + _PIECE_ROWS, count))


def _update(sha: Any, array: NDArray[Any], dtype: str, *, plus: float | None = None) -> None:
    """Update a digest by the bytes of an array."""
    for rows in _pieces(len(array)):
        values = array[rows] if plus is None else array[rows] + plus
        sha.update(np.ascontiguousarray(values, dtype=dtype).reshape(-1))
