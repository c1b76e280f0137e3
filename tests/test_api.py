"""What ``import orchestrator`` offers, on a run that exists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import orchestrator
from orchestrator.data.decode import read_image
from orchestrator.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def detector(small_run: Path) -> orchestrator.TrainedDetector:
    return orchestrator.TrainedDetector(small_run, accelerator="cpu", batch_size=2)


def image_of(detector: orchestrator.TrainedDetector) -> Path:
    data = detector.experiment.experiment.data
    return sorted((Path(data.root) / str(data.val.images)).iterdir())[0]


def test_paths_and_pixels_give_the_same_predictions(
    detector: orchestrator.TrainedDetector,
) -> None:
    path = image_of(detector)
    pixels = read_image(path)
    of_path, of_pixels, again = detector.predict([path, pixels, str(path)], score=0.0, limit=7)
    assert len(of_path) == 7
    for other in (of_pixels, again):
        assert np.array_equal(of_path.boxes, other.boxes)
        assert np.array_equal(of_path.scores, other.scores)
    assert (np.diff(of_path.scores) <= 0).all()
    height, width = pixels.shape[:2]
    assert (of_path.boxes >= 0).all()
    assert (of_path.boxes <= [width, height, width, height]).all()
    assert of_path.names == detector.names
    (few,) = detector.predict([path], score=float(of_path.scores[2]), limit=100)
    assert np.array_equal(few.scores, of_path.scores[:2])


def test_predictions_are_drawn_on_a_copy(detector: orchestrator.TrainedDetector) -> None:
    path = image_of(detector)
    pixels = read_image(path)
    (found,) = detector.predict([path], score=0.0, limit=1)
    drawn = orchestrator.draw(pixels, found)
    changed = np.argwhere((drawn != pixels).any(axis=2))
    assert len(changed)
    assert np.array_equal(pixels, read_image(path))
    left, top, right, bottom = found.boxes[0]
    # The box is drawn along its edges: some pixel of its lower edge has changed.
    assert (abs(changed[:, 0] - bottom) <= 3).any()
    assert left <= right
    assert top <= bottom


def test_evaluation_gives_what_the_run_recorded(
    detector: orchestrator.TrainedDetector, small_run: Path
) -> None:
    recorded = json.loads((small_run / "result.json").read_text())["best_metrics"]
    numbers = detector.evaluate().numbers
    assert numbers["AP"] == recorded.get("AP", recorded.get("val/AP"))


def test_what_is_no_image_is_refused(
    detector: orchestrator.TrainedDetector, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"shape \(4, 4\) and type uint8: allowed is \(h, w, 3\)"):
        detector.predict([np.zeros((4, 4), np.uint8)])
    with pytest.raises(DataError, match=r"none\.jpg"):
        detector.predict([tmp_path / "none.jpg"])


def test_arguments_that_mean_nothing_are_refused(
    detector: orchestrator.TrainedDetector, small_run: Path
) -> None:
    path = image_of(detector)
    one = read_image(path)
    for image in (str(path), path, one, one[..., 0]):
        with pytest.raises(ConfigError, match="takes several images"):
            detector.predict(image)  # type: ignore[arg-type]
    for options in ({"score": -0.1}, {"score": float("nan")}, {"score": 25}, {"limit": 0}):
        with pytest.raises(ConfigError, match="allowed are scores from 0 to 1 and limits from 1"):
            detector.predict([path], **options)
    with pytest.raises(ConfigError, match=r"shape \(0, 4, 3\)"):
        detector.predict([np.zeros((0, 4, 3), np.uint8)])
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size={size}: allowed is 1 and more"):
            orchestrator.TrainedDetector(small_run, batch_size=size)
    with pytest.raises(ConfigError, match="split='test': allowed are 'train' and 'val'"):
        detector.evaluate("test")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cuda"):
        orchestrator.TrainedDetector(small_run, accelerator="cuda")
    assert detector.predict([]) == []
    (of_stack,) = detector.predict(one[None])
    (of_list,) = detector.predict([one])
    assert np.array_equal(of_stack.boxes, of_list.boxes)


def test_importing_costs_nothing_and_names_are_listed() -> None:
    program = (
        "import sys, orchestrator\n"
        "assert {'torch', 'ray', 'numpy', 'pydantic'}.isdisjoint(sys.modules)\n"
        "assert orchestrator.__version__\n"
        "assert all(getattr(orchestrator, name) for name in orchestrator.__all__)\n"
        "orchestrator.nothing\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stderr


def test_an_experiment_with_a_sweep_is_not_run_as_one() -> None:
    path = Path(__file__).parents[1] / "experiments" / "sweep_quickstart.yaml"
    with pytest.raises(ConfigError, match="has a sweep"):
        orchestrator.run(path)
    with pytest.raises(ConfigError, match="resolved already"):
        orchestrator.run(orchestrator.load(path), "seed=1")
