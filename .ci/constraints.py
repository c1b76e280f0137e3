"""Write constraints.txt from the report of ``pip install --dry-run --report``.

Reads the report on standard input, writes one ``name==version`` a line to standard output. Neither
addresses nor hashes are kept: a mirror and the public index serve the same versions.
"""

from __future__ import annotations

import json
import re
import sys

PROJECT = "detection-orchestrator"

HEADER = """\
# The versions this project is tested with, on Python 3.11. They serve 3.11 and newer: several of
# these packages have dropped 3.10, where pip is left to choose from the floors in setup.cfg.
# Made by `make constraints`, which resolves the newest allowed versions; run `make test` after it.
# Without torch-npu, which names one torch of its own: install the npu extra without this file.
"""


def main() -> None:
    """Turn the report on standard input into the file on standard output."""
    packages = [item["metadata"] for item in json.load(sys.stdin)["install"]]
    pins = {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in packages}
    pins.pop(PROJECT)
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items())]
    sys.stdout.write(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
