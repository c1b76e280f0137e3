"""The largest batch: the search against memory that is known, and a real one on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.benchmark.fit import _lines, largest, worst_batch
from orchestrator.cli.main import main

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
