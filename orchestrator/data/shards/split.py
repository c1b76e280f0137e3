"""Shards: a split as Parquet files of encoded images and ragged boxes, with what finds them.

A folder of shards holds

- ``shard-00000.parquet``, ...: one row an image, in the order of the data set, in row groups of
  some ten megabytes; any Parquet reader can read them;
- ``manifest.arrow``: everything but the pixels, and where in its shard each image lies. Training
  maps it into memory instead of parsing annotations;
- ``index.json``: the digest of the data set, classes, and size and SHA-256 of every file. Written
  with ``complete: false`` before the first shard and anew after the last one.

The manifest digest stands in the index and in every shard, so shards of annotations that have
changed since are refused wherever the two meet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.columns import INDEX, MANIFEST, OF_SHARDS, ManifestFile
from orchestrator.data.dataset import Dataset
from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.sharded_images import ShardedImages, shard_name
from orchestrator.data.shards.manifest import decode, encode, open_manifest
from orchestrator.errors import DataError
from orchestrator.storage.folders import Folder, LocalFolder, open_folder

FORMAT = 1

_PLACE_TYPES = {
    "shard": pa.int32(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "crc": pa.uint32(),
    "sound": pa.bool_(),
}


@dataclass(frozen=True)
class Index:
    """What ``index.json`` says.

    Attributes:
        digest: of the data set; see :attr:`Dataset.digest`.
        content_digest: likewise.
        label_map: its classes.
        images: in it.
        images_per_shard: in every shard but the last.
        complete: whether all shards are there.
        manifest_sha256: of ``manifest.arrow``; empty until complete.
        sizes: bytes of each shard; empty until complete.
        sha256: of each shard; empty until complete.
    """

    digest: str
    content_digest: str
    label_map: LabelMap
    images: int
    images_per_shard: int
    complete: bool = False
    manifest_sha256: str = ""
    sizes: tuple[int, ...] = ()
    sha256: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The file: equal indices give equal bytes."""
        tree = {
            "format": FORMAT,
            "complete": self.complete,
            "digest": self.digest,
            "content_digest": self.content_digest,
            "images": self.images,
            "images_per_shard": self.images_per_shard,
            "label_map": json.loads(self.label_map.to_json()),
            "manifest_sha256": self.manifest_sha256,
            "shards": [
                {"file": shard_name(number), "bytes": size, "sha256": sha}
                for number, (size, sha) in enumerate(zip(self.sizes, self.sha256, strict=True))
            ],
        }
        return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes, place: str) -> Index:
        """Inverse of :meth:`to_json`.

        Raises:
            DataError: it is none, or one of another version of the program.
        """
        try:
            tree: dict[str, Any] = json.loads(text)
            if tree["format"] != FORMAT:
                raise DataError(
                    f"{place}: format {tree['format']!r}; this program reads {FORMAT}\n"
                    "write the shards again: orchestrator shard"
                )
            return cls(
                digest=str(tree["digest"]),
                content_digest=str(tree["content_digest"]),
                label_map=LabelMap.from_json(json.dumps(tree["label_map"])),
                images=int(tree["images"]),
                images_per_shard=int(tree["images_per_shard"]),
                complete=bool(tree["complete"]),
                manifest_sha256=str(tree["manifest_sha256"]),
                sizes=tuple(int(shard["bytes"]) for shard in tree["shards"]),
                sha256=tuple(str(shard["sha256"]) for shard in tree["shards"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{place}: damaged ({type(error).__name__}: {error})\n"
                "write the shards again: orchestrator shard"
            ) from error


def read_index(folder: Folder) -> Index | None:
    """The index of a folder; None where there is none.

    Raises:
        DataError: it is damaged.
        StorageError: it cannot be read.
    """
    try:
        text = folder.read(INDEX)
    except FileNotFoundError:
        return None
    return Index.from_json(text, folder.path(INDEX))


def read_shards(location: str, *, cache: str | None = None) -> ReadResult:
    """The data set that a folder of shards holds.

    Args:
        location: path or URI of the folder.
        cache: folder of each node for shards of a bucket.

    Raises:
        DataError: there are no shards, they are not complete, or not those of the index.
        StorageError: the folder cannot be read.
    """
    folder = open_folder(location)
    index = read_index(folder)
    if index is None:
        raise DataError(
            f"{folder.location}: no shards, there is no {INDEX}\n"
            "write them with: orchestrator shard EXPERIMENT.yaml OUT"
        )
    if not index.complete:
        raise DataError(
            f"{folder.location}: the shards are not finished\n"
            "run the same orchestrator shard command again; it goes on where it stopped"
        )
    _require_files(folder, index)
    data = _dataset(folder, index, cache)
    if data.digest != index.digest:
        raise DataError(stale(folder.location, index.digest, data.digest))
    return ReadResult(data, ())


def require_same(shards: Dataset, annotations: Dataset) -> None:
    """Refuse shards that were written from other annotations.

    Raises:
        DataError: printing both digests.
    """
    assert shards.shards is not None, "read from shards"
    if shards.digest != annotations.digest:
        raise DataError(stale(shards.shards.location, shards.digest, annotations.digest))


def stale(location: str, there: str, here: str) -> str:
    """That shards and annotations differ, with both digests."""
    return (
        f"{location}: these shards are of another data set\n"
        f"  digest of the shards       {there}\n"
        f"  digest of the annotations  {here}\n"
        "write shards of the data set as it is now into a new folder (orchestrator shard), or "
        "point at those that belong to it"
    )


def manifest_bytes(data: Dataset, places: ShardedImages) -> pa.Buffer:
    """``manifest.arrow``: the manifest of the data set, and where each image lies."""
    found = [pa.array(getattr(places, name), kind) for name, kind in _PLACE_TYPES.items()]
    fields = [pa.field(name, kind, nullable=False) for name, kind in _PLACE_TYPES.items()]
    return encode(data, zip(fields, found, strict=True))


def _require_files(folder: Folder, index: Index) -> None:
    """See that every shard is there and of its size; one listing, whatever their number."""
    found = folder.sizes()
    wrong = [
        f"  {name}: " + (f"{found[name]} bytes, expected {size}" if name in found else "missing")
        for name, size in ((shard_name(i), size) for i, size in enumerate(index.sizes))
        if found.get(name) != size
    ]
    if wrong:
        more = [f"  ... and {len(wrong) - 10} more"] if len(wrong) > 10 else []
        raise DataError(
            "\n".join(
                [
                    f"{folder.location}: {len(wrong)} of {len(index.sizes)} shards are not those "
                    "of the index",
                    *wrong[:10],
                    *more,
                    "run orchestrator shard again; it writes what is missing or changed",
                ]
            )
        )


def _dataset(folder: Folder, index: Index, cache: str | None) -> Dataset:
    sha256, place = index.manifest_sha256, folder.path(MANIFEST)
    # One in a bucket is compared as it is fetched.
    if isinstance(folder, LocalFolder) and open_manifest(folder, sha256) is None:
        raise DataError(f"{place}: does not match its digest\nrun orchestrator shard again")
    manifest = ManifestFile(folder.location, sha256, cache)
    try:
        columns = manifest.columns()
    except FileNotFoundError as error:
        raise DataError(f"{place}: missing\nrun orchestrator shard again") from error
    places = {name: columns[name] for name in OF_SHARDS}
    shards = ShardedImages(
        location=folder.location,
        digest=index.digest,
        sizes=np.array(index.sizes, dtype=np.int64),
        sha256=index.sha256,
        cache=cache,
        manifest=manifest,
        **places,
    )
    return decode(columns, index.label_map, folder.location, shards)


def keep_shards(data: Dataset, count: int | None) -> Dataset:
    """The data set, whose nodes keep at most ``count`` fetched shards; None for all."""
    if data.shards is None:
        return data
    return replace(data, shards=replace(data.shards, kept=count))


def row_slices(images: int, images_per_shard: int) -> Sequence[slice]:
    """The images of each shard."""
    return [
        slice(first, min(first + images_per_shard, images))
        for first in range(0, images, images_per_shard)
    ]
