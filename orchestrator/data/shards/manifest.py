"""``manifest.arrow``: everything about a split but its pixels, in columns to be mapped as they are.

It lies beside shards, which add where each image is stored, and in the cache of whoever keeps what
annotation files said, :mod:`orchestrator.data.readers.annotation_cache`. One record batch, no
compression: a reader maps it into memory and copies nothing but the flags, which Arrow packs into
bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.sharded_images import ShardedImages
from orchestrator.data.string_column import Names
from orchestrator.errors import DataError
from orchestrator.storage.folders import Folder, storage_errors

MANIFEST = "manifest.arrow"

#: Columns that shards and manifest share.
ROW_FIELDS = (
    pa.field("file", pa.string(), nullable=False),
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("boxes", pa.list_(pa.list_(pa.float64(), 4)), nullable=False),
    pa.field("labels", pa.list_(pa.int64()), nullable=False),
    pa.field("areas", pa.list_(pa.float64()), nullable=False),
    pa.field("crowd", pa.list_(pa.bool_()), nullable=False),
)


def columns(data: Dataset, rows: slice) -> list[pa.Array]:
    """The columns of ``ROW_FIELDS`` for some images.

    Raises:
        DataError: a file name is no text.
    """
    first, last = int(data.offsets[rows.start]), int(data.offsets[rows.stop])
    offsets = pa.array((data.offsets[rows.start : rows.stop + 1] - first).astype(np.int32))

    def ragged(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    boxes = pa.array(data.boxes_xywh[first:last].ravel())
    try:
        files = pa.array(list(data.files[rows]), pa.string())
    except UnicodeEncodeError as error:
        raise DataError(
            f"{data.root}: the file name {error.object!r} is no text, and Parquet and Arrow hold "
            "nothing else\nrename this image, in the annotations as well"
        ) from error
    return [
        files,
        pa.array(data.image_ids[rows]),
        pa.array(data.widths[rows]),
        pa.array(data.heights[rows]),
        ragged(pa.FixedSizeListArray.from_arrays(boxes, 4)),
        ragged(pa.array(data.labels[first:last])),
        ragged(pa.array(data.areas[first:last])),
        ragged(pa.array(data.crowd[first:last])),
    ]


def encode(
    data: Dataset,
    more: Iterable[tuple[pa.Field, pa.Array]] = (),
    notes: Mapping[str, str] | None = None,
) -> pa.Buffer:
    """The file: equal data, equal bytes.

    Args:
        data: the split.
        more: further columns, a value an image.
        notes: kept beside the columns.

    Raises:
        DataError: a file name is no text.
    """
    pairs = list(more)
    schema = pa.schema([*ROW_FIELDS, *(field for field, _ in pairs)], metadata=notes)
    arrays = [*columns(data, slice(0, len(data))), *(array for _, array in pairs)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return sink.getvalue()


def open_manifest(folder: Folder, sha256: str) -> pa.RecordBatch | None:
    """The columns of the manifest in a folder, mapped where it is a local one.

    Returns:
        None when the file is not the one with this SHA-256, in hex.

    Raises:
        DataError: there is none.
        StorageError: it cannot be read.
    """
    place = folder.path(MANIFEST)
    try:
        with storage_errors(place):
            if folder.local is not None:
                buffer = pa.memory_map(str(folder.local / MANIFEST)).read_buffer()
            else:
                buffer = pa.py_buffer(folder.read(MANIFEST))
    except FileNotFoundError as error:
        raise DataError(f"{place}: missing\nrun orchestrator shard again") from error
    if hashlib.sha256(buffer).hexdigest() != sha256:
        return None
    return pa.ipc.open_file(buffer).get_batch(0)


def decode(
    batch: pa.RecordBatch, label_map: LabelMap, root: str, shards: ShardedImages | None = None
) -> Dataset:
    """The split that these columns describe.

    Args:
        batch: of the manifest.
        label_map: its classes.
        root: see :class:`Dataset`.
        shards: that hold the images.
    """
    boxes = batch["boxes"]
    return Dataset(
        label_map=label_map,
        root=root,
        files=_names(batch["file"]),
        image_ids=flat(batch["image_id"]),
        widths=flat(batch["width"]),
        heights=flat(batch["height"]),
        offsets=boxes.offsets.to_numpy().astype(np.int64),
        boxes_xywh=boxes.values.values.to_numpy().reshape(-1, 4),
        labels=flat(batch["labels"].values),
        areas=flat(batch["areas"].values),
        crowd=flat(batch["crowd"].values),
        shards=shards,
    )


def flat(array: pa.Array) -> NDArray[Any]:
    """A column as NumPy sees it, mapped where it can be (Arrow packs booleans into bits)."""
    values: NDArray[Any] = array.to_numpy(zero_copy_only=not pa.types.is_boolean(array.type))
    return values


def _names(array: pa.Array) -> Names:
    """A column of strings, mapped."""
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[1 : len(array) + 1]
    return Names(np.frombuffer(text, dtype=np.uint8)[: ends[-1]], ends.astype(np.int64))
