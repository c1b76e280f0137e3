"""``orchestrator run``: the same as ``python -m orchestrator.run``."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run an experiment."""
    from orchestrator.run import main as run

    return run(argv)
