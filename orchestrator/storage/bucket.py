"""Commits on an object store, through ``pyarrow.fs``, which Ray brings along.

An object store cannot rename, and an object appears whole when its upload is finished. So each
commit has a folder of its own, even when a step is committed twice, its manifest is uploaded last,
and a folder without a manifest is an upload that was cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.storage.address import StoreError, file_system_path, open_store
from orchestrator.storage.local import (
    CHUNK_BYTES,
    Chunk,
    Entry,
    LocalStorage,
    OpenFile,
    Storage,
    split_key,
)


class ObjectStorage(Storage):
    """A prefix of a bucket.

    Args:
        filesystem: a ``pyarrow.fs.FileSystem``.
        base: bucket and prefix, without a scheme.
        uri: the same as a user knows it.
    """

    renames = False

    def __init__(self, filesystem: Any, base: str, uri: str) -> None:
        self.filesystem = filesystem
        self.base = base.rstrip("/")
        self.uri = uri.rstrip("/")

    def describe(self, key: str) -> str:
        """URI of ``key``."""
        return f"{self.uri}/{key}" if key else self.uri

    def _path(self, key: str) -> str:
        return "/".join([self.base, *split_key(key)])

    @contextmanager
    def _asked(self, key: str) -> Iterator[None]:
        """Name the place in what the store's client says, which mostly does not.

        Raises:
            StoreError: in place of an OSError, but for one that says that an object is missing.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(str(error), self.describe(key)) from error

    def make_dir(self, key: str) -> bool:
        """Create what stands for a folder; it costs nothing if it is there."""
        with self._asked(key):
            self.filesystem.create_dir(self._path(key), recursive=True)
        return True

    def create(self, key: str) -> OpenFile:
        """Begin an upload, which replaces an object of this name when it is closed."""
        with self._asked(key):
            return OpenFile(key, self.filesystem.open_output_stream(self._path(key)))

    def write(self, file: OpenFile, data: Chunk) -> None:
        """Append all of ``data``."""
        with self._asked(file.key):
            file.raw.write(data)

    def sync(self, file: OpenFile) -> None:
        """Send what is buffered; an object is durable once :meth:`close` has returned."""
        with self._asked(file.key):
            file.raw.flush()

    def close(self, file: OpenFile) -> None:
        """Finish the upload."""
        with self._asked(file.key):
            file.raw.close()

    def sync_dir(self, key: str) -> None:
        """Nothing to do: names are durable with their objects."""

    def rename(self, source: str, target: str) -> None:
        """Not offered; ``renames`` says so."""
        raise OSError(f"{self.describe(source)}: an object store cannot rename")

    def unlink(self, key: str) -> None:
        """Delete an object."""
        with self._asked(key):
            self.filesystem.delete_file(self._path(key))

    def remove_dir(self, key: str) -> None:
        """Delete what stands for a folder."""
        with self._asked(key):
            self.filesystem.delete_dir(self._path(key))

    def list(self, key: str) -> list[Entry]:
        """What lies directly below a prefix, by name."""
        # Here, so that a machine without buckets needs no pyarrow.
        import pyarrow.fs

        selector = pyarrow.fs.FileSelector(self._path(key), allow_not_found=True)
        with self._asked(key):
            infos = self.filesystem.get_file_info(selector)
        return sorted(
            Entry(info.base_name, info.type == pyarrow.fs.FileType.Directory, info.size or 0)
            for info in infos
        )

    def read(self, key: str) -> Iterator[bytes]:
        """An object's bytes."""
        with self._asked(key), self.filesystem.open_input_stream(self._path(key)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def open_storage(location: str) -> Storage:
    """The storage a path or URI names: a folder, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    Credentials come from the environment, as the vendors' own tools take them. Options of the
    store follow the prefix: ``?region=...&endpoint_override=...``.

    Raises:
        ConfigError: the URI is of no kind that can be used.
    """
    return _opened(location)


@lru_cache(maxsize=8)
def _opened(location: str) -> Storage:
    path = file_system_path(location)
    if path is not None:
        return LocalStorage(path)
    filesystem, base = open_store(location)
    return ObjectStorage(filesystem, base, location.partition("?")[0])


def commit_storage(run_dir: str | Path, bucket: str | None) -> Storage:
    """Where the commits of a run are: in its bucket, if it has one, or in its folder."""
    return LocalStorage(run_dir) if bucket is None else open_storage(bucket)
