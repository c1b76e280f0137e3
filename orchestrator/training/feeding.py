"""Bringing batches to the device while it is still at the step before.

On a CPU a batch is where it is needed. On other devices its arrays lie in pinned memory, which the
stream of batches filled and the device reads by itself, and are copied on a stream of their own:
the host asks for the copy of a step's batch after it has begun the step before, so the two overlap.
Memory is reused when a copy out of it, or a step with it, is over; torch's allocators see to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.structures import Targets
from orchestrator.data.batch import Batch
from orchestrator.training.predictor import images_to_device


class Inputs(NamedTuple):
    """What a step reads of its batch, on the device.

    Attributes:
        images: (N, 3, H, W) uint8.
        targets: of these images.
    """

    images: Tensor
    targets: Targets


def inputs_of(batch: Batch, device: torch.device) -> Inputs:
    """Copy a batch to a device, behind what it was given before."""
    return Inputs(
        images_to_device(batch, device),
        Targets(
            boxes=torch.from_numpy(batch.boxes).to(device, non_blocking=True),
            labels=torch.from_numpy(batch.labels).to(device, non_blocking=True),
            valid=torch.from_numpy(batch.valid).to(device, non_blocking=True),
        ),
    )


def fed(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Inputs]]:
    """Batches, each with its inputs, copied beside what the device is doing."""
    if device.type == "cpu":
        for batch in batches:
            yield batch, inputs_of(batch, device)
        return
    stream = torch.Stream(device)
    for batch in batches:
        with stream:
            inputs = inputs_of(batch, device)
        copied = stream.record_event()
        current = torch.accelerator.current_stream(device)
        current.wait_event(copied)
        for tensor in (inputs.images, *inputs.targets):
            # Made on one stream and used on another: its memory is not free before both are done.
            tensor.record_stream(current)
        yield batch, inputs
