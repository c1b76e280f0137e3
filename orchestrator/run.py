"""``python -m orchestrator.run EXPERIMENT.yaml [key.path=value ...]``; see ``orchestrator run``."""

from __future__ import annotations

import sys

from orchestrator.cli._shared.exit import run_guarded
from orchestrator.cli.run import main

if __name__ == "__main__":
    sys.exit(run_guarded(lambda: main(sys.argv[1:])))
