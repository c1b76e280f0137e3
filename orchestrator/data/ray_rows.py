"""What is said and raised in an execution of Ray Data, and what comes of it in the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from orchestrator.errors import ConfigError, DataError, SecurityError, StorageError

Rows: TypeAlias = dict[str, Any]

_KINDS = (ConfigError, DataError, SecurityError, StorageError)


def hush_ray_data() -> None:
    """Keep what every execution of Ray Data says of itself out of the log of the run."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def rows_or_error(make: Callable[[], Rows]) -> Rows:
    """What a map stage makes, or what is wrong with the data, which travels as data.

    Of an exception Ray would keep the text alone, and print a page about its own insides.
    """
    try:
        return make()
    except _KINDS as error:
        kind = next(number for number, kind in enumerate(_KINDS) if isinstance(error, kind))
        return {"error": np.array([kind]), "message": np.array([str(error)])}


def require_rows(rows: Rows) -> None:
    """Raise what :func:`rows_or_error` found wrong, if it did."""
    if "error" in rows:
        raise _KINDS[int(rows["error"][0])](str(rows["message"][0]))
