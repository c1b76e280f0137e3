"""Reading files of a run folder, or foreign ones, whatever has become of them."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

#: Of a JSON file that is read whole.
_MAX_JSON_BYTES = 1 << 30


def open_regular(path: Path) -> BinaryIO:
    """Open a file, but no pipe or device: those may have no end, and opening one may never end.

    Raises:
        OSError: it is none, or cannot be opened.
        ValueError: the path holds a null byte.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    return path.open("rb")


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is none, or nested more deeply than anything that was meant to be read.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: it cannot be read, is no file or too large.
        ValueError: it is no JSON.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_JSON_BYTES:
            raise OSError(errno.EFBIG, f"{size} bytes, allowed are {_MAX_JSON_BYTES}", str(path))
        return parse_json(file.read())
