"""Target assignment of a whole batch, matching and encoding, beside the published per-image loop.

    python benchmarks/bench_assignment.py [--rounds 5]

M2Det-512: 16 images, 32,760 priors, as many boxes as in COCO or 100 in every image. *loop* is the
naive torch way of amdegroot/ssd.pytorch and M2Det, one image after the other: overlaps with all
priors, the best of each side, forced matches box by box, then offsets and labels. *batched* is what
the loss calls, `SingleShot.assign`. Times are CPU time of the process on one thread, the median of
rounds in which both take turns. Before they are timed, both must find the same labels everywhere,
and the same offsets, to rounding, where there is one to learn.
"""

from __future__ import annotations

import argparse

import torch
from bench_matching import THRESHOLD, make_batch, median_ms
from results import keep
from torch import Tensor
from torchvision.ops import box_iou

import native
from detectors.m2det.config import M2DetConfig
from detectors.registry import build_detector
from detectors.single_shot import SingleShot
from detectors.structures import Targets
from orchestrator.memory import keep_freed_memory

SIZE = 512
CLASSES = 80


def loop(targets: Targets, priors: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    codes, channels = [], []
    for image, classes, slots in zip(*targets, strict=True):
        truth = image[slots] / SIZE
        overlaps = box_iou(truth, corners)
        best_prior = overlaps.max(1).indices
        best, box = overlaps.max(0)
        best.index_fill_(0, best_prior, 2)
        for slot in range(len(best_prior)):
            box[best_prior[slot]] = slot
        matched = truth[box]
        label = classes[slots][box] + 1
        label[best < THRESHOLD] = 0
        center = (matched[:, :2] + matched[:, 2:]) / 2 - priors[:, :2]
        center = center / (0.1 * priors[:, 2:])
        size = torch.log((matched[:, 2:] - matched[:, :2]) / priors[:, 2:]) / 0.2
        codes.append(torch.cat([center, size], 1))
        channels.append(label)
    return torch.stack(codes), torch.stack(channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    keep_freed_memory()  # As in training.
    # Priors and assignment do not depend on width and levels.
    config = M2DetConfig(variant="m2det512_vgg16", width=1 / 16, levels=2)
    model = build_detector(config, num_classes=CLASSES)
    assert isinstance(model, SingleShot)
    print(f"kernels: {native.backend()}\n")
    print("| priors | boxes | loop ms | batched ms | loop / batched |")
    print("|---|---|---|---|---|")
    ratios = {}
    for objects in (None, 100):
        boxes, valid = make_batch(objects)
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, CLASSES, valid.shape, generator=generator)
        targets = Targets(boxes * SIZE, labels * valid, valid)
        codes, channels = loop(targets, model.priors, model.prior_corners)
        found, also = model.assign(targets)
        assert torch.equal(channels, also)
        positive = channels > 0
        torch.testing.assert_close(found[positive], codes[positive], rtol=1e-4, atol=1e-5)
        times = median_ms(
            {
                "loop": lambda t=targets: loop(t, model.priors, model.prior_corners),
                "batched": lambda t=targets: model.assign(t),
            },
            rounds,
        )
        print(
            f"| {len(model.priors)} | {int(valid.sum())} | {times['loop']:.1f} | "
            f"{times['batched']:.2f} | {times['loop'] / times['batched']:.0f}x |"
        )
        ratios[f"{objects or 'COCO-like'} boxes"] = times["loop"] / times["batched"]
    keep("assignment", ratios)


if __name__ == "__main__":
    main()
