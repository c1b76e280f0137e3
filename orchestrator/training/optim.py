"""Optimizers and their parameter groups from the typed configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from orchestrator.config.schema import AdamWOptimizer, Optimizer, SGDOptimizer


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, Any]]:
    """Trainable parameters in model order, split into decayed and not decayed.

    Args:
        model: whose parameters with ``requires_grad`` are taken.
        weight_decay: of the decayed group.
        decay_norm_and_bias: when false, biases and the scale and shift of normalisation layers
            (every tensor with fewer than two dimensions) are left out of weight decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim >= 2
        (decayed if matrix or decay_norm_and_bias else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``; its learning rate is set anew at every step."""
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
    )
    match config:
        case SGDOptimizer(lr=lr, momentum=momentum, nesterov=nesterov):
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
        case AdamWOptimizer(lr=lr, betas=betas, eps=eps):
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
