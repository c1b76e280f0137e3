"""The whole benchmark of an experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.accelerators import of_this_process
from orchestrator.benchmark.inference import measure_inference
from orchestrator.benchmark.result import BenchmarkResult
from orchestrator.benchmark.training import Trainer, measure_training, write_trace
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.errors import DataError
from orchestrator.memory import peak_bytes
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.run_card import Hardware, package_versions

log = logging.getLogger(__name__)


def benchmark(
    resolved: ResolvedExperiment,
    *,
    steps: int,
    skip: int,
    batches: Sequence[int],
    repeats: int,
    trace: Path | None = None,
) -> BenchmarkResult:
    """Measure an experiment in this process, from random weights.

    Args:
        resolved: the experiment; its batch size is that of one worker here.
        steps, skip: of training, counted and left out.
        batches: sizes of batches to detect in.
        repeats: batches of each size.
        trace: file to trace three more steps into.

    Raises:
        DataError: the data set is missing or malformed, or no validation image can be read.
        ConfigError: the device that the experiment asks for is not here, or it has an operator
            without the deterministic kernel that it asks for.
    """
    experiment = resolved.experiment
    accelerator = of_this_process(experiment.cluster.accelerator)
    trainer = Trainer(resolved, accelerator)
    with accelerator.naming_operators():
        training = measure_training(trainer, steps=steps, skip=skip)
        evaluation = trainer.evaluate(max(1, steps // 2))
    graph = trainer.stepper.graph
    if graph is not None and graph.trouble is not None:
        log.warning("%s", graph.text())
    model = trainer.model
    inference = measure_inference(
        model,
        _images(trainer.plan.job.val, max(batches)),
        prepare=build_augment(experiment.data.augmentation, model.input_size).plain(),
        postprocess=experiment.detector.postprocess,
        accelerator=accelerator,
        precision=trainer.precision,
        batches=batches,
        repeats=repeats,
    )
    if trace is not None:
        write_trace(trainer, trace)
    kind = accelerator.kind
    return BenchmarkResult(
        detector=experiment.detector.title,
        config_digest=resolved.digest,
        code=str(git_info() or "in no git repository"),
        hardware=str(Hardware.here([] if kind == "cpu" else [kind])),
        versions=package_versions(),
        precision=trainer.precision,
        threads=torch.get_num_threads(),
        training=training,
        evaluation=evaluation,
        inference=inference,
        peak_process_bytes=peak_bytes(),
        peak_device_bytes=accelerator.peak_memory(),
    )


def _images(dataset: Dataset, count: int) -> list[NDArray[np.uint8]]:
    """Up to ``count`` images of a data set that can be read."""
    images = []
    for position in range(len(dataset)):
        try:
            images.append(image_pixels(dataset, position))
        except BadImageError:
            continue
        if len(images) == count:
            break
    if not images:
        raise DataError(
            f"none of the {len(dataset)} validation images can be read; check data.root"
        )
    return images
