"""Prints, as JSON, by how many bytes the peak of memory has grown after each entry.

In a process of its own, since a peak never shrinks: that of a test suite would hide every other.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path

from catalogue import CASES
from catalogue_case import outcome


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main(folder: Path) -> None:
    """Try every entry in a folder of its own below ``folder``."""
    warnings.simplefilter("ignore")
    growth = {}
    start = peak()
    for number, case in enumerate(CASES):
        place = folder / str(number)
        place.mkdir()
        outcome(case.build(place))
        growth[str(case)] = peak() - start
    json.dump(growth, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
