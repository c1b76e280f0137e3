"""``python -m orchestrator VERB``: the console script, where that is not on the ``PATH``."""

import sys

from orchestrator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
