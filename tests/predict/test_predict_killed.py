"""``orchestrator predict`` killed for good, in processes of its own: SIGKILL leaves no say."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.cli.main import main
from orchestrator.predict.prediction import work_folder

IMAGES = 1000
BATCH = 4


@pytest.fixture(scope="module")
def thousand(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thousand")
    rng = np.random.default_rng(11)
    for number in range(IMAGES):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        pixels = rng.integers(100, 156, (height, width, 3)).astype(np.uint8)
        pixels[5:30, 8:35] = 250 if number % 2 else 5
        cv2.imwrite(str(folder / f"{number:04d}.png"), pixels)
    return folder


@pytest.fixture(scope="module")
def unbroken(small_run, thousand, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "p.json"
    assert main(words(small_run, thousand, out)) == 0
    return out


def words(run: Path, images: Path, out: Path) -> list[str]:
    return ["predict", str(run), str(images), "--output", str(out), "--batch", str(BATCH)]


def parts_of(out: Path) -> dict[Path, tuple[int, int]]:
    """Finished shares, by when and where they were written."""
    files = work_folder(out).glob("*/part-*.json")
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_killed_twice_it_ends_as_the_unbroken_one(small_run, thousand, unbroken, tmp_path, workers):
    out = tmp_path / "broken.json"
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(sys.executable, "-m", "orchestrator.cli.main"),
        *words(small_run, thousand, out),
        *("--workers", str(workers)),
    ]
    moments = random.Random(3)
    finished: dict[Path, tuple[int, int]] = {}
    for _ in range(2):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        enough = len(finished) + moments.randrange(3, 9)
        while process.poll() is None and len(parts_of(out)) < enough:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
        now = parts_of(out)
        # What was finished is there as it was, and was not done again.
        assert finished.items() <= now.items()
        assert len(now) > len(finished)
        finished = now
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == unbroken.read_bytes()
    assert list(json.loads(out.read_text())) == sorted(str(p) for p in thousand.iterdir())
    assert not work_folder(out).exists()
