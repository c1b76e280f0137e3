"""Training, evaluation and prediction in tiles: numbers and boxes are those of whole images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detectors.config import PostprocessConfig
from detectors.structures import Candidates
from orchestrator.cli.main import main
from orchestrator.config.augmentations import NoAugmentation
from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.tiling import Tiles
from orchestrator.errors import ConfigError
from orchestrator.predict.predictor import DetectOptions, detect
from tests.support.small_run import make_data, make_run

SLOTS = 64
TILES = (
    "data.tiles.size=[80, 80]",
    "data.tiles.overlap=40",
    "data.tiles.inside=0.6",
    "train.epochs=2",
)


def blobs(images: np.ndarray) -> Candidates:
    """A network that finds every bright spot, as far as it sees it."""
    boxes, scores = torch.zeros(len(images), SLOTS, 4), torch.zeros(len(images), SLOTS, 1)
    for row, image in enumerate(images):
        mask = (image[..., 0] > 128).astype(np.uint8)
        found = cv2.connectedComponentsWithStats(mask)[2][1:]
        for slot, (x, y, w, h, area) in enumerate(found.tolist()):
            boxes[row, slot] = torch.tensor([x, y, x + w, y + h])
            scores[row, slot] = min(0.99, 0.5 + area / 1000)
    return Candidates(boxes, scores)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_bright_spots_of_large_images_are_found_once(batch: int) -> None:
    rng = np.random.default_rng(1)
    images, truth = [], []
    for height, width in ((300, 420), (90, 90), (64, 500)):
        image = np.zeros((height, width, 3), np.uint8)
        boxes = set()
        for _ in range(40):
            x, y = int(rng.integers(0, width - 12)), int(rng.integers(0, height - 12))
            if not image[max(0, y - 3) : y + 15, max(0, x - 3) : x + 15].any():
                image[y : y + 12, x : x + 12] = 255
                boxes.add((x, y, x + 12, y + 12))
        images.append(image)
        truth.append(boxes)
    how = DetectOptions(
        PostprocessConfig(score_threshold=0.1, plus_one=False), tiles=Tiles((100, 100), overlap=24)
    )
    prepare = build_augment(NoAugmentation(), (100, 100)).plain()
    found = detect(blobs, images[:1], how, prepare=prepare, batch_size=batch)
    assert {tuple(box) for box in found[0].boxes.int().tolist()} == truth[0]
    assert len(found[0].scores) == len(truth[0])
    # Of all the tiles together, as in a whole image.
    few = replace(how, postprocess=how.postprocess.model_copy(update={"max_per_class": 5}))
    (limited,) = detect(blobs, images[:1], few, prepare=prepare, batch_size=batch)
    assert limited.scores.tolist() == found[0].scores[:5].tolist()
    # Smaller ones are brought to the size of the network as they are.
    whole = DetectOptions(how.postprocess, tiles=Tiles((600, 600), overlap=24))
    small = detect(blobs, images[1:2], whole, prepare=prepare, batch_size=batch)
    assert len(small[0].scores) == len(truth[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tiled"), *TILES)


def test_training_scores_whole_images(run: Path, tmp_path: Path) -> None:
    outcome = json.loads((run / "result.json").read_text())
    best = {k.removeprefix("val/"): v for k, v in outcome["best_metrics"].items()}
    assert main(["evaluate", str(run), "--output", str(tmp_path)]) == 0
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree["about"]["images"] == 7
    assert tree["about"]["tiles"] == [80, 80, 40]
    assert best["AP"] > 0
    assert {name: tree["metrics"][name] for name in best} == pytest.approx(best, abs=1e-3)
    assert main(["evaluate", str(run), "--output", str(tmp_path), "--tiles", "none"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["about"]["tiles"] is None


def test_prediction_in_tiles(run: Path, tmp_path: Path) -> None:
    make_data(tmp_path / "other")
    words = ["predict", str(run), str(tmp_path / "other" / "images" / "20*.png")]
    tree = {}
    for name, more in (("own", []), ("same", ["--tiles", "80x80+40"]), ("off", ["--tiles=none"])):
        out = tmp_path / f"{name}.json"
        assert main([*words, "--output", str(out), *more]) == 0
        tree[name] = json.loads(out.read_text())
    assert tree["own"] == tree["same"] != tree["off"]
    for text in ("80x80+80", "big", "80x80+40x", "0"):
        assert main([*words, "--tiles", text]) == ConfigError.exit_code


@pytest.mark.slow
def test_going_on_in_tiles_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    make_data(folder / "squares")
    for more in (["train.max_steps=3"], ["train.max_steps=7"], []):
        again = make_run(folder, *TILES, *more, data=folder / "squares")
    ends = []
    for one in (run, again):
        last = sorted((one / "ckpt").glob("0*"))[-1]
        ends.append((last.name, (last / "ema.safetensors").read_bytes()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("override", ["data.tiles.overlap=80", "data.tiles.size=[0, 80]"])
def test_tiles_that_are_none_are_refused(tmp_path: Path, override: str) -> None:
    make_data(tmp_path / "squares")
    with pytest.raises(ConfigError, match=r"data\.tiles"):
        make_run(tmp_path, "data.tiles.size=[80, 80]", override, data=tmp_path / "squares")
