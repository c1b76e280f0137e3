"""The numerical tests under every set of vector instructions of this processor: one line each.

    python tests/portable.py [PROCESSES [ARGUMENT_OF_PYTEST ...]]

oneDNN and ATen choose kernels by what the processor can do, and kernels differ in the order of
their sums: a test that holds with one set holds on one kind of processor. Both read their variable
once, so each setting is a process of its own; PROCESSES (2) of them run at a time. Ends with 1 when
a setting fails, after the output of its tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Everything in them that starts no cluster and takes no minute; of evaluation, which else is NumPy
#: and our kernels like tests/native, what is made of a run that was trained.
TESTS = (
    "tests/detectors",
    "tests/training",
    "tests/evaluation/test_marks.py",
    "tests/evaluation/test_report.py",
)
WHICH = "not ray and not slow and not chaos"
#: Names, counts, orders, who waits for whom, and runs that are compared with themselves: on those
#: no kernel has a say.
NO_ARITHMETIC = (
    "tests/detectors/test_detector_config.py",
    "tests/detectors/test_published.py",
    "tests/detectors/test_weights_files.py",
    "tests/detectors/test_weights_layouts.py",
    "tests/training/test_auto_shards.py",
    "tests/training/test_device_update.py",
    "tests/training/test_early_stopping.py",
    "tests/training/test_engine.py",
    "tests/training/test_nonfinite.py",
    "tests/training/test_ordered_sum.py",
    "tests/training/test_out_of_memory.py",
    "tests/training/test_overflows.py",
    "tests/training/test_pieces.py",
    "tests/training/test_predictor.py",
    "tests/training/test_schedules.py",
    "tests/training/test_shared_state.py",
    "tests/training/test_training_on_shards.py",
    "tests/training/test_two_canvases.py",
    "tests/training/test_validation.py",
    "tests/training/test_virtual_shards.py",
)

#: Compilers and exporters are the same whatever the instructions are, and so are shapes and pages.
LEFT_OUT = (
    "not exports and not graph and not any_number_of_classes and not cuda_devices and not page"
)
ALL = [*TESTS, *(f"--ignore={file}" for file in NO_ARITHMETIC), "-k", LEFT_OUT]

ONEDNN, ATEN = "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"
#: From the fewest instructions to the most; of oneDNN's, DEFAULT is all that there are.
ONEDNN_SETS = ("SSE41", "AVX2", "DEFAULT")
ATEN_SETS = ("default", "avx2", "avx512")


def aten_sets() -> tuple[str, ...]:
    """Those of ``ATEN_SETS`` that this processor has."""
    most = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"],
        env={name: value for name, value in os.environ.items() if name != ATEN},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if most.lower() not in ATEN_SETS:
        return ATEN_SETS[:1]
    return ATEN_SETS[: ATEN_SETS.index(most.lower()) + 1]


def run(onednn: str, aten: str, arguments: list[str]) -> tuple[bool, float, str]:
    """Whether the tests pass under one setting, the minutes they take, and what they say."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", WHICH, *arguments],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1", **os.environ, ONEDNN: onednn, ATEN: aten},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode == 0, (time.monotonic() - began) / 60, done.stdout.strip()


def main(processes: int, arguments: list[str]) -> int:
    """Run every setting; the exit code."""
    began = time.monotonic()
    failed = 0
    with ThreadPoolExecutor(processes) as pool:
        jobs = {
            pool.submit(run, onednn, aten, arguments): f"{ONEDNN}={onednn:7}  {ATEN}={aten:7}"
            for onednn, aten in product(ONEDNN_SETS, aten_sets())
        }
        for job in as_completed(jobs):
            passed, minutes, said = job.result()
            failed += not passed
            if not passed:
                print(said)
            last = said.splitlines()[-1] if said else "nothing was said"
            print(f"{jobs[job]}  {minutes:4.1f} min  {last.strip('= ')}", flush=True)
    minutes = (time.monotonic() - began) / 60
    print(f"{failed} of {len(jobs)} settings failed; {minutes:.1f} minutes")
    return int(failed > 0)


if __name__ == "__main__":
    words = sys.argv[1:] or ["2"]
    raise SystemExit(main(max(1, int(words[0])), words[1:] or ALL))
