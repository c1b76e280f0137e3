"""Ratios that benchmarks measured, kept in ``results.jsonl`` beside this file, and compared.

    python benchmarks/results.py

A benchmark calls :func:`keep` at its end with its ratios to a peer or a limit of the same run, so
that the machine's speed cancels out; larger is better. The command says which of them were lower in
the newest run of a benchmark than usual on this kind of processor. `make bench` does both; whether
the new lines are kept in the repository is for whoever ran it on an idle machine to decide.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.run_card import Hardware

FILE = Path(__file__).with_name("results.jsonl")
#: A ratio below this share of the median of the runs before is told.
SLOWER = 0.9


def keep(benchmark: str, ratios: Mapping[str, float]) -> None:
    """Append what a benchmark measured.

    Args:
        benchmark: its name, such as ``nms``.
        ratios: by what was measured; times as fast as a peer, or the share of a limit.
    """
    here = Hardware.here()
    line = {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": str(git_info() or "unknown"),
        "processor": here.cpu,
        "cores": here.cores,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
        "ratios": {name: round(ratio, 4) for name, ratio in ratios.items()},
    }
    with FILE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def compared(lines: Iterable[Mapping[str, Any]], processor: str) -> list[str]:
    """What the newest run of each benchmark says about those before it.

    Args:
        lines: as :func:`keep` writes them, oldest first.
        processor: whose runs are looked at.

    Returns:
        A line for each ratio that is lower than usual, and one for each benchmark.
    """
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["processor"] == processor:
            runs.setdefault(line["benchmark"], []).append(line)
    said = []
    for name, (*before, newest) in runs.items():
        known = {key: [r["ratios"][key] for r in before if key in r["ratios"]] for key in
                 newest["ratios"]}  # fmt: skip
        usual = {key: statistics.median(values) for key, values in known.items() if values}
        lower = [key for key in usual if newest["ratios"][key] < SLOWER * usual[key]]
        said += [
            f"{name}: slower: {key}: {newest['ratios'][key]:g}, usual {usual[key]:g}"
            for key in lower
        ]
        said.append(
            f"{name}: {len(lower)} of {len(usual)} ratios lower than usual, in {len(before)} "
            f"earlier runs on this processor; load {newest['load']}"
        )
    return said


def main() -> None:
    """Compare what is kept."""
    lines = FILE.read_text("utf-8").splitlines() if FILE.exists() else []
    said = compared(map(json.loads, lines), Hardware.here().cpu)
    print("\n".join(said or ["no benchmark has run on this processor yet"]))


if __name__ == "__main__":
    main()
