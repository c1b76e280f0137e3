"""From raw outputs to detections, beside torchvision's SSD, and where our time goes.

    python benchmarks/bench_postprocess.py [--rounds 5]

CPU time of the process for one image on one thread, the median of rounds in which all take turns:
softmax over 81 channels, decoding of all boxes, threshold, the best 400 of each class, NMS at 0.45,
200 detections. Both must find detections of the same scores, boxes and labels before they are
timed. The outputs are drawn: background everywhere, one class likely at 400 priors.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from results import keep
from timing import median_ms, rounds_asked, table
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD

import native
from detectors.boxes import to_corners
from detectors.coding import decode
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.structures import Candidates

CLASSES, HOT, SIZE = 80, 400, 300


def make_outputs(priors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Class logits (1, A, 81), offsets (1, A, 4) and priors (A, 4) in centre form, in pixels."""
    draw = torch.Generator().manual_seed(priors)
    logits = torch.randn(1, priors, CLASSES + 1, generator=draw) / 2
    logits[..., 0] += 8
    hot = torch.randperm(priors, generator=draw)[:HOT]
    likely = torch.randint(1, CLASSES + 1, (HOT,), generator=draw)
    logits[0, hot, 0] -= 6
    logits[0, hot, likely] += torch.rand(HOT, generator=draw) * 5 + 2
    offsets = torch.randn(1, priors, 4, generator=draw) / 2
    centers = torch.rand(priors, 2, generator=draw) * SIZE
    sizes = torch.rand(priors, 2, generator=draw) * 100 + 5
    return logits, offsets, torch.cat([centers, sizes], 1)


def torchvision_way(outputs: tuple[Tensor, Tensor, Tensor], threshold: float) -> dict[str, Tensor]:
    logits, offsets, priors = outputs
    model = SimpleNamespace(
        box_coder=BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)),
        score_thresh=threshold,
        topk_candidates=400,
        nms_thresh=0.45,
        detections_per_img=200,
    )
    heads = {"bbox_regression": offsets, "cls_logits": logits}
    return SSD.postprocess_detections(model, heads, [to_corners(priors)], [(SIZE, SIZE)])[0]


def candidates_of(outputs: tuple[Tensor, Tensor, Tensor]) -> Candidates:
    logits, offsets, priors = outputs
    boxes = to_corners(decode(offsets, priors)).clamp(0, SIZE)
    return Candidates(boxes=boxes, scores=logits.softmax(-1)[..., 1:])


def above(candidates: Candidates, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of one image above the threshold."""
    prior, label = (candidates.scores[0] > threshold).nonzero().unbind(1)
    boxes = candidates.boxes[0, prior]
    finite = boxes.isfinite().all(1)
    return boxes[finite], candidates.scores[0, prior, label][finite], label[finite]


def check(outputs: tuple[Tensor, Tensor, Tensor], config: PostprocessConfig) -> None:
    theirs = torchvision_way(outputs, config.score_threshold)
    ours = postprocess(candidates_of(outputs), config)[0]
    torch.testing.assert_close(ours.scores, theirs["scores"])
    assert torch.equal(ours.labels + 1, theirs["labels"])
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-4, atol=1e-3)


def main() -> None:
    rounds = rounds_asked(__doc__)
    columns = ("priors", "threshold", "candidates", "torchvision", "ours", "faster")
    table(*columns, "softmax, decode", "suppress")
    ratios = {}
    for priors, threshold in ((1917, 0.01), (1917, 0.1), (8732, 0.01), (32760, 0.01), (32760, 0.1)):
        outputs = make_outputs(priors)
        config = PostprocessConfig(
            score_threshold=threshold, top_k_per_class=400, iou_threshold=0.45, max_per_image=200
        )
        check(outputs, config)
        candidates = candidates_of(outputs)
        chosen = [part.numpy() for part in above(candidates, threshold)]
        chosen.append(np.array([0, len(chosen[0])]))
        times = median_ms(
            {
                "torchvision": lambda o=outputs, t=threshold: torchvision_way(o, t),
                "ours": lambda o=outputs, c=config: postprocess(candidates_of(o), c),
                "scores": lambda o=outputs: candidates_of(o),
                "suppress": lambda c=chosen: native.nms_batch(
                    *c, iou_threshold=0.45, top_k_per_class=400, max_total=200, threads=1
                ),
            },
            rounds,
        )
        print(
            f"| {priors} | {threshold} | {len(chosen[1])} | {times['torchvision']:.1f} | "
            f"{times['ours']:.2f} | {times['torchvision'] / times['ours']:.1f}x | "
            f"{times['scores']:.2f} | {times['suppress']:.3f} |"
        )
        ratios[f"{priors} priors, {threshold}"] = times["torchvision"] / times["ours"]
    keep("postprocess", ratios)


if __name__ == "__main__":
    main()
