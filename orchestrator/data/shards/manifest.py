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

from orchestrator.data.columns import MANIFEST, OF_DATASET
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.sharded_images import ShardedImages
from orchestrator.errors import DataError
from orchestrator.storage.folders import LocalFolder, storage_errors

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


def open_manifest(folder: LocalFolder, sha256: str) -> pa.RecordBatch | None:
    """The columns of the manifest in a folder, mapped.

    Returns:
        None when the file is not the one with this SHA-256, in hex.

    Raises:
        DataError: there is none.
        StorageError: it cannot be read.
    """
    place = folder.path(MANIFEST)
    sha = hashlib.sha256()
    try:
        with storage_errors(place):
            # Read, not mapped: what has been mapped counts as this process's memory.
            for chunk in folder.chunks(MANIFEST):
                sha.update(chunk)
    except FileNotFoundError as error:
        raise DataError(f"{place}: missing\nrun orchestrator shard again") from error
    if sha.hexdigest() != sha256:
        return None
    return pa.ipc.open_file(pa.memory_map(str(folder.local / MANIFEST))).get_batch(0)


def decode(
    columns: Mapping[str, Any], label_map: LabelMap, root: str, shards: ShardedImages | None = None
) -> Dataset:
    """The split that these columns describe.

    Args:
        columns: of the manifest, by field.
        label_map: its classes.
        root: see :class:`Dataset`.
        shards: that hold the images.
    """
    own = {name: columns[name] for name in OF_DATASET}
    return Dataset(label_map=label_map, root=root, shards=shards, **own)
