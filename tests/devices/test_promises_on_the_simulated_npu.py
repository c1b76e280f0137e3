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


@pytest.mark.slow
def test_numbers_that_are_not_finite_change_nothing() -> None:
    *_, summary, operators = again("tests/training/test_nonfinite.py")
    assert " passed" in summary
    assert int(summary.split()[0]) >= 108
    assert int(operators) > 20


@pytest.mark.slow
def test_killed_ranks_end_in_the_bits_of_an_unbroken_run() -> None:
    *_, summary, _ = again("tests/chaos/test_chaos_kills.py", "-k", "few_kills")
    assert summary.startswith("2 passed")


#: Twelve steps without a commit among them; prints what the host asked for, in order.
ORDER = """
import sys
from pathlib import Path
from unittest import mock
from orchestrator import accelerators
from orchestrator.data.stream.local import LocalStream
from orchestrator.training import feeding, session
from orchestrator.training.session import run_rank
from orchestrator.training.stepper import Stepper
from tests.support import simulated_npu
from tests.support.chaos_run import DEVICE, small_detector, small_plan

def told(owner, name, what):
    true = getattr(owner, name)
    def call(*arguments, **more):
        before = simulated_npu.counts()
        result = true(*arguments, **more)
        after = simulated_npu.counts()
        print(what(*arguments), after.awaited_copies - before.awaited_copies,
              after.copies - before.copies, after.copies_beside - before.copies_beside)
        return result
    return mock.patch.object(owner, name, call)

plan = small_plan(Path(sys.argv[1]) / "run", Path(sys.argv[2]),
                  "train.checkpoint={every_epochs: 2}", "train.evaluate_every_epochs=2")
DEVICE.device()
with (mock.patch.object(session, "build_detector", small_detector),
      told(feeding, "inputs_of", lambda batch, device: f"copy {batch.step}"),
      told(Stepper, "begin", lambda self, batch: f"begin {batch.step}"),
      told(Stepper, "read", lambda self, step: f"read {step.serial}")):
    run_rank(plan.job, LocalStream(plan.batches), accelerator=DEVICE)
"""


def test_a_batch_is_copied_beside_the_step_before_it(tmp_path: Path, digits: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORDER, str(tmp_path), str(digits)],
        cwd=ROOT,
        env=os.environ | simulated_npu.surroundings() | {"ORCHESTRATOR_TEST_DEVICE": "npu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    calls = [line.split() for line in done.stdout.splitlines()]
    order = [(what, int(step)) for what, step, *_ in calls]
    for step in range(11):
        # The host asks for the copy after the step before, and before it waits for that one's end.
        begun, copied, read = (
            order.index(call) for call in (("begin", step), ("copy", step + 1), ("read", step))
        )
        assert begun < copied < read
    for what, _, *copies in calls:
        # Images, boxes, labels and which of them there are; nothing else, and nothing is awaited.
        assert copies == (["0", "4", "4"] if what == "copy" else ["0", "0", "0"])
