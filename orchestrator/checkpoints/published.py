"""Published weights by name: ``torchvision:ssd300_vgg16`` to a file on this machine.

Addresses, and the beginning of the SHA-256 that is part of every file's name, are those of
torchvision's own tables. Files lie where torchvision itself keeps them
(``$XDG_CACHE_HOME/torch/hub/checkpoints``), so one that is there already is not fetched again. A
file counts only once its bytes have the digest of its name.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from orchestrator.data.files import sha256_of
from orchestrator.errors import ConfigError, DataError, StorageError, did_you_mean
from orchestrator.storage.disk_errors import disk_refusal

SCHEME = "torchvision:"
#: Models of torchvision whose weights one of the detectors has a place for.
MODELS = (
    "ssd300_vgg16",
    "fasterrcnn_resnet50_fpn",
    "resnet50",
    "resnet101",
    "resnet152",
    "vgg16",
    "mobilenet_v2",
)
#: Address of a folder with the same files, for machines that reach no other.
MIRROR = "ORCHESTRATOR_WEIGHTS_MIRROR"
#: Half a network: its classifier, which SSD's fc6 and fc7 are cut from, is not a number.
_UNUSABLE = ("IMAGENET1K_FEATURES",)
_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0


class Published(NamedTuple):
    """A file of weights that somebody publishes.

    Attributes:
        url: address.
        sha256: first hexadecimal digits of the SHA-256 of its bytes.
    """

    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file lies on this machine once it was fetched."""
        import torch.hub

        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(self.url).path).name


def is_published(location: str) -> bool:
    """Whether a location is the name of published weights."""
    return location.startswith(SCHEME)


def find_published(location: str) -> Published:
    """Address and digest of ``torchvision:MODEL`` or ``torchvision:MODEL.WEIGHTS``.

    Without a name, the weights are those that torchvision calls the default of the model.

    Raises:
        ConfigError: there is no such model, or there are no such weights.
    """
    from torchvision.models import get_model_weights

    model, _, version = location.removeprefix(SCHEME).partition(".")
    if model not in MODELS:
        hint = did_you_mean(model, MODELS, like=f"'{SCHEME}{{}}'")
        raise ConfigError(
            f"found {location!r}, allowed after {SCHEME} are {', '.join(MODELS)}{hint}"
        )
    table: Any = get_model_weights(model)
    versions = {one.name: one for one in table if one.name not in _UNUSABLE}
    if version and version not in versions:
        raise ConfigError(
            f"found {location!r}, allowed after {SCHEME}{model}. are {', '.join(versions)}"
        )
    url = str((versions[version] if version else table.DEFAULT).url)
    digest = _DIGEST.search(url)
    if digest is None:
        raise DataError(f"{location}: {url} has no digest in its name, so it cannot be verified")
    return Published(url, digest[1])


def local_path(location: str) -> Path:
    """The file of ``train.init_from``: a path as it is, or published weights, fetched if need be.

    Raises:
        ConfigError: the name is not known, or it is an address.
        DataError: it can neither be found here nor be fetched, or has other bytes than published.
        StorageError: it was to be fetched, and cannot be kept.
    """
    if "://" in location:
        raise ConfigError(
            f"found {location!r}, allowed are a path and {SCHEME} with one of {', '.join(MODELS)}. "
            "Next: copy it to a folder that every node sees, and name the file"
        )
    if not is_published(location):
        return Path(location)
    published = find_published(location)
    if published.path.is_file():
        _require_digest(published, published.path, sha256_of(published.path))
        return published.path
    return _fetch(published, location)


def expected_path(location: str) -> Path:
    """Like :func:`local_path`, without fetching anything: where the file lies, or would."""
    return find_published(location).path if is_published(location) else Path(location)


def is_within_reach(location: str, *, timeout: float = 3.0) -> bool:
    """Whether published weights are here, or their address answers."""
    published = find_published(location)
    if published.path.is_file():
        return True
    request = urllib.request.Request(_address(published), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _address(published: Published) -> str:
    mirror = os.environ.get(MIRROR)
    return f"{mirror.rstrip('/')}/{published.path.name}" if mirror else published.url


def _fetch(published: Published, location: str) -> Path:
    url, path = _address(published), published.path
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    print(f"{location}: fetching {url} to {path.parent}", file=sys.stderr, flush=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _download(url, draft)
        _require_digest(published, path, digest)
        draft.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if _is_of_the_disk(error, draft):
            raise StorageError(
                f"{location}: {path.parent} cannot be written to ({_reason(error)}). Next: make "
                "room there, or let TORCH_HOME name a folder that can be written; or fetch "
                f"{url} somewhere else and name the file"
            ) from error
        why = f"it answers {error.code}" if isinstance(error, HTTPError) else _reason(error)
        raise DataError(
            f"{location} could not be fetched from {url} ({why})\n"
            f"Next: fetch it where there is a network and put it at {path}, or name the file "
            f"instead; {MIRROR}=ADDRESS names a folder of your own network"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return path


def _is_of_the_disk(error: Exception, draft: Path) -> bool:
    """Whether the file could not be kept, rather than fetched."""
    named = getattr(error, "filename", None)  # By HTTPError it is the address.
    inside = isinstance(named, str) and Path(named) in (draft, *draft.parents)
    return inside or disk_refusal(error) is not None


def _reason(error: Exception) -> str:
    said = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(said or error) or type(error).__name__


def _download(url: str, draft: Path) -> str:
    """Write what is at ``url`` to a file and return its SHA-256.

    Raises:
        OSError: it cannot be read to its end.
    """
    digest, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, draft.open("wb") as file:
        expected = answer.headers.get("Content-Length")
        while chunk := answer.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if expected is not None and size != int(expected):
        raise OSError(f"it ended after {size} of {expected} bytes")
    return digest.hexdigest()


def _require_digest(published: Published, path: Path, found: str) -> None:
    if not found.startswith(published.sha256):
        raise DataError(
            f"{path} has sha256 {found[:16]}, but {published.url} is published "
            f"with {published.sha256}…\nNext: remove it and fetch it again"
        )
