"""Evaluation is that of one worker on any number of them, most of which may have no image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.base import Detector
from detectors.config import PostprocessConfig
from detectors.structures import Candidates, LossTerm, Targets
from orchestrator.data.batch import Batch
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.schedule import eval_slots
from orchestrator.evaluation.detections import Detections
from orchestrator.tracking.events import metric_history
from orchestrator.training.predictor import predict_share
from tests.support.chaos_run import CPU, Chaos

IMAGES = 40


class Corners(Detector):
    """Finds two boxes in every image, whose places and scores are its first pixels."""

    def __init__(self) -> None:
        super().__init__(
            title="corners",
            input_size=(2, 2),
            num_classes=2,
            pixel_mean=(0, 0, 0),
            pixel_std=(1, 1, 1),
        )
        self.batches = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.batches += 1
        return {"pixels": images.permute(0, 2, 3, 1).reshape(len(images), 12).float()}

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        return {}

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        pixels = raw["pixels"]
        corners = pixels[:, [0, 1, 3, 4]].reshape(-1, 2, 2)
        return Candidates(
            torch.cat([corners, corners + 2], 2), pixels[:, 6:10].reshape(-1, 2, 2) / 256
        )


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (IMAGES, 2, 2, 3), dtype=np.uint8)


def share(pixels: np.ndarray, n: int, rank: int, world: int, size: int) -> Iterator[Batch]:
    for slots in eval_slots(n, rank, world, size):
        batch = Batch.unfilled(size, (2, 2), 1)
        batch.images[:] = np.where((slots >= 0)[:, None, None, None], pixels[slots], 0)
        batch.sample_ids[:] = slots
        batch.image_ids[:] = np.where(slots >= 0, 1000 - slots, -1)
        batch.sizes[:] = 8
        batch.transforms[:] = 1.0, 1.0, 0.0, 0.0
        yield batch


def rows(found: Detections) -> list[tuple[object, ...]]:
    """Everything about detections, to be compared bit for bit."""
    columns = (found.image_ids, found.labels, found.boxes, found.scores)
    assert [column.dtype for column in columns] == [np.int64, np.int64, np.float32, np.float32]
    return [found.images.tolist(), *zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.parametrize("n", range(1, IMAGES + 1))
def test_any_number_of_workers_finds_what_one_does(n: int, pixels: np.ndarray) -> None:
    config = PostprocessConfig(score_threshold=0.01)

    def found(world: int, size: int) -> Detections:
        model = Corners()
        parts = [
            predict_share(
                model,
                share(pixels, n, rank, world, size),
                config,
                accelerator=CPU,
                precision="fp32",
                device=torch.device("cpu"),
            )
            for rank in range(world)
        ]
        # The network is not run on nothing.
        assert model.batches <= n
        return Detections.merge(parts)

    expected = rows(found(1, n))
    assert len(expected) > n
    for world in range(1, 33):
        assert rows(found(world, 4)) == expected, world


def test_ranks_that_run_out_of_images_wait_for_the_others(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nine images for four ranks with two in a batch: three of them end with padding alone."""
    data = tmp_path_factory.mktemp("data") / "digits"
    build_digits(data, Recipe(train=26, val=9, seed=3))
    settings = ("train.batch_size=8", "train.virtual_shards=4", "train.max_steps=2")
    logs = []
    for world in (1, 4):
        run = Chaos(tmp_path / f"{world}", data, *settings, f"cluster.workers={world}")
        assert run.run() == [0] * world
        log = run.run_dir / "events.jsonl"
        logs.append([metric_history(log, f"val/{key}")[-1].value for key in ("AP", "AR100")])
    assert logs[0] == logs[1]
