"""The parts of a check of a device, each a function that answers one question.

Here is what they share, and those around training steps; those about steps are in a file of their
own. None of them reads a data set: images and boxes are drawn, and the detectors have drawn
weights, so that a bare machine will do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from detectors.base import Detector
from detectors.config import PostprocessConfig
from detectors.postprocess import SHORTLIST
from detectors.registry import build_detector, variant_config
from orchestrator.accelerators import Accelerator, Precision
from orchestrator.checkpoints.codec import HostCopy, encode
from orchestrator.config.augmentations import SSDAugmentation
from orchestrator.config.schema import EmaConfig, SGDOptimizer, TrainConfig
from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.batch import Batch
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.decode import decode_image
from orchestrator.training.collective import Collective
from orchestrator.training.predictor import images_to_device, predict_share
from orchestrator.training.state import capture
from orchestrator.training.stepper import Stepper

Tree: TypeAlias = dict[str, Any]

CLASSES = 80
#: Boxes of an image, of 40 slots: about COCO's.
_BOXES, _SLOTS = 7, 40


@dataclass(frozen=True)
class Setting:
    """What a part is run with.

    Attributes:
        accelerator: the kind of device.
        quick: small networks, few steps.
        until: moment of the monotonic clock at which it should end.
    """

    accelerator: Accelerator
    quick: bool
    until: float

    @property
    def time_left(self) -> bool:
        """Whether there is time for something more."""
        return time.monotonic() < self.until

    def of_each(self, work: Callable[[Case], Any]) -> Tree:
        """What ``work`` finds for each of :data:`CASES`, by variant, while there is time."""
        return {
            case.variant: work(case) if self.time_left else "no time was left" for case in CASES
        }


@dataclass(frozen=True)
class Case:
    """A detector in the size and with the images a device gets in the published recipes.

    Attributes:
        variant: of the detector.
        batch: images of a device in a step there.
        full: images that fill a large card.
        small: what makes it cheap, for correctness and ``--quick``.
    """

    variant: str
    batch: int
    full: int
    small: dict[str, Any]


_SMALL_SIDE = {"input_size": (128, 128), "width": 0.125}
CASES = (
    Case("m2det512_vgg16", 7, 32, {"variant": "m2det320_vgg16", "width": 0.0625, "levels": 2}),
    Case("ssd300_mobilenet_v2", 32, 256, {"width": 0.25}),
    Case("faster_rcnn_mindspore", 2, 16, _SMALL_SIDE),
    Case("faster_rcnn_torchvision", 2, 16, _SMALL_SIDE),
    Case("retinanet_spinenet49", 2, 32, {"variant": "retinanet_spinenet49s", **_SMALL_SIDE}),
    Case("ssd300_vgg16", 32, 128, {"width": 0.125}),
)


def make(case: Case, *, small: bool, classes: int = CLASSES) -> Detector:
    """The detector of a case, the same weights each time."""
    torch.manual_seed(0)
    fields = dict(case.small) if small else {}
    config = variant_config(fields.pop("variant", case.variant), **fields)
    return build_detector(config, num_classes=classes)


def batch_of(number: int, images: int, size: tuple[int, int], *, classes: int = CLASSES) -> Batch:
    """Drawn images with :data:`_BOXES` boxes each, of a tenth to a half of their sides."""
    rng = np.random.default_rng(number)
    batch = Batch.unfilled(images, size, _SLOTS)
    low = rng.uniform(0, 0.5, (images, _SLOTS, 2))
    corners = np.concatenate([low, low + rng.uniform(0.1, 0.5, low.shape)], axis=2)
    batch.images[:] = rng.integers(0, 256, batch.images.shape, dtype=np.uint8)
    batch.valid[:] = np.arange(_SLOTS) < _BOXES
    batch.boxes[:] = corners * np.array([size[1], size[0]] * 2) * batch.valid[..., None]
    batch.labels[:] = rng.integers(0, classes, batch.labels.shape) * batch.valid
    batch.sample_ids[:] = batch.image_ids[:] = np.arange(images) + number * images
    batch.sizes[:] = size
    batch.transforms[:] = 1.0, 1.0, 0.0, 0.0
    return replace(batch, step=number)


def stepper_of(
    model: Detector,
    accelerator: Accelerator,
    precision: Precision,
    images: int,
    *,
    compile_: str = "off",
) -> Stepper:
    """A stepper with SGD and an average of the weights."""
    device = accelerator.device()
    config = TrainConfig.model_validate(
        {
            "epochs": 1,
            "batch_size": images,
            "optimizer": SGDOptimizer(lr=1e-3, momentum=0.9, weight_decay=1e-4),
            "ema": EmaConfig(decay=0.999, warmup_steps=10),
            "virtual_shards": None,
            "compile": compile_,
        }
    )
    return Stepper(
        accelerator.place(model, device).train(),
        config,
        seed=1,
        accelerator=accelerator,
        precision=precision,
        collective=Collective(device),
    )


def matrix_rate(accelerator: Accelerator, device: torch.device, *, quick: bool) -> dict[str, float]:
    """TFLOP/s of a large product by precision: what a network is measured against."""
    side = 256 if quick or accelerator.kind == "cpu" else 8192
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if name == "bf16" and accelerator.resolve_precision("auto") != "bf16":
            continue
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        repeats = 3 if quick else 20
        seconds = timed(accelerator, partial(torch.mm, a, b), repeats)
        rates[name] = 2 * side**3 / seconds / 1e12
    return rates


def timed(accelerator: Accelerator, work: Callable[[], Any], repeats: int, skip: int = 2) -> float:
    """Mean seconds of a call."""
    for _ in range(skip):
        work()
    accelerator.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    accelerator.synchronize()
    return (time.perf_counter() - started) / repeats


# ---- Feeding ----


def _photograph(seed: int) -> bytes:
    """A JPEG of COCO's usual size with structure at all scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((480, 640, 3), np.float32)
    for cells in (4, 16, 64, 160):
        noise = rng.uniform(-60, 60, (cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    pixels: NDArray[np.uint8] = np.clip(image + 128, 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def prepare_images(count: int, side: int) -> float:
    """Decode and augment images on one thread; images/s. The process is left with one thread."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    files = [_photograph(seed) for seed in range(8)]
    augment = build_augment(SSDAugmentation(), (side, side))
    boxes = np.array([[100, 100, 300, 300], [20, 200, 90, 400]], np.float32)
    labels = np.zeros(2, np.int64)
    started = time.perf_counter()
    for number in range(count):
        image = decode_image(files[number % len(files)])
        augment(image, boxes, labels, SampleKey(1, 0, number))
    return count / (time.perf_counter() - started)


def feeding(setting: Setting) -> Tree:
    """Images/s that cores of this machine decode and augment, one and all of them."""
    cores = len(os.sched_getaffinity(0))
    number = 20 if setting.quick else 400
    found: Tree = {"cores": cores}
    threads = torch.get_num_threads(), cv2.getNumThreads()
    for side in (300, 512):
        found[f"{side} one core"] = prepare_images(number, side)
        if not setting.quick:
            with ProcessPoolExecutor(cores) as pool:
                shares = [pool.submit(prepare_images, number, side) for _ in range(cores)]
                found[f"{side} all cores"] = sum(share.result() for share in shares)
    # The parts that follow have those of the machine again.
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])
    return found


# ---- Evaluation ----


def evaluation(setting: Setting) -> Tree:
    """Images/s from arrays to detections, with the shortlist and with all candidates."""
    accelerator, device = setting.accelerator, setting.accelerator.device()
    precision = accelerator.resolve_precision("auto")

    def speed(case: Case) -> Tree:
        images = 2 if setting.quick else 32
        model = accelerator.place(make(case, small=setting.quick), device).eval()
        batches = [batch_of(n, images, model.input_size) for n in range(2 if setting.quick else 6)]
        recipe = PostprocessConfig(score_threshold=0.3)
        predict = partial(
            predict_share,
            model,
            batches,
            recipe,
            accelerator=accelerator,
            precision=precision,
            device=device,
        )
        seconds = timed(accelerator, predict, 1, skip=1)
        with torch.inference_mode(), accelerator.autocast(precision):
            pixels = images_to_device(batches[0], device)
            whole = timed(
                accelerator,
                lambda: [c.float().cpu() for c in model.decode(model(pixels))],
                2,
            )
        return {
            "images_per_s": images * len(batches) / seconds,
            "images_per_s_of_network_and_copy_of_all": images / whole,
        }

    return {"bytes_an_image": SHORTLIST * 24} | setting.of_each(speed)


# ---- Checkpoint and export ----


def checkpoint(setting: Setting) -> Tree:
    """How long a commit blocks the steps, and how fast its bytes are made."""
    case = CASES[0]
    stepper = stepper_of(make(case, small=setting.quick), setting.accelerator, "fp32", 2)
    stepper.run(batch_of(0, 2, stepper.model.input_size), learning_rate=1e-4, stop=False)
    copy = HostCopy()
    blocked = []
    for _ in range(3):
        setting.accelerator.synchronize()
        started = time.perf_counter()
        state = copy.take(capture(stepper, step=1, scalars={}))
        blocked.append(time.perf_counter() - started)
    started = time.perf_counter()
    size = sum(len(chunk) for file in encode(state).values() for chunk in file)
    seconds = time.perf_counter() - started
    return {"bytes": size, "blocked_ms": [b * 1e3 for b in blocked], "bytes_per_s": size / seconds}


def export(setting: Setting) -> Tree:
    """Whether torch's exporter takes detectors from the device, and what the graph is apart."""
    found: Tree = {}
    device = setting.accelerator.device()
    for case in CASES[1:3]:
        model = setting.accelerator.place(make(case, small=True), device).eval()
        height, width = model.input_size
        images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8).to(device)
        with torch.no_grad():
            program = torch.export.export(model, (images,)).module()
            here, there = model(images), program(images)
        found[case.variant] = max(float((here[n] - there[n]).abs().max()) for n in here)
    return found
