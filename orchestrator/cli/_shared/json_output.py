"""``--json``: what a verb did as one JSON object, for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take ``--json``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on standard output, and everything else on standard error",
    )


@contextmanager
def json_output(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """Within it, what is printed for people goes to standard error where JSON is wanted.

    Yields:
        A function that takes the document, of which one is printed at the end. Where JSON is not
        wanted it does nothing. A verb that raises prints none: its exit code and its message on
        standard error say why.
    """
    documents: list[Any] = []
    if not wanted:
        yield documents.append
        return
    with redirect_stdout(sys.stderr):
        yield documents.append
    # In ASCII, so that it is JSON whatever the encoding of standard output.
    print(json.dumps(documents[-1], indent=1, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
