"""Write the floors of the direct dependencies as constraints: what VERSIONS=floor installs.

Reads setup.cfg beside this folder and writes one ``name==floor`` a line to standard output, extras
included; what the dependencies need themselves is left to pip. Runs before anything is installed,
so on the standard library alone.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"
#: The extra that names a torch of its own and is installed without constraints.
ALONE = "npu"


def floors(setup: Path = SETUP) -> dict[str, str]:
    """Lowest allowed version by name of the package; packages without a floor are left out."""
    parser = configparser.ConfigParser()
    parser.read(setup)
    texts = [parser["options"]["install_requires"]]
    texts += [text for name, text in parser["options.extras_require"].items() if name != ALONE]
    pattern = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)$", flags=re.MULTILINE)
    return dict(match.groups() for text in texts for match in pattern.finditer(text))


if __name__ == "__main__":
    if sys.version_info >= (3, 13):
        sys.exit("VERSIONS=floor needs Python 3.10 to 3.12: some floors have no build for 3.13")
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(floors().items()))
