"""Folders of shards, on a disk, an NFS mount or in a bucket, behind the same few calls."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.address import file_system_path
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket import open_storage
from orchestrator.storage.local import CHUNK_BYTES


class Folder(ABC):
    """Files directly below one place; names are plain names.

    Attributes:
        location: path or URI, as a user knows it.
        local: the path, where the files can be opened directly.
    """

    location: str
    local: Path | None = None

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of each file; empty when there is no such folder."""

    @abstractmethod
    def chunks(self, name: str) -> Iterator[bytes]:
        """Content of a file, from its beginning."""

    @abstractmethod
    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write a file that is there as a whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file."""

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            StorageError: it cannot be read; FileNotFoundError, which is no error of the storage,
                comes through.
        """
        with storage_errors(self.path(name)):
            return b"".join(self.chunks(name))

    def path(self, name: str) -> str:
        """Path or URI of a file, for messages."""
        return f"{self.location.partition('?')[0].rstrip('/')}/{name}"


class LocalFolder(Folder):
    """A folder of a file system; made when the first file is written."""

    def __init__(self, path: Path) -> None:
        self.local: Path = path.absolute()
        self.location = str(self.local)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        with storage_errors(self.location):
            if not self.local.is_dir():
                return {}
            sizes = {}
            with os.scandir(self.local) as entries:
                for entry in entries:
                    # What is renamed or deleted meanwhile is there no more.
                    with suppress(FileNotFoundError):
                        if entry.is_file():
                            sizes[entry.name] = entry.stat().st_size
            return sizes

    def chunks(self, name: str) -> Iterator[bytes]:
        """Content of a file."""
        with (self.local / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write beside, make durable, rename."""
        with storage_errors(self.path(name)):
            write_atomic(self.local / name, data)

    def remove(self, name: str) -> None:
        """Delete a file."""
        with storage_errors(self.path(name)):
            (self.local / name).unlink(missing_ok=True)


class BucketFolder(Folder):
    """A prefix of a bucket; an object appears when its upload is finished."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._storage = open_storage(location)

    def sizes(self) -> dict[str, int]:
        """Bytes of each object directly below the prefix."""
        with storage_errors(self.location):
            return {each.name: each.size for each in self._storage.list("") if not each.is_dir}

    def chunks(self, name: str) -> Iterator[bytes]:
        """Content of an object."""
        return self._storage.read(name)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Upload."""
        with storage_errors(self.path(name)):
            self._storage.write_file(name, [data])

    def remove(self, name: str) -> None:
        """Delete an object."""
        with storage_errors(self.path(name)):
            self._storage.unlink(name)


def open_folder(location: str) -> Folder:
    """The folder that a path, ``s3://bucket/prefix`` or ``gs://bucket/prefix`` names.

    Credentials come from the environment. Options of the store follow the prefix:
    ``?region=...&endpoint_override=...``.

    Raises:
        ConfigError: the URI is of no kind that can be used.
        StorageError: the bucket cannot be reached.
    """
    path = file_system_path(location)
    return BucketFolder(location) if path is None else LocalFolder(Path(path))


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn what a file system raises into advice; a missing file is not for this to judge."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{place}: {error.strerror or error}. Next: see that the place can be reached, has "
            "room and may be read and written by this user, then run the same command again"
        ) from error
