"""Decoding and augmenting one image, beside the classic pipeline and torchvision's transforms.

    python benchmarks/bench_augment.py [--images FOLDER --annotations FILE] [--rounds 5]

CPU milliseconds per image of one thread, decoding included, for inputs of 300 x 300 and 512 x 512:

- *decode only*: ``cv2.imdecode``, the limit of all the others;
- *ours*: :class:`SSDAugment` (no zooming out) and :class:`M2DetAugment`, as uint8, which is what
  travels to the training process, and as normalised float32 CHW, which the device makes of it;
- *classic*: the recipe of SSD (Liu et al., ECCV 2016, sections 2.2 and 3.6) as it is commonly
  written, NumPy and OpenCV on float32 images, one crop attempt after the other, to float32 CHW;
  resized linearly, and (*M2Det*) by one of five methods, as the recipe of M2Det has it;
- *v2*: the "ssd" preset of torchvision's detection references with ``torchvision.transforms.v2``
  on uint8 tensors, to normalised float32 CHW.

*Classic* and *v2* do what :class:`M2DetAugment` does (distort, zoom out, crop, flip, resize) with
draws of their own, so the ratios are of the same kind of work, not of the same images. The arms
take turns within each round; the median over the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from results import keep
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from orchestrator.data import decode
from orchestrator.data.augment.m2det import INTERPOLATIONS, M2DetAugment
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.readers.coco import read_coco

Boxes: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]
Arm: TypeAlias = Callable[[bytes, Boxes, Labels, int], Any]

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)


def normalised(image: NDArray[Any]) -> NDArray[np.float32]:
    """(3, H, W) float32."""
    planes = (image.astype(np.float32) - MEAN) / DEVIATION
    return np.ascontiguousarray(planes.transpose(2, 0, 1))


def ours(augment: SSDAugment | M2DetAugment, *, floats: bool) -> Arm:
    def run(data: bytes, boxes: Boxes, labels: Labels, number: int) -> Any:
        made = augment(decode.decode_image(data), boxes, labels, SampleKey(1, 0, number))
        return normalised(made.image) if floats else made.image

    return run


class Classic:
    """Distort, zoom out, crop, mirror, resize and normalise, on float32 images."""

    def __init__(self, size: int, methods: tuple[int, ...] = (cv2.INTER_LINEAR,)) -> None:
        self.size = size
        self.methods = methods
        self.rng = np.random.default_rng(0)

    def __call__(self, data: bytes, boxes: Boxes, labels: Labels, number: int) -> Any:
        del number
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        image, boxes = self.distorted(raw.astype(np.float32)), boxes.copy()
        if self.rng.random() < 0.5:
            image, boxes = self.zoomed_out(image, boxes)
        image, boxes, labels = self.cropped(image, boxes, labels)
        if self.rng.random() < 0.5:
            image = image[:, ::-1]
            boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
        boxes /= np.tile(image.shape[1::-1], 2)
        method = self.methods[self.rng.integers(len(self.methods))]
        image = cv2.resize(image, (self.size, self.size), interpolation=method)
        return normalised(image), boxes, labels

    def distorted(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.rng.random() < 0.5:
            image += self.rng.uniform(-32, 32)
        if self.rng.random() < 0.5:
            image *= self.rng.uniform(0.5, 1.5)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        if self.rng.random() < 0.5:
            hsv[:, :, 1] *= self.rng.uniform(0.5, 1.5)
        if self.rng.random() < 0.5:
            hsv[:, :, 0] += self.rng.uniform(-36, 36)
            hsv[:, :, 0][hsv[:, :, 0] > 360] -= 360
            hsv[:, :, 0][hsv[:, :, 0] < 0] += 360
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)

    def zoomed_out(
        self, image: NDArray[np.float32], boxes: Boxes
    ) -> tuple[NDArray[np.float32], Boxes]:
        height, width, _ = image.shape
        ratio = self.rng.uniform(1, 4)
        left = int(self.rng.uniform(0, width * ratio - width))
        top = int(self.rng.uniform(0, height * ratio - height))
        canvas = np.empty((int(height * ratio), int(width * ratio), 3), np.float32)
        canvas[:] = MEAN
        canvas[top : top + height, left : left + width] = image
        return canvas, boxes + np.array([left, top, left, top], np.float32)

    def cropped(
        self, image: NDArray[np.float32], boxes: Boxes, labels: Labels
    ) -> tuple[NDArray[np.float32], Boxes, Labels]:
        height, width, _ = image.shape
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        bounds = (None, 0.1, 0.3, 0.5, 0.7, 0.9, -np.inf)
        while len(boxes):
            bound = bounds[self.rng.integers(len(bounds))]
            if bound is None:
                break
            for _ in range(50):
                w, h = self.rng.uniform(0.3 * width, width), self.rng.uniform(0.3 * height, height)
                if not 0.5 <= h / w <= 2:
                    continue
                left, top = self.rng.uniform(0, width - w), self.rng.uniform(0, height - h)
                rect = np.array([left, top, left + w, top + h]).astype(int)
                low = np.maximum(boxes[:, :2], rect[:2])
                inter = np.prod(np.clip(np.minimum(boxes[:, 2:], rect[2:]) - low, 0, None), axis=1)
                iou = inter / (areas + np.prod(rect[2:] - rect[:2]) - inter)
                inside = ((rect[:2] < centres) & (centres < rect[2:])).all(axis=1)
                if iou.min() < bound or not inside.any():
                    continue
                part = image[rect[1] : rect[3], rect[0] : rect[2]]
                cut = boxes[inside]
                cut[:, :2] = np.maximum(cut[:, :2], rect[:2]) - rect[:2]
                cut[:, 2:] = np.minimum(cut[:, 2:], rect[2:]) - rect[:2]
                return part, cut, labels[inside]
        return image, boxes, labels


def torchvision_v2(size: int) -> Arm:
    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: tuple(MEAN.round().astype(int).tolist())}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((size, size)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((MEAN / 255).tolist(), (DEVIATION / 255).tolist()),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def run(data: bytes, boxes: Boxes, labels: Labels, number: int) -> Any:
        del number
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = tv_tensors.Image(decode_image(buffer, ImageReadMode.RGB))
        places = tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes), format="XYXY", canvas_size=image.shape[-2:]
        )
        return transform(image, {"boxes": places, "labels": torch.from_numpy(labels)})

    return run


def decode_only(data: bytes, boxes: Boxes, labels: Labels, number: int) -> Any:
    del boxes, labels, number
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def load(options: argparse.Namespace, folder: Path) -> list[tuple[bytes, Boxes, Labels]]:
    """Files and boxes of the images that have any, in memory."""
    if options.images is None:
        build_digits(folder, Recipe(train=options.count, val=1))
        options.images = folder / "images"
        options.annotations = folder / "annotations" / "instances_train.json"
    data = read_coco(options.images, options.annotations).dataset
    chosen = [i for i in range(len(data)) if len(data.training_boxes(i)[0])][: options.count]
    return [
        ((Path(data.root) / data.files[i]).read_bytes(), *data.training_boxes(i)) for i in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--count", type=int, default=64, help="images, those with boxes")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    arms: dict[str, Arm] = {"decode only": decode_only}
    for size in (300, 512):
        ssd, m2det = SSDAugment(size=(size, size)), M2DetAugment(size=(size, size))
        arms[f"ours, SSD {size}, uint8"] = ours(ssd, floats=False)
        arms[f"ours, SSD {size}, float32"] = ours(ssd, floats=True)
        arms[f"ours, M2Det {size}, uint8"] = ours(m2det, floats=False)
        arms[f"ours, M2Det {size}, float32"] = ours(m2det, floats=True)
        arms[f"classic {size}, float32"] = Classic(size)
        arms[f"classic M2Det {size}, float32"] = Classic(size, INTERPOLATIONS)
        arms[f"torchvision v2 {size}, float32"] = torchvision_v2(size)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        samples = load(options, Path(folder))
    kilobytes = sum(len(data) for data, _, _ in samples) / len(samples) / 1e3
    print(f"{len(samples)} images of {kilobytes:.0f} kB; load {os.getloadavg()[0]:.1f}")
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(options.rounds):
        for name, arm in arms.items():
            arm(*samples[0], 0)
            begin = time.process_time()
            for number, sample in enumerate(samples):
                arm(*sample, number + round_ * len(samples))
            spent[name].append(1e3 * (time.process_time() - begin) / len(samples))
    medians = {name: statistics.median(each) for name, each in spent.items()}
    print("| | ms | of decode-only | classic / it | v2 / it |\n|---|---|---|---|---|")
    kept = {}
    for name, value in medians.items():
        kept[f"{name}: of decode only"] = medians["decode only"] / value
        share = f"| {name} | {value:.2f} | {medians['decode only'] / value:.0%} |"
        side = next((side for side in ("300", "512") if side in name), None)
        kind = "classic M2Det" if "M2Det" in name else "classic"
        peers = [f"{kind} {side}, float32", f"torchvision v2 {side}, float32"]
        ratios = [f" {medians[peer] / value:.1f} |" if side else " |" for peer in peers]
        print(share + "".join(ratios))
        if side and name.startswith("ours"):
            kept |= {f"{name}: of {peer}": medians[peer] / value for peer in peers}
    keep("augment", kept)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
