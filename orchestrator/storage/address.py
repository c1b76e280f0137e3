"""Addresses of folders and of places in object stores, and opening the stores: for all rooms alike.

Credentials and endpoints come from the environment, as the vendors' own tools take them, or from
options behind the address: ``s3://bucket/prefix?region=...&endpoint_override=...``. What is written
down or said leaves account and options out, since secrets may be among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from orchestrator.errors import ConfigError, StorageError

#: Of the object stores.
SCHEMES: Final = ("s3", "gs")
#: Option of an address of Google's store, and seconds where it says nothing.
_PATIENCE, _PATIENCE_SECONDS = "retry_limit_seconds", 10
#: Part of the name of whatever is still being written or deleted, followed by 32 hex digits.
TEMPORARY: Final = ".tmp-"


@dataclass(frozen=True)
class Place:
    """A URI, taken apart. Keys are taken as they are: nothing is percent-decoded.

    Attributes:
        scheme: Name before ``://``; empty for a path of a file system.
        account: What stands before an ``@``; empty mostly.
        path: Bucket and key, or the path.
        options: What stands behind a ``?``.
    """

    scheme: str
    account: str
    path: str
    options: str

    @classmethod
    def of(cls, location: str) -> Place:
        """Parse a URI; a location without ``://`` is a path as a whole."""
        scheme, mark, rest = location.partition("://")
        if not mark:
            return cls("", "", location, "")
        rest, _, options = rest.partition("?")
        bucket, slash, key = rest.partition("/")
        account, _, bucket = bucket.rpartition("@")
        return cls(scheme, account, f"{bucket}{slash}{key}", options)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return self.scheme in SCHEMES

    @property
    def bucket(self) -> str:
        """First part of the path."""
        return self.path.partition("/")[0]

    @property
    def plain(self) -> str:
        """The URI without account and options."""
        return f"{self.scheme}://{self.path}" if self.scheme else self.path

    def at(self, path: str) -> str:
        """URI of another path in the same store, with account and options."""
        account = f"{self.account}@" if self.account else ""
        options = f"?{self.options}" if self.options else ""
        return f"{self.scheme}://{account}{path}{options}"


class StoreError(OSError):
    """An object store does not answer, or refuses.

    Args:
        reason: what its client says, who seldom names a place.
        place: URI of what was asked for.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(reason)
        self.place = place


def is_remote(word: str) -> bool:
    """Whether a word names something in an object store."""
    return Place.of(word).is_remote


def below(location: str, name: str) -> str:
    """The place called ``name`` below a location, whose options stay."""
    base, mark, options = location.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def file_system_path(location: str) -> str | None:
    """Path of a location in a file system; None for one in an object store.

    Raises:
        ConfigError: it is neither.
    """
    place = Place.of(location)
    if not place.scheme:
        return location
    if place.scheme == "file":
        return place.path
    if not (place.is_remote and place.bucket):
        raise ConfigError(
            f"{location!r} names no place to write to; allowed: a path, "
            + ", ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        )
    return None


@lru_cache(maxsize=32)
def open_store(uri: str) -> tuple[Any, str]:
    """The ``pyarrow.fs.FileSystem`` of a URI, and its path there, percent-decoded.

    Opened once in a process, since opening may look up the region of a bucket.

    Raises:
        ConfigError: the options are none that the store knows.
        StorageError: the store cannot be reached.
    """
    # Reading an experiment file must not take the time of this import.
    import pyarrow
    import pyarrow.fs

    plain = Place.of(uri).plain
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(_with_patience(uri))
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{plain}: its options cannot be used ({error})") from error
    except OSError as error:
        raise unreachable(plain, error) from error
    return filesystem, path


def _with_patience(uri: str) -> str:
    """The URI with a limit on how long a store that does not answer is asked again.

    Google's client would be silent for 15 minutes without network or credentials, Amazon's for 6 s.
    """
    place = Place.of(uri)
    if place.scheme != "gs" or _PATIENCE in place.options:
        return uri
    return f"{uri}{'&' if place.options else '?'}{_PATIENCE}={_PATIENCE_SECONDS}"


def unreachable(place: str, error: OSError) -> StorageError:
    """What a user is told of a store that does not answer."""
    return StorageError(
        f"{place}: the store cannot be asked ({error}). Next: see that the bucket exists and that "
        "its region and credentials are set"
    )
