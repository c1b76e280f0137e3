"""``orchestrator convert``: foreign files into this program's; one line below for each kind."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cli import convert_data, convert_weights
from orchestrator.cli._shared.verbs import Verb, dispatch

KINDS: dict[str, Verb] = {
    "data": Verb(convert_data.main, "a data set into another annotation format"),
    "weights": Verb(convert_weights.main, "published weights into a file this program trains from"),
}


def main(argv: Sequence[str]) -> int:
    """Convert one kind of file."""
    return dispatch("orchestrator convert", KINDS, argv)
