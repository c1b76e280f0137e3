"""Tests of what is promised on a CPU, once more with the simulated NPU under them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import simulated_npu

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    simulated_npu.missing() is not None, reason=simulated_npu.missing() or ""
)

#: Ends with the number of operators that this process had the device do.
AGAIN = """
import sys
import pytest
from tests.support import simulated_npu
status = pytest.main(["-p", "no:cacheprovider", *sys.argv[1:]])
simulated_npu.install()
print(len(simulated_npu.counts().operators))
sys.exit(status)
"""


def again(*tests: str) -> list[str]:
    """Run tests with the device in the place of the CPU; what was printed, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, *tests],
        cwd=ROOT,
        env=os.environ | simulated_npu.surroundings() | {"ORCHESTRATOR_TEST_DEVICE": "npu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def test_numbers_that_are_not_finite_change_nothing() -> None:
    *_, summary, operators = again("tests/training/test_nonfinite.py")
    assert " passed" in summary
    assert int(summary.split()[0]) >= 108
    assert int(operators) > 20


@pytest.mark.slow
def test_killed_ranks_end_in_the_bits_of_an_unbroken_run() -> None:
    *_, summary, _ = again("tests/chaos/test_chaos_kills.py", "-k", "few_kills")
    assert summary.startswith("2 passed")
