"""The largest batch: the search against memory that is known, and a real one on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from orchestrator.benchmark import fit
from orchestrator.benchmark.fit import _lines, largest, worst_batch
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.memory import wants_memory

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("each", [1, 7, 40])
@pytest.mark.parametrize("limit", [120, 200, 333, 1000, 5000])
@pytest.mark.parametrize("fails", [False, True])
def test_the_search_finds_the_last_number_that_fits_in_a_few_trials(
    each: int, limit: int, fails: bool
) -> None:
    tried: list[int] = []

    def trial(images: int) -> int | None:
        tried.append(images)
        peak = 100 + each * images
        return None if fails and peak > limit else peak

    found = largest(trial, limit, most=1024)
    expected = min((limit - 100) // each, 1024)
    assert found.images == (expected if expected >= 2 else 0)
    if found.images:
        assert found.peak == 100 + each * expected
    assert len(tried) <= 12


def test_memory_that_jumps_is_not_exceeded() -> None:
    def trial(images: int) -> int:
        return 100 + 10 * images + (500 if images > 20 else 0)

    found = largest(trial, 500, most=1024)
    assert found.images == 20
    assert found.peak == 300


def test_lines_are_of_the_experiments_batch_and_of_the_largest() -> None:
    own, most = _lines(5, 32, 2)
    # Of 16 images a worker computes 4 at a time: 5 do not divide them, and 8 do not fit.
    assert own == "batch_size: 32\naccumulate: 4"
    assert most.startswith("batch_size: 10  #")


def test_lines_of_an_experiment_with_shards_are_about_those() -> None:
    """Pieces and a fixed number of shards exclude each other; what is printed can be pasted."""
    lines = _lines(5, 32, 2, shards=4)
    # Shards of 8 images do not fit, and 16 of 2 would be more than it takes.
    assert lines[0] == "batch_size: 32\nvirtual_shards: 8"
    assert lines[1].startswith("batch_size: 20  #")
    assert lines[1].endswith("\nvirtual_shards: 4")
    assert _lines(8, 32, 2, shards=4)[0] == "batch_size: 32\nvirtual_shards: 4"
    for section in lines:
        words = [f"train.{key}={value}" for key, value in yaml.safe_load(section).items()]
        load_experiment(ROOT / "experiments/quickstart.yaml", ["cluster.workers=2", *words])


@pytest.mark.parametrize(
    ("error", "wants"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("NPU out of memory. Tried to allocate 138.00 MiB (NPU 0; 32 GiB)"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("Only contiguous_format or preserve_format is a memory format here"), False),
        (ValueError("out of memory"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_trial_does_not_fit_for_want_of_memory_alone(
    monkeypatch: pytest.MonkeyPatch, error: Exception, wants: bool
) -> None:
    assert wants_memory(error) is wants
    experiment = load_experiment(ROOT / "experiments/quickstart.yaml", [])
    trial = fit._Trials(experiment, "cpu", 5, 10)

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(fit._Trials, "_steps", fails)
    if wants:
        assert trial.run(2) is None
    else:
        with pytest.raises(type(error)):
            trial.run(2)


class Killed(fit._Trials):
    """Ends as the system ends a process that takes too much, or as one that crashes."""

    def run(self, images: int) -> int | None:
        os.kill(os.getpid(), signal.SIGKILL if images == 2 else signal.SIGTERM)
        return 0


class Refused(fit._Trials):
    def run(self, images: int) -> int | None:
        raise ConfigError(f"no {images} here")


def test_a_process_that_the_system_ends_has_taken_too_much_and_no_other() -> None:
    experiment = load_experiment(ROOT / "experiments/quickstart.yaml", [])
    trial = Killed(experiment, "cpu", 5, 10)
    assert trial(2) is None
    with pytest.raises(OrchestratorError, match="3 images ended with the code -15 and without"):
        trial(3)
    with pytest.raises(ConfigError, match="no 4 here"):
        Refused(experiment, "cpu", 5, 10)(4)


#: Takes 300 MB, then says what a process that it starts says of itself.
LARGE = """
import subprocess, sys
held = b"1" * 300_000_000
child = "from orchestrator.memory import peak_bytes; print(peak_bytes())"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of a program alone")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert 5e6 < int(done.stdout) < 100e6


def test_a_worst_batch_has_a_box_in_every_slot() -> None:
    batch = worst_batch(1, 3, (40, 60), 25)
    assert batch.valid.all()
    assert batch.images.shape == (3, 40, 60, 3)
    assert (batch.boxes[..., 2:] > batch.boxes[..., :2]).all()
    assert (batch.boxes[..., [0, 2]] <= 60).all()


def test_a_cpu_has_to_be_given_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(ROOT / "experiments/quickstart.yaml"), "--boxes", "5"]) == 64
    assert "--memory: a CPU shares the machine's memory" in capsys.readouterr().err


@pytest.mark.slow
def test_an_experiment_is_fitted_on_a_cpu() -> None:
    command = [sys.executable, "-m", "orchestrator.cli.main", "fit"]
    command += [str(ROOT / "experiments/quickstart.yaml"), "--boxes", "20"]
    command += ["--classes", "10", "--memory", "2e9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "images at a time, 20 boxes in each" in done.stdout
    assert "accumulate:" in done.stdout
    assert done.stderr.startswith("tried 2 images: ")
