"""Columns of ``manifest.arrow`` as NumPy sees them, and their places in a file that nodes see.

What lies beside shards, which every node sees, need not be sent through the cluster. A process that
is given the place of a column maps the file for itself: nothing is copied, all processes of a node
share its pages, and only what is looked at is ever read. A manifest in a bucket is fetched to each
node once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.node_cache import fetch, private_folder
from orchestrator.data.string_column import Names
from orchestrator.errors import DataError
from orchestrator.storage.folders import open_folder

if TYPE_CHECKING:
    # Who reads no shards needs no pyarrow.
    import pyarrow as pa

MANIFEST, INDEX = "manifest.arrow", "index.json"

_PIECE_BYTES = 1 << 20


def flat(array: pa.Array) -> NDArray[Any]:
    """A column as NumPy sees it, mapped where it can be (Arrow packs booleans into bits)."""
    values: NDArray[Any] = array.to_numpy(zero_copy_only=array.type != "bool")
    return values


def _are_alike(flags: pa.Array) -> bool:
    return flags.true_count in (0, len(flags))


def _flags(array: pa.Array) -> NDArray[Any]:
    """The same of booleans; where all are equal, which is usual, one of them stands for all."""
    if not _are_alike(array):
        return flat(array)
    return np.broadcast_to(np.bool_(array.true_count > 0), len(array))


def _names(array: pa.Array) -> Names:
    """A column of strings, mapped."""
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[1 : len(array) + 1]
    return Names(np.frombuffer(text, dtype=np.uint8)[: ends[-1]], ends)


_Readers: TypeAlias = "Mapping[str, Callable[[pa.RecordBatch], Any]]"
#: By field of ``Dataset``, and of ``ShardedImages``, how it is had from the columns of a manifest.
OF_DATASET: _Readers = {
    "files": lambda batch: _names(batch["file"]),
    "image_ids": lambda batch: flat(batch["image_id"]),
    "widths": lambda batch: flat(batch["width"]),
    "heights": lambda batch: flat(batch["height"]),
    "offsets": lambda batch: batch["boxes"].offsets.to_numpy().astype(np.int64),
    "boxes_xywh": lambda batch: batch["boxes"].values.values.to_numpy().reshape(-1, 4),
    "labels": lambda batch: flat(batch["labels"].values),
    "areas": lambda batch: flat(batch["areas"].values),
    "crowd": lambda batch: _flags(batch["crowd"].values),
}
OF_SHARDS: _Readers = {
    "shard": lambda batch: flat(batch["shard"]),
    "offset": lambda batch: flat(batch["offset"]),
    "length": lambda batch: flat(batch["length"]),
    "crc": lambda batch: flat(batch["crc"]),
    "sound": lambda batch: _flags(batch["sound"]),
}
#: Whether a field is mapped. Of others a copy is made, which a node had better share through the
#: object store.
_IS_MAPPED: Mapping[str, Callable[[pa.RecordBatch], bool]] = {
    "offsets": lambda batch: False,
    "crowd": lambda batch: _are_alike(batch["crowd"].values),
    "sound": lambda batch: _are_alike(batch["sound"]),
}


def read_columns(batch: pa.RecordBatch, readers: _Readers) -> dict[str, Any]:
    """Columns by field."""
    return {name: read(batch) for name, read in readers.items()}


@dataclass(frozen=True)
class ManifestFile:
    """The manifest in a folder of shards.

    Attributes:
        location: absolute path or URI of the folder.
        sha256: of the manifest, in hex.
        cache: folder of a node that a manifest in a bucket is fetched to; None: below the temporary
            folder.
    """

    location: str
    sha256: str
    cache: str | None = None

    def columns(self) -> dict[str, Any]:
        """All columns by field; those that are mapped are the same objects each time."""
        mapped, batch = _mapped(self), _opened(self)
        others = {k: read for k, read in {**OF_DATASET, **OF_SHARDS}.items() if k not in mapped}
        return {**mapped, **read_columns(batch, others)}

    def without_columns(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What is to be pickled of an object: its mapped columns as their places."""
        places = {id(value): name for name, value in _mapped(self).items()}
        return {
            name: _Place(self, places[id(value)]) if id(value) in places else value
            for name, value in state.items()
        }


@dataclass(frozen=True)
class _Place:
    """A column of a manifest, in place of its values."""

    file: ManifestFile
    column: str


def with_columns(state: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :meth:`ManifestFile.without_columns`, in a process that may be on another node.

    Raises:
        DataError: the manifest is another one by now.
    """
    return {
        name: _mapped(value.file)[value.column] if isinstance(value, _Place) else value
        for name, value in state.items()
    }


@lru_cache(maxsize=4)
def _mapped(file: ManifestFile) -> dict[str, Any]:
    """The columns that are mapped."""
    batch, readers = _opened(file), {**OF_DATASET, **OF_SHARDS}
    wanted = {k: v for k, v in readers.items() if k not in _IS_MAPPED or _IS_MAPPED[k](batch)}
    return read_columns(batch, wanted)


@lru_cache(maxsize=4)
def _opened(file: ManifestFile) -> pa.RecordBatch:
    import pyarrow as pa

    folder = open_folder(file.location)
    if folder.local is None:
        path = private_folder(file.cache) / "manifests" / f"{file.sha256[:16]}.arrow"
        fetch(folder, MANIFEST, file.sha256, path)
    else:
        path = folder.local / MANIFEST
        # To compare the manifest itself would take every process seconds.
        if f'"{file.sha256}"'.encode() not in _head_of_index(folder.local):
            raise DataError(
                f"{path}: not the one that this run has begun with: the shards were written anew, "
                "or this node has others at that path. Next: run the same command again"
            )
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _head_of_index(folder: Path) -> bytes:
    """The index without its list of shards, which may be long."""
    head = b""
    with (folder / INDEX).open("rb") as file:
        while b'"shards": [' not in head and (piece := file.read(_PIECE_BYTES)):
            head += piece
    return head
