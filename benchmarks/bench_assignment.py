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

import bench_matching
import torch
from results import keep
from timing import median_ms, rounds_asked, table
from torch import Tensor

from detectors.m2det.config import M2DetConfig
from detectors.registry import build_detector
from detectors.single_shot import SingleShot
from detectors.structures import Targets
from orchestrator.memory import keep_freed_memory

SIZE = 512
CLASSES = 80


def loop(targets: Targets, priors: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    codes, channels = [], []
    matches = bench_matching.loop(targets.boxes / SIZE, targets.valid, corners)
    for image, classes, slots, box, positive in zip(*targets, *matches, strict=True):
        matched = (image[slots] / SIZE)[box]
        label = classes[slots][box] + 1
        label[~positive] = 0
        center = (matched[:, :2] + matched[:, 2:]) / 2 - priors[:, :2]
        center = center / (0.1 * priors[:, 2:])
        size = torch.log((matched[:, 2:] - matched[:, :2]) / priors[:, 2:]) / 0.2
        codes.append(torch.cat([center, size], 1))
        channels.append(label)
    return torch.stack(codes), torch.stack(channels)


def main() -> None:
    rounds = rounds_asked(__doc__)
    keep_freed_memory()  # As in training.
    # Priors and assignment do not depend on width and levels.
    config = M2DetConfig(variant="m2det512_vgg16", width=1 / 16, levels=2)
    model = build_detector(config, num_classes=CLASSES)
    assert isinstance(model, SingleShot)
    table("priors", "boxes", "loop ms", "batched ms", "loop / batched")
    ratios = {}
    for objects in (None, 100):
        boxes, valid = bench_matching.make_batch(objects)
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
