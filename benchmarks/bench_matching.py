"""Matching of boxes and priors beside its peers: the published loop, and padded torch.

    python benchmarks/bench_matching.py [--rounds 5]

Times are CPU time of the process for a batch of 16 images on one thread, the median of rounds in
which all take turns. All three must find the same positives and boxes before they are timed. The
loop is amdegroot/ssd.pytorch's `match` over the images, without its encoding; padded torch is
detectors.matching, which training on a GPU or NPU uses.
"""

from __future__ import annotations

import numpy as np
import torch
from results import keep
from timing import median_ms, rounds_asked, table
from torch import Tensor
from torchvision.ops import box_iou

import native
from detectors.boxes import pairwise_iou, to_corners
from detectors.m2det.detector import m2det_levels
from detectors.matching import match_last_claim
from detectors.priors import grid_boxes, mindspore_ssd300_levels

IMAGES, THRESHOLD = 16, 0.5


def make_batch(objects: int | None) -> tuple[Tensor, Tensor]:
    """Padded boxes (16, G, 4) and valid slots; ``None`` draws counts as skewed as COCO's."""
    rng = np.random.default_rng(0)
    if objects is None:
        counts = np.clip(rng.lognormal(1.6, 1.0, IMAGES).round(), 1, 60).astype(int)
    else:
        counts = np.full(IMAGES, objects)
    slots = counts.max()
    sizes = np.exp(rng.uniform(np.log(0.02), np.log(0.9), (IMAGES, slots, 2)))
    low = rng.uniform(0, 1 - sizes)
    boxes = torch.tensor(np.concatenate([low, low + sizes], -1), dtype=torch.float32)
    valid = torch.arange(slots)[None] < torch.tensor(counts)[:, None]
    return boxes * valid[..., None], valid


def loop(boxes: Tensor, valid: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    found, positive = [], []
    for image, slots in zip(boxes, valid, strict=True):
        overlaps = box_iou(image[slots], priors)
        best_prior = overlaps.max(1).indices
        best, box = overlaps.max(0)
        best.index_fill_(0, best_prior, 2)
        for slot in range(len(best_prior)):
            box[best_prior[slot]] = slot
        found.append(box)
        positive.append(best >= THRESHOLD)
    return torch.stack(found), torch.stack(positive)


def padded(boxes: Tensor, valid: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    match = match_last_claim(pairwise_iou(boxes, priors), valid, threshold=THRESHOLD)
    return match.box, match.positive


def ours(boxes: Tensor, valid: Tensor, priors: Tensor) -> tuple[Tensor, Tensor]:
    box, positive = native.match_priors(
        boxes.numpy(), valid.numpy(), priors.numpy(), threshold=THRESHOLD, claims="last", threads=1
    )
    return torch.from_numpy(box), torch.from_numpy(positive)


def main() -> None:
    rounds = rounds_asked(__doc__)
    table("priors", "boxes", "loop", "padded torch", "native", "loop / native")
    ratios = {}
    for name, levels in (
        ("M2Det-512", m2det_levels(512)),
        ("SSD300-MobileNetV2", mindspore_ssd300_levels()),
    ):
        priors = to_corners(grid_boxes(levels)).float()
        for objects in (None, 100):
            boxes, valid = make_batch(objects)
            batch = (boxes, valid, priors)
            expected, positive = loop(*batch)
            for other in (padded, ours):
                found, also = other(*batch)
                assert torch.equal(positive, also)
                assert torch.equal(expected[positive], found[positive])
            times = median_ms(
                {
                    "loop": lambda batch=batch: loop(*batch),
                    "padded": lambda batch=batch: padded(*batch),
                    "native": lambda batch=batch: ours(*batch),
                },
                rounds,
            )
            print(
                f"| {name}, {len(priors)} | {int(valid.sum())} | {times['loop']:.1f} | "
                f"{times['padded']:.1f} | {times['native']:.2f} | "
                f"{times['loop'] / times['native']:.0f}x |"
            )
            ratios[f"{name}, {objects or 'COCO-like'} boxes"] = times["loop"] / times["native"]
    keep("matching", ratios)


if __name__ == "__main__":
    main()
