"""Writing shards, each a pure function of data set and number.

A shard is there as a whole or not at all, so a run that was killed goes on with the shards that
are missing and ends in the same bytes. Every shard is read back before it counts, whether it was
just written or found. Who calls :func:`put_shard` for each, and where, is not said here; see
:mod:`orchestrator.data.shards.ray_writer`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.columns import INDEX, MANIFEST
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError, require_sound
from orchestrator.data.images import image_bytes, require_still_there, stored_length
from orchestrator.data.sharded_images import ShardedImages, shard_name
from orchestrator.data.shards.manifest import ROW_FIELDS, columns
from orchestrator.data.shards.split import (
    FORMAT,
    Index,
    manifest_bytes,
    read_index,
    row_slices,
    stale,
)
from orchestrator.errors import ConfigError, DataError, OrchestratorError, StorageError
from orchestrator.storage.address import TEMPORARY
from orchestrator.storage.folders import Folder, open_folder

#: Images of a shard: some 80 MB of photographs as in COCO, a few seconds of reading.
IMAGES_PER_SHARD = 512
#: Images of a row group: some 10 MB, what a reader that streams holds at a time.
ROW_GROUP = 64

#: Told each finished shard: images so far, images in all.
Progress = Callable[[int, int], None]

_DIGEST_KEY, _NUMBER_KEY, _FORMAT_KEY = b"manifest_digest", b"shard", b"format"


@dataclass(frozen=True)
class Written:
    """What :func:`write_shards` did.

    Attributes:
        index: of the finished folder.
        found: shards that were there already.
        unsound: images that cannot be used; another one takes the place of each.
    """

    index: Index
    found: int
    unsound: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """A shard that is in its place; images in its order.

    Attributes:
        number: of the shard.
        size: in bytes.
        sha256: of the file.
        found: whether it was there already.
        offset, length, crc, sound: of each image; see :class:`ShardedImages`.
    """

    number: int
    size: int
    sha256: str
    found: bool
    offset: list[int]
    length: list[int]
    crc: list[int]
    sound: list[bool]


#: Given data set, location, images a shard and number of shards, yields all shards in any order.
Run: TypeAlias = Callable[[Dataset, str, int, int], Iterable[Shard]]


def write_shards(
    data: Dataset,
    location: str,
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    run: Run,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write a data set as shards, or finish doing so.

    Args:
        data: to write; its image files must be reachable from every node.
        location: folder to make, a path that all nodes share or a URI.
        images_per_shard: images of every shard but the last.
        run: calls :func:`put_shard` for every shard.
        progress: called after every shard.

    Raises:
        DataError: the folder holds shards of another data set.
        ConfigError: it holds shards of another length.
        StorageError: it cannot be written.
    """
    folder = open_folder(location)
    begun = Index(data.digest, data.content_digest, data.label_map, len(data), images_per_shard)
    before = read_index(folder)
    names = folder.sizes()
    if before is not None:
        _require_same_plan(folder, before, begun)
    elif names:
        raise StorageError(
            f"{folder.location}: is not empty and holds no shards. Next: name a folder that does "
            "not exist; nothing is overwritten"
        )
    # While anything is being put right, nobody shall train on it.
    folder.write(INDEX, begun.to_json())
    slices = row_slices(len(data), images_per_shard)
    done = []
    images = 0
    for shard in run(data, location, images_per_shard, len(slices)):
        done.append(shard)
        images += len(shard.length)
        progress(images, len(data))
    if sorted(shard.number for shard in done) != list(range(len(slices))):
        raise OrchestratorError(f"{len(done)} shards were made instead of {len(slices)}")
    done.sort(key=lambda shard: shard.number)
    # What kills have cut off; not earlier, as workers outlive a driver that was killed.
    for name in folder.sizes():
        if TEMPORARY in name:
            folder.remove(name)
    return _finish(data, folder, begun, done)


def _require_same_plan(folder: Folder, before: Index, begun: Index) -> None:
    if before.digest != begun.digest:
        raise DataError(stale(folder.location, before.digest, begun.digest))
    if before.images_per_shard != begun.images_per_shard:
        raise ConfigError(
            f"{folder.location}: was begun with {before.images_per_shard} images a shard, and now "
            f"{begun.images_per_shard} are asked for. Next: --images-per-shard "
            f"{before.images_per_shard}, or another folder"
        )


def _finish(data: Dataset, folder: Folder, begun: Index, done: list[Shard]) -> Written:
    """Write the manifest, and then the index that makes the folder count."""

    def column(name: str, dtype: type) -> np.ndarray[Any, Any]:
        return np.concatenate([np.array(getattr(shard, name), dtype=dtype) for shard in done])

    places = ShardedImages(
        location=folder.location,
        digest=data.digest,
        shard=np.repeat(
            np.arange(len(done), dtype=np.int32), [len(shard.length) for shard in done]
        ),
        offset=column("offset", np.int64),
        length=column("length", np.int64),
        crc=column("crc", np.uint32),
        sound=column("sound", np.bool_),
        sizes=np.array([shard.size for shard in done], dtype=np.int64),
        sha256=tuple(shard.sha256 for shard in done),
    )
    manifest = manifest_bytes(data, places)
    folder.write(MANIFEST, memoryview(manifest))
    index = replace(
        begun,
        complete=True,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        sizes=tuple(shard.size for shard in done),
        sha256=places.sha256,
    )
    folder.write(INDEX, index.to_json())
    unsound = tuple(data.files[i] for i in np.flatnonzero(~places.sound).tolist())
    return Written(index, sum(shard.found for shard in done), unsound)


def put_shard(data: Dataset, folder: Folder, number: int, images_per_shard: int) -> Shard:
    """Write one shard, unless it is there already.

    Raises:
        DataError: the folder holds this shard of another data set.
        StorageError: it cannot be written.
    """
    rows = row_slices(len(data), images_per_shard)[number]
    name = shard_name(number)
    try:
        before = folder.read(name)
    except FileNotFoundError:
        before = b""
    found = _is_current(data, rows, number, before, folder.path(name))
    content = before if found else shard_bytes(data, number, rows)
    if not found:
        folder.write(name, content)
    lengths, offsets, crcs, sound = [], [], [], []
    images = _images(content)
    for index, (image, offset) in enumerate(
        zip(images, _offsets(content, images), strict=True), rows.start
    ):
        lengths.append(len(image))
        offsets.append(offset)
        crcs.append(zlib.crc32(image))
        sound.append(_is_sound(data, index, image))
    return Shard(
        number=number,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        found=found,
        offset=offsets,
        length=lengths,
        crc=crcs,
        sound=sound,
    )


def shard_bytes(data: Dataset, number: int, rows: slice) -> bytes:
    """The Parquet file of some images: equal data, equal bytes.

    An image that cannot be read becomes empty, and is replaced in training as a missing file is.
    """
    images = [_stored(data, index) for index in range(rows.start, rows.stop)]
    schema = pa.schema(
        [*ROW_FIELDS, pa.field("image", pa.binary(), nullable=False)],
        metadata={
            _FORMAT_KEY: str(FORMAT),
            _DIGEST_KEY: data.digest,
            _NUMBER_KEY: str(number),
        },
    )
    table = pa.table([*columns(data, rows), pa.array(images, pa.binary())], schema=schema)
    sink = pa.BufferOutputStream()
    # Encoded images do not get smaller, and only plain bytes can be read without Parquet.
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        column_encoding={"image": "PLAIN"},
        data_page_version="1.0",
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _stored(data: Dataset, index: int) -> bytes:
    """An image as it is stored, empty where it cannot be read.

    Raises:
        StorageError: what it lies on has failed or is lost.
    """
    try:
        return image_bytes(data, index)
    except BadImageError:
        require_still_there(data, index)
        return b""


def _is_current(data: Dataset, rows: slice, number: int, content: bytes, place: str) -> bool:
    """Whether a shard that was found is the one that would be written.

    Raises:
        DataError: it is of another data set.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
    except (pa.ArrowInvalid, OSError):
        return False
    notes = file.schema_arrow.metadata or {}
    digest = notes.get(_DIGEST_KEY, b"").decode("latin-1")
    if digest != data.digest:
        raise DataError(stale(place, digest or "(none)", data.digest))
    if notes.get(_FORMAT_KEY) != str(FORMAT).encode() or notes[_NUMBER_KEY] != str(number).encode():
        return False
    if file.metadata.num_rows != rows.stop - rows.start:
        return False
    lengths = [len(image) for image in _images(content)]
    return lengths == [stored_length(data, index) for index in range(rows.start, rows.stop)]


def _images(content: bytes) -> list[bytes]:
    """The images of a shard, as Parquet reads them."""
    table = pq.read_table(pa.BufferReader(content), columns=["image"])
    images: list[bytes] = table["image"].to_pylist()
    return images


def _offsets(content: bytes, images: list[bytes]) -> Iterator[int]:
    """Where in the file each image begins; 0 for an empty one.

    In plain encoding the length stands before the bytes, in four bytes of its own (Parquet format,
    "Encodings"), so finding both together proves the place.
    """
    metadata = pq.read_metadata(pa.BufferReader(content))
    ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
    position = 0
    for row, image in enumerate(images):
        group = int(np.searchsorted(ends, row, side="right"))
        chunk = metadata.row_group(group).column(metadata.num_columns - 1)
        position = max(position, chunk.data_page_offset)
        if not image:
            yield 0
            continue
        start = content.find(struct.pack("<I", len(image)) + image, position)
        if start < 0:
            raise OrchestratorError(f"image {row} of a shard is not stored as plain bytes")
        yield start + 4
        position = start + 4 + len(image)


def _is_sound(data: Dataset, index: int, image: bytes) -> bool:
    try:
        require_sound(
            image,
            size=(int(data.heights[index]), int(data.widths[index])),
            decoding=data.decoding,
        )
    except BadImageError:
        return False
    return True
