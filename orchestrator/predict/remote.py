"""Images in object stores, ``s3://bucket/key`` and ``gs://bucket/key``, through ``pyarrow.fs``."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray

from orchestrator.data.decode import (
    BadImageError,
    Decoding,
    decode_image,
    most_bytes,
    naming_image,
)
from orchestrator.errors import DataError
from orchestrator.layouts.files import is_hidden
from orchestrator.storage.address import Place, open_store, unreachable


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
    filesystem = _store_of(place)
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
        raise unreachable(place.plain, error) from error
    names = [entry.base_name for entry in infos if entry.type == pyarrow.fs.FileType.File]
    if pattern:
        found = sorted(fnmatch.filter(names, pattern))
    else:
        shown = (name for name in names if not is_hidden(name))
        found = sorted(name for name in shown if name.lower().endswith(tuple(suffixes)))
    if not found:
        raise DataError(
            f"{place.plain}: no object of this name, and no image below it; images end in "
            f"{', '.join(suffixes)}, and a pattern may have * behind the last slash"
        )
    return [place.at(f"{base}/{name}") for name in found]


def read_remote(uri: str, decoding: Decoding) -> NDArray[np.uint8]:
    """Pixels of an image, (h, w, 3) RGB.

    Raises:
        BadImageError: it is gone, or as :func:`orchestrator.data.decode.read_image`.
        StorageError: the store does not answer: then nothing is known of the image.
    """
    place = Place.of(uri)
    allowed = most_bytes(decoding.max_pixels)
    try:
        with _store_of(place).open_input_file(place.path) as file:
            size = file.size()
            if size > allowed:
                raise BadImageError(f"{place.plain}: {size} bytes, allowed are {allowed}")
            data = file.read()
    except FileNotFoundError as error:
        raise BadImageError(f"{place.plain}: there is no such object any more") from error
    except OSError as error:
        raise unreachable(place.plain, error) from error
    with naming_image(place.plain):
        return decode_image(data, decoding=decoding)


def stamps(uris: Sequence[str]) -> dict[str, str]:
    """Size and time of change of objects, by URI.

    Raises:
        DataError: one is not there.
        StorageError: the store cannot be asked.
    """
    by_store: dict[tuple[str, str, str, str], list[str]] = {}
    for uri in uris:
        place = Place.of(uri)
        key = (place.scheme, place.account, place.bucket, place.options)
        by_store.setdefault(key, []).append(uri)
    found: dict[str, str] = {}
    for group in by_store.values():
        places = [Place.of(uri) for uri in group]
        try:
            infos = _store_of(places[0]).get_file_info([place.path for place in places])
        except OSError as error:
            raise unreachable(places[0].plain, error) from error
        for uri, place, info in zip(group, places, infos, strict=True):
            if info.type != pyarrow.fs.FileType.File:
                raise DataError(f"{place.plain}: there is no such object")
            found[uri] = f"{info.size} {info.mtime_ns}"
    return found


def _store_of(place: Place) -> Any:
    """The ``pyarrow.fs.FileSystem`` that holds a place."""
    return _filesystem(place.at(place.bucket))


def _filesystem(uri: str) -> Any:
    return open_store(uri)[0]
