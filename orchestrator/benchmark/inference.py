"""Detection: latency and throughput by batch size, with and without what is around the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.config import PostprocessConfig
from orchestrator.accelerators import Accelerator, Precision
from orchestrator.data.augment.protocol import Augment
from orchestrator.predict.predictor import DetectOptions, TorchNetwork, detect


@dataclass(frozen=True)
class Latency:
    """Batches of one size; milliseconds of wall time.

    Attributes:
        batch: images.
        median_ms, p90_ms: from images in memory to their detections.
        network_ms: median of network and decoding alone.
        images_per_s: at the median.
    """

    batch: int
    median_ms: float
    p90_ms: float
    network_ms: float
    images_per_s: float


def measure_inference(
    model: Any,
    images: Sequence[NDArray[np.uint8]],
    *,
    prepare: Augment,
    postprocess: PostprocessConfig,
    accelerator: Accelerator,
    precision: Precision,
    batches: Sequence[int],
    repeats: int,
) -> list[Latency]:
    """Detect in batches of several sizes.

    Args:
        model: a detector; put into evaluation mode and left in the mode it had.
        images: (h, w, 3) uint8 RGB each, taken in turn.
        prepare: brings them to the network's size.
        postprocess: thresholds and suppression.
        accelerator: where the network computes.
        precision: of the forward pass.
        batches: sizes.
        repeats: batches timed of each size, after two that are not.
    """
    training = model.training
    network = TorchNetwork(model.eval(), accelerator, precision)
    how = DetectOptions(postprocess)
    found = []
    for size in batches:
        batch = [images[i % len(images)] for i in range(size)]
        height, width = model.input_size
        ready = np.zeros((size, height, width, 3), np.uint8)
        whole = _times(
            lambda: detect(network, batch, how, prepare=prepare, batch_size=size),  # noqa: B023
            repeats,
        )
        alone = _times(lambda: _awaited(network, ready), repeats)  # noqa: B023
        median = statistics.median(whole)
        found.append(
            Latency(
                batch=size,
                median_ms=median * 1e3,
                p90_ms=float(np.quantile(whole, 0.9)) * 1e3,
                network_ms=statistics.median(alone) * 1e3,
                images_per_s=size / median,
            )
        )
    model.train(training)
    return found


def _awaited(network: TorchNetwork, images: NDArray[np.uint8]) -> None:
    """Run a network until its device is done."""
    network(images)
    network.accelerator.synchronize()


def _times(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call, which leaves no device to wait for."""
    spent = []
    for number in range(repeats + 2):
        started = time.perf_counter()
        work()
        if number >= 2:
            spent.append(time.perf_counter() - started)
    return spent
