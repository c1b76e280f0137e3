"""Test-time views: what they show, and that boxes come back to where they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detectors.config import PostprocessConfig
from detectors.structures import Candidates, ImageDetections
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.augment.resize_pad import ResizePad
from orchestrator.predict.predictor import DetectOptions, detect, fuse
from orchestrator.predict.tta import Views

SIZE = (64, 64)


def bright_spot(images: np.ndarray) -> Candidates:
    """A network that finds the bounding box of what is brighter than 128, with score 0.9."""
    boxes, scores = [], []
    for image in images:
        ys, xs = np.nonzero(image[..., 0] > 128)
        found = len(ys) > 0
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if found else [0, 0, 1, 1]
        boxes.append([box])
        scores.append([[0.9 if found else 0.0, 0.0]])
    return Candidates(torch.tensor(boxes).float(), torch.tensor(scores))


def image_with(box: tuple[int, int, int, int]) -> np.ndarray:
    image = np.zeros((96, 160, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


CONFIG = PostprocessConfig(score_threshold=0.5)


@pytest.mark.parametrize(
    "views",
    [
        Views(),
        Views(flip=True),
        Views(scales=(0.5,)),
        Views(scales=(2.0,)),
        Views(scales=(1.5,), flip=True),
        Views(scales=(1.0, 2.0), flip=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("fusion", ["nms", "wbf"])
def test_boxes_come_back_to_their_place(views, fusion):
    # Inside the top left window of every scale tried, and in no other.
    box = (12, 8, 36, 40)
    how = DetectOptions(CONFIG, views, fusion)
    images = [image_with(box), image_with((100, 50, 150, 90))]
    found = detect(bright_spot, images, how, prepare=PlainResize(size=SIZE), batch_size=4)
    assert len(found) == 2
    # A pixel of the smallest view is five of the image across and three down.
    coarsest = 160 / 64 / min(1, *views.scales)
    np.testing.assert_allclose(found[0].boxes[0].numpy(), box, atol=coarsest)
    assert found[0].labels[0] == 0
    # Windows that do not show it say nothing about it.
    assert found[0].scores[0] == pytest.approx(0.9)
    assert (found[0].boxes[:, 2] > found[0].boxes[:, 0]).all()


def test_a_mirrored_view_names_pixels_where_the_detector_does():
    def last_pixels(images: np.ndarray) -> Candidates:
        candidates = bright_spot(images)
        return candidates._replace(boxes=candidates.boxes - torch.tensor([0.0, 0.0, 1.0, 1.0]))

    prepare = ResizePad(size=(96, 160), legacy_boxes=True, flip_probability=0.0).plain()
    how = DetectOptions(CONFIG, Views(flip=True), "wbf")
    images = [image_with((12, 8, 36, 40))]
    (found,) = detect(last_pixels, images, how, prepare=prepare, batch_size=4)
    assert found.boxes.tolist() == [[12, 8, 35, 39]]


@pytest.mark.parametrize("scale", [0.3, 0.5, 1.0, 1.3, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("flip", [False, True])
def test_views_cover_every_pixel_and_are_as_many_as_promised(scale, flip):
    views = Views((scale,), flip)
    image = np.zeros((97, 161, 3), np.uint8)
    samples = views.of(image, PlainResize(size=SIZE))
    assert len(samples) == len(views) == max(1, math.ceil(scale)) ** 2 * (1 + flip)
    seen = np.zeros(image.shape[:2], bool)
    for sample in samples:
        assert sample.image.shape == (*SIZE, 3)
        sx, sy, tx, ty = sample.transform
        x = sorted(((0 - tx) / sx, (SIZE[1] - tx) / sx))
        y = sorted(((0 - ty) / sy, (SIZE[0] - ty) / sy))
        seen[round(y[0]) : round(y[1]), round(x[0]) : round(x[1])] = True
    assert seen.all()


@pytest.mark.parametrize("views", [Views(flip=True), Views(scales=(0.5, 2.0))], ids=str)
def test_boxes_come_back_from_a_padded_input(views):
    box = (12, 8, 36, 40)
    how = DetectOptions(CONFIG, views)
    prepare = ResizePad(size=SIZE, fill=(0, 0, 0), expand_probability=0, flip_probability=0)
    found = detect(bright_spot, [image_with(box)], how, prepare=prepare, batch_size=1)
    coarsest = 160 / 64 / min(1, *views.scales)
    np.testing.assert_allclose(found[0].boxes[0].numpy(), box, atol=coarsest)


def test_a_mirrored_view_is_the_mirror_image():
    image = image_with((0, 0, 20, 20))
    straight, mirrored = Views(flip=True).of(image, PlainResize(size=SIZE))
    assert np.array_equal(mirrored.image, straight.image[:, ::-1])


def detections(*rows: tuple[list[float], float, int]) -> ImageDetections:
    return ImageDetections(
        torch.tensor([row[0] for row in rows]).reshape(-1, 4),
        torch.tensor([row[1] for row in rows]),
        torch.tensor([row[2] for row in rows], dtype=torch.int64),
    )


WHOLE = [0, 0, 100, 100]
EVERYTHING = PostprocessConfig(score_threshold=0.0)


def fused_from(
    *views: ImageDetections, config: PostprocessConfig = EVERYTHING, windows=None
) -> ImageDetections:
    return fuse(views, np.array(windows or [WHOLE] * len(views), np.float64), config)


def test_fusion_by_hand():
    # Two views see one object; the second box has a third of the weight: x2 = (10*.6+12*.3)/.9.
    one = detections(([0, 0, 10, 10], 0.6, 0), ([50, 50, 60, 60], 0.8, 1))
    two = detections(([0, 0, 12, 10], 0.3, 0))
    fused = fused_from(one, two)
    np.testing.assert_allclose(fused.boxes[0].numpy(), [0, 0, 32 / 3, 10], rtol=1e-6)
    # Mean score 0.45 seen by 2 of 2 views; 0.8 seen by 1 of 2.
    np.testing.assert_allclose(fused.scores.numpy(), [0.45, 0.4], rtol=1e-6)
    assert fused.labels.tolist() == [0, 1]
    # The second view ends where it shows nothing of the other object, then less than it takes for
    # a box that would join, then enough.
    for right, score in ((50, 0.8), (55, 0.8), (56, 0.4)):
        fused = fused_from(one, two, windows=[WHOLE, [0, 0, right, 100]])
        assert sorted(fused.scores.tolist()) == pytest.approx(sorted([0.45, score]))


def test_fusion_keeps_classes_and_distant_boxes_apart():
    one = detections(([0, 0, 10, 10], 0.6, 0), ([0, 0, 10, 10], 0.5, 1))
    two = detections(([7, 7, 17, 17], 0.4, 0))
    assert len(fused_from(one, two).scores) == 3
    empty = detections()
    assert len(fused_from(empty, empty).scores) == 0
    assert fused_from(empty).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [(0.6, 0), (0.5, 1), (0.45, 0), (0.2, 1)]),
        # Half of what one view of two saw; alone it was above the threshold.
        ({"score_threshold": 0.25}, [(0.6, 0), (0.5, 1), (0.45, 0)]),
        ({"nms": "soft_linear", "soft_score_threshold": 0.25}, [(0.6, 0), (0.5, 1), (0.45, 0)]),
        ({"max_per_class": 1}, [(0.6, 0), (0.5, 1)]),
        ({"max_per_image": 3}, [(0.6, 0), (0.5, 1), (0.45, 0)]),
        # Two classes of one place are one object, of the better one's class.
        ({"class_agnostic": True}, [(0.55, 0), (0.45, 0), (0.2, 1)]),
        ({"class_agnostic": True, "max_per_class": 2}, [(0.55, 0), (0.45, 0)]),
    ],
    ids=str,
)
def test_what_holds_after_suppression_holds_after_fusion(settings, kept):
    box, far, last = [0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]
    one = detections((box, 0.6, 0), (box, 0.5, 1), (far, 0.5, 0), (last, 0.4, 1))
    two = detections((box, 0.6, 0), (box, 0.5, 1), (far, 0.4, 0))
    fused = fused_from(one, two, config=PostprocessConfig(**{"score_threshold": 0.0, **settings}))
    assert fused.labels.tolist() == [label for _, label in kept]
    assert fused.scores.tolist() == pytest.approx([score for score, _ in kept])
