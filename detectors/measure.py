"""Counting what a detector consists of, on torch's meta device, without memory for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detectors.config import DetectorConfig
from detectors.figures import Measured
from detectors.skeleton import meta_detector


def measure(config: DetectorConfig, *, num_classes: int) -> Measured:
    """Count parameters, multiply-adds and priors of a detector.

    Args:
        config: of the detector.
        num_classes: foreground classes.
    """
    model = meta_detector(config, num_classes=num_classes).eval()
    parameters = list(model.parameters())
    statistics = [buffer for buffer in _persistent(model) if buffer.is_floating_point()]
    height, width = model.input_size
    images = torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta")
    # Operations are counted as two for each multiply-add.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        raw = model(images)
    priors = model.prior_boxes()
    operations = counter.get_total_flops()
    return Measured(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        parameter_tensors=len(parameters),
        values=sum(tensor.numel() for tensor in (*parameters, *statistics)),
        value_tensors=len(parameters) + len(statistics),
        state_entries=len(model.state_dict()),
        multiply_adds=operations // 2,
        priors=0 if priors is None else len(priors),
        candidates=model.decode(raw).scores.shape[1],
        height=height,
        width=width,
    )


def _persistent(model: nn.Module) -> list[torch.Tensor]:
    """Buffers that are saved, those of a shared module once."""
    saved = set(model.state_dict())
    return [buffer for name, buffer in model.named_buffers() if name in saved]
