"""Images in object stores, ``s3://bucket/key`` and ``gs://bucket/key``, through ``pyarrow.fs``.

Credentials and endpoint come from the environment, as the vendors' own tools take them, or from
options behind the key: ``?region=...&endpoint_override=...``. Whatever is written down leaves those
options out, since secrets may be among them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow
import pyarrow.fs
from numpy.typing import NDArray

from orchestrator.data.decode import MAX_BYTES, BadImageError, Decoding, decode_image
from orchestrator.errors import ConfigError, DataError, StorageError

SCHEMES: Final = ("s3", "gs")


@dataclass(frozen=True)
class Place:
    """A URI, taken apart. Keys are taken as they are: nothing is percent-decoded.

    Attributes:
        scheme: one of :data:`SCHEMES`.
        account: what stands before an ``@``; empty mostly.
        path: bucket and key.
        options: what stands behind a ``?``.
    """

    scheme: str
    account: str
    path: str
    options: str

    @classmethod
    def of(cls, uri: str) -> Place:
        """Parse a URI for which :func:`is_remote` holds."""
        scheme, _, rest = uri.partition("://")
        rest, _, options = rest.partition("?")
        bucket, slash, key = rest.partition("/")
        account, _, bucket = bucket.rpartition("@")
        return cls(scheme, account, f"{bucket}{slash}{key}", options)

    @property
    def plain(self) -> str:
        """The URI without account and options."""
        return f"{self.scheme}://{self.path}"

    def at(self, path: str) -> str:
        """URI of another path in the same store, with account and options."""
        account = f"{self.account}@" if self.account else ""
        options = f"?{self.options}" if self.options else ""
        return f"{self.scheme}://{account}{path}{options}"

    def filesystem(self) -> Any:
        """The ``pyarrow.fs.FileSystem`` that holds it."""
        bucket = self.path.partition("/")[0]
        return _filesystem(self.at(bucket), f"{self.scheme}://{bucket}")


def is_remote(word: str) -> bool:
    """Whether a word names something in an object store."""
    scheme, mark, _ = word.partition("://")
    return bool(mark) and scheme in SCHEMES


def list_remote(uri: str, suffixes: Sequence[str]) -> list[str]:
    """URIs of the image, of the images of a folder, or of those that fit a pattern, sorted.

    Args:
        uri: a pattern has ``*`` behind the last slash; ``?`` begins the options.
        suffixes: of images, in small letters, for folders.

    Raises:
        DataError: there is nothing.
        StorageError: the store cannot be asked.
    """
    place = Place.of(uri)
    filesystem = place.filesystem()
    folder, _, last = place.path.rstrip("/").rpartition("/")
    pattern = last if "*" in last else None
    base = folder if pattern else place.path.rstrip("/")
    try:
        info = filesystem.get_file_info(base)
        if info.type == pyarrow.fs.FileType.File:
            return [uri]
        selector = pyarrow.fs.FileSelector(base, allow_not_found=True)
        infos = filesystem.get_file_info(selector) if base else []
    except OSError as error:
        raise _failure(place.plain, error) from error
    names = [entry.base_name for entry in infos if entry.type == pyarrow.fs.FileType.File]
    if pattern:
        found = sorted(fnmatch.filter(names, pattern))
    else:
        found = sorted(name for name in names if name.lower().endswith(tuple(suffixes)))
    if not found:
        raise DataError(
            f"{place.plain}: no object of this name, and no image below it; images end in "
            f"{', '.join(suffixes)}, and a pattern may have * behind the last slash"
        )
    return [place.at(f"{base}/{name}") for name in found]


def read_remote(uri: str, decoding: Decoding) -> NDArray[np.uint8]:
    """Pixels of an image, (h, w, 3) RGB.

    Raises:
        BadImageError: it cannot be fetched, or as :func:`orchestrator.data.decode.read_image`.
    """
    place = Place.of(uri)
    try:
        with place.filesystem().open_input_file(place.path) as file:
            size = file.size()
            if size > MAX_BYTES:
                raise BadImageError(f"{place.plain}: {size} bytes, allowed are {MAX_BYTES}")
            data = file.read()
    except (OSError, StorageError) as error:
        raise BadImageError(f"{place.plain}: cannot be read ({error})") from error
    try:
        return decode_image(data, decoding=decoding)
    except BadImageError as error:
        raise type(error)(f"{place.plain}: {error}") from error.__cause__


def stamps(uris: Sequence[str]) -> dict[str, str]:
    """Size and time of change of objects, by URI.

    Raises:
        DataError: one is not there.
        StorageError: the store cannot be asked.
    """
    by_store: dict[tuple[str, str, str, str], list[str]] = {}
    for uri in uris:
        place = Place.of(uri)
        bucket = place.path.partition("/")[0]
        by_store.setdefault((place.scheme, place.account, bucket, place.options), []).append(uri)
    found: dict[str, str] = {}
    for group in by_store.values():
        places = [Place.of(uri) for uri in group]
        try:
            infos = places[0].filesystem().get_file_info([place.path for place in places])
        except OSError as error:
            raise _failure(places[0].plain, error) from error
        for uri, place, info in zip(group, places, infos, strict=True):
            if info.type != pyarrow.fs.FileType.File:
                raise DataError(f"{place.plain}: there is no such object")
            found[uri] = f"{info.size} {info.mtime_ns}"
    return found


@lru_cache(maxsize=32)
def _filesystem(uri: str, plain: str) -> Any:
    """Opened once in a process, since opening may look up the region of a bucket."""
    try:
        return pyarrow.fs.FileSystem.from_uri(uri)[0]
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"{plain}: its options cannot be used ({error})") from error
    except OSError as error:
        raise _failure(plain, error) from error


def _failure(plain: str, error: OSError) -> StorageError:
    return StorageError(
        f"{plain}: the store cannot be asked ({error}). Next: see that the bucket exists and that "
        "its region and credentials are set"
    )
