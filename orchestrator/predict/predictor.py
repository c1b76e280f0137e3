"""From images to detections in their own pixels, the same for every command.

Images go through the network in batches of one size whose composition depends on their order alone;
the last batch is filled up. Which worker computes a batch therefore changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.base import Detector
from detectors.config import PostprocessConfig
from detectors.postprocess import Frames, View, detections_of
from detectors.structures import Candidates, ImageDetections
from orchestrator.accelerators import Accelerator, Precision, as_network_input, kind_of
from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.protocol import Augment
from orchestrator.data.tiling import Tiles
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.tile_merging import intersections, merge_image, overlaps
from orchestrator.predict.tta import Views

Fusion: TypeAlias = Literal["nms", "wbf"]
#: (N, H, W, 3) uint8 images of one batch to boxes in network pixels and scores, where it computes.
Network: TypeAlias = Callable[[NDArray[np.uint8]], Candidates]


@dataclass(frozen=True)
class DetectOptions:
    """How images are shown to the network and what becomes of its candidates.

    Attributes:
        postprocess: thresholds, suppression and limits.
        views: scales and mirroring.
        fusion: ``nms`` suppresses the candidates of all views together, ``wbf`` suppresses in each
            view and fuses what is left.
        fusion_iou: overlap from which ``wbf`` takes two boxes for one object.
        tiles: cuts every image into tiles, whose detections are merged; None for whole images.
    """

    postprocess: PostprocessConfig
    views: Views = field(default_factory=Views)
    fusion: Fusion = "nms"
    fusion_iou: float = 0.55
    tiles: Tiles | None = None


class TorchNetwork:
    """A detector as a :data:`Network`.

    Args:
        model: in evaluation mode.
        accelerator: where it computes.
        precision: of the forward pass.
    """

    def __init__(self, model: Detector, accelerator: Accelerator, precision: Precision) -> None:
        self.accelerator = accelerator
        self.precision = precision
        self.device = accelerator.device()
        self.model = accelerator.place(model, self.device)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Candidates:
        """Candidates of one batch."""
        on_device = as_network_input(torch.from_numpy(images).to(self.device))
        with self.accelerator.autocast(self.precision):
            return self.model.decode(self.model(on_device))


def detect(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    how: DetectOptions,
    *,
    prepare: Augment,
    batch_size: int,
) -> list[ImageDetections]:
    """Detections of images in their own pixels.

    Args:
        network: of any kind.
        images: at most ``batch_size``, (h, w, 3) uint8 RGB each.
        how: views and post-processing.
        prepare: brings an image to the size the network takes, as validation did.
        batch_size: images the network is given at a time; what is missing is black.
    """
    if how.tiles is not None:
        return _in_tiles(network, images, how, how.tiles, prepare=prepare, batch_size=batch_size)
    views = [how.views.of(image, prepare) for image in images]
    sizes = torch.tensor([image.shape[:2] for image in images])
    # A device is given all views before the first is waited for.
    seen = [
        _view(network, [of_image[number] for of_image in views], sizes, batch_size, how.postprocess)
        for number in range(len(how.views))
    ]
    if how.fusion == "nms" or len(seen) == 1:
        return detections_of(seen, how.postprocess)
    apart = zip(*(detections_of([view], how.postprocess) for view in seen), strict=True)
    return [
        fuse(found, how.views.windows(*image.shape[:2]), how.postprocess, iou=how.fusion_iou)
        for image, found in zip(images, apart, strict=True)
    ]


def _in_tiles(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    how: DetectOptions,
    tiles: Tiles,
    *,
    prepare: Augment,
    batch_size: int,
) -> list[ImageDetections]:
    """Detections of images that are looked at tile by tile."""
    for image in images:
        tiles.require_few(image.shape[0], image.shape[1], "an image")
    grids = [tiles.windows(*image.shape[:2]) for image in images]
    places = [(image, row) for image, grid in enumerate(grids) for row in range(len(grid))]
    alone, found = replace(how, tiles=None), []
    for start in range(0, len(places), batch_size):
        cuts = []
        for number, row in places[start : start + batch_size]:
            left, top, right, bottom = grids[number][row].tolist()
            cuts.append(np.ascontiguousarray(images[number][top:bottom, left:right]))
        found += detect(network, cuts, alone, prepare=prepare, batch_size=batch_size)
    merged, first = [], 0
    for image, grid in zip(images, grids, strict=True):
        own = found[first : first + len(grid)]
        first += len(grid)
        numbers = np.repeat(np.arange(len(grid)), [len(one.scores) for one in own])
        windows = grid.astype(np.float64)[numbers]
        boxes, scores, labels = merge_image(
            torch.cat([one.boxes for one in own]).numpy().astype(np.float64)
            + windows[:, [0, 1, 0, 1]],
            torch.cat([one.scores for one in own]).numpy().astype(np.float64),
            torch.cat([one.labels for one in own]).numpy(),
            windows,
            numbers,
            size=(image.shape[0], image.shape[1]),
            iou=how.postprocess.iou_threshold,
            class_agnostic=how.postprocess.class_agnostic,
            max_per_class=how.postprocess.max_per_class,
            limit=how.postprocess.max_per_image,
        )
        merged.append(
            ImageDetections(
                boxes=torch.from_numpy(boxes.astype(np.float32)),
                scores=torch.from_numpy(scores.astype(np.float32)),
                labels=torch.from_numpy(labels),
            )
        )
    return merged


def _view(
    network: Network,
    samples: Sequence[Sample],
    sizes: Tensor,
    batch_size: int,
    config: PostprocessConfig,
) -> View:
    """One view of every image."""
    count = len(samples)
    images = np.zeros((batch_size, *samples[0].image.shape), np.uint8)
    for row, sample in enumerate(samples):
        images[row] = sample.image
    boxes, scores = network(images)
    transforms = torch.tensor([sample.transform for sample in samples], dtype=torch.float64)
    return View(
        Candidates(boxes[:count], scores[:count]),
        config,
        frames=Frames(transforms, sizes),
        to_host=Accelerator(kind_of(boxes.device)).to_host,
    )


def to_detections(image_ids: Sequence[int], found: Sequence[ImageDetections]) -> Detections:
    """Detections of images with these ids as columns."""
    counts = [len(one.scores) for one in found]
    ids = np.array(image_ids, np.int64)
    return Detections(
        images=ids,
        image_ids=np.repeat(ids, counts),
        labels=np.concatenate([one.labels.numpy() for one in found]).astype(np.int64),
        boxes=np.concatenate([one.boxes.numpy() for one in found]).astype(np.float32),
        scores=np.concatenate([one.scores.numpy() for one in found]).astype(np.float32),
    )


def fuse(
    views: Sequence[ImageDetections],
    windows: NDArray[np.float64],
    config: PostprocessConfig,
    *,
    iou: float = 0.55,
) -> ImageDetections:
    """Merge the detections of several views of one image, class by class: weighted boxes fusion.

    Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object
    detection models", Image and Vision Computing 107, 2021, https://arxiv.org/abs/1910.13302.
    Boxes are taken by falling score and join the fused box they overlap most, if by more than
    ``iou``; a fused box is the mean of its members, weighted by their scores. Its score is their
    mean, times the part of the views that saw it (equation 6 of the paper: min(members, views) /
    views). There every view shows everything; here those count that show enough of the box to
    have a box that joins it.

    Args:
        views: detections of each view in pixels of the image.
        windows: (v, 4) ``left, top, right, bottom`` of what each view shows of the image.
        config: threshold, limits and what is one class, which hold for the fused boxes.
        iou: overlap from which boxes are the same object.

    Returns:
        Fused detections, best first.
    """
    boxes = torch.cat([view.boxes for view in views]).numpy().astype(np.float64)
    scores = torch.cat([view.scores for view in views]).numpy().astype(np.float64)
    labels = torch.cat([view.labels for view in views]).numpy()
    groups = np.zeros_like(labels) if config.class_agnostic else labels
    parts = [(boxes[:0], scores[:0], labels[:0])]
    for group in np.unique(groups).tolist():
        rows = np.flatnonzero(groups == group)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        fused, fused_scores, best = _clusters(boxes[rows], scores[rows], windows, iou)
        order = np.argsort(-fused_scores, kind="stable")
        kept = order[_kept(fused_scores[order], config)][: config.max_per_class]
        parts.append((fused[kept], fused_scores[kept], labels[rows[best[kept]]]))
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")[: config.max_per_image]
    return ImageDetections(
        boxes=torch.from_numpy(boxes[order].astype(np.float32)),
        scores=torch.from_numpy(scores[order].astype(np.float32)),
        labels=torch.from_numpy(labels[order]),
    )


def _kept(scores: NDArray[np.float64], config: PostprocessConfig) -> NDArray[np.bool_]:
    """Which scores are enough, as after suppression in one view."""
    if config.nms == "hard":
        return scores > config.score_threshold
    return scores >= config.soft_score_threshold


def _clusters(
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    windows: NDArray[np.float64],
    iou: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Fused boxes, their scores and best members of one class; ``boxes`` are best first."""
    sums = np.zeros((len(boxes), 4))
    totals = np.zeros(len(boxes))
    members = np.zeros(len(boxes), np.int64)
    best = np.zeros(len(boxes), np.int64)
    means = np.zeros((len(boxes), 4))
    count = 0
    for row, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        shared = overlaps(box[None], means[:count])[0]
        place = int(shared.argmax()) if count and shared.max() > iou else count
        if place == count:
            best[place] = row
            count += 1
        sums[place] += box * score
        totals[place] += score
        members[place] += 1
        means[place] = sums[place] / totals[place]
    means, members = means[:count], members[:count]
    areas = np.prod(means[:, 2:] - means[:, :2], axis=1)
    shown = intersections(means, windows) >= iou * areas[:, None]
    views = np.maximum(shown.sum(axis=1), 1)
    return means, totals[:count] / members * np.minimum(members, views) / views, best[:count]
