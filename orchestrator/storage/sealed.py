"""Sealed JSON files, which say what kind they are and notice any change of their bytes.

A sealed file carries the SHA-256 of its own canonical text and is accepted only when its bytes are
exactly what sealing its content again gives: any flipped, lost or added bit is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SEAL_KEY = "sha256"
_KIND_KEY = "kind"


class UnusableError(Exception):
    """The bytes of a commit, or of a file beside it, are not those that were written.

    What could not be read just now, which may be as good as ever, is an OSError instead.
    """


def seal(kind: str, tree: Mapping[str, Any]) -> bytes:
    """Canonical JSON of ``tree`` with what ``kind`` of file it is and its own SHA-256 in it."""
    tree = {**tree, _KIND_KEY: kind}
    digest = hashlib.sha256(_canonical(tree)).hexdigest()
    return _canonical({**tree, _SEAL_KEY: digest}) + b"\n"


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """Inverse of :func:`seal`.

    Raises:
        UnusableError: these are not the bytes that were sealed, or it is another kind of file.
    """
    try:
        tree = json.loads(data)
        tree.pop(_SEAL_KEY)
        found = tree.pop(_KIND_KEY)
        intact = seal(found, tree) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnusableError("is not a sealed JSON file") from error
    if not intact:
        raise UnusableError("does not match its own digest")
    if found != kind:
        raise UnusableError(f"is a {found}, not a {kind}")
    sealed: dict[str, Any] = tree
    return sealed


def _canonical(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
