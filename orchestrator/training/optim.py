"""Optimizers and their parameter groups from the typed configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from detectors.operators import call_without_compiler
from orchestrator.config.schema import AdamWOptimizer, Optimizer, ParameterGroup, SGDOptimizer
from orchestrator.errors import ConfigError
from orchestrator.training.patterns import fits, nothing_fits


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_norm_and_bias: bool,
    groups: Sequence[ParameterGroup] = (),
) -> list[dict[str, Any]]:
    """Trainable parameters in model order, those with equal settings together.

    Args:
        model: whose parameters with ``requires_grad`` are taken.
        weight_decay: of what is decayed.
        decay_norm_and_bias: when false, biases and the scale and shift of normalisation layers
            (every tensor with fewer than two dimensions) are left out of weight decay.
        groups: settings of their own; the first that a parameter belongs to counts.

    Returns:
        Groups for a torch optimizer, each with its ``weight_decay`` and its ``lr_factor``.

    Raises:
        ConfigError: a group to which no trainable parameter belongs.
    """
    sorted_out: dict[tuple[float, float], list[nn.Parameter]] = {}
    used: set[int] = set()
    names: dict[str, list[str]] = {"any": [], "norm": [], "bias": [], "weight": []}
    for name, kind, parameter in _trainable(model):
        names["any"].append(name)
        names[kind].append(name)
        decay = weight_decay if parameter.ndim >= 2 or decay_norm_and_bias else 0.0
        factor = 1.0
        for index, group in enumerate(groups):
            if belongs(name, kind, group):
                used.add(index)
                factor = group.lr_factor
                decay = decay if group.weight_decay is None else group.weight_decay
                break
        sorted_out.setdefault((decay, factor), []).append(parameter)
    for index, group in enumerate(groups):
        if index not in used:
            what = "trainable parameters"
            what += "" if group.kind == "any" else f" of kind {group.kind}"
            message = nothing_fits(group.names, names[group.kind], what)
            raise ConfigError(f"train.optimizer.groups.{index}: {message}")
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), parameters in sorted_out.items()
    ]


def belongs(name: str, kind: str, group: ParameterGroup) -> bool:
    """Whether a parameter of this name and kind is one of the group's."""
    return group.kind in ("any", kind) and fits(name, group.names)


def _trainable(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Name, kind and tensor of each parameter that trains, in model order."""
    norms = {name for name, module in model.named_modules() if is_norm(module)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, last = name.rpartition(".")
            kind = "norm" if owner in norms else "bias" if last == "bias" else "weight"
            yield name, kind, parameter


def _eager(step: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step without what is around it for torch's compiler, which that imports."""
    found: Callable[..., Any] = torch.no_grad()(inspect.unwrap(step))
    return found


class SGD(torch.optim.SGD):
    """Torch's, see :func:`_eager`."""

    step = _eager(torch.optim.SGD.step)


class AdamW(torch.optim.AdamW):
    """Torch's, see :func:`_eager`."""

    step = _eager(torch.optim.AdamW.step)


def is_norm(module: nn.Module) -> bool:
    """Whether a layer normalises, by the statistics of a batch or of a sample."""
    return isinstance(module, nn.GroupNorm | nn.LayerNorm) or hasattr(module, "running_mean")


def build_optimizer(
    model: nn.Module, config: Optimizer, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The configured optimizer over ``model``; its learning rate is set anew at every step.

    Args:
        model: whose parameters train.
        config: of the optimizer.
        fused: take the kernel that does the whole update in one pass, and leaves it out where its
            ``found_inf`` says so; it rounds differently.
    """
    _keep_from_compiler()
    kernel = True if fused else None
    groups = parameter_groups(
        model,
        weight_decay=config.weight_decay,
        decay_norm_and_bias=config.decay_norm_and_bias,
        groups=config.groups,
    )
    match config:
        case SGDOptimizer(lr=lr, momentum=momentum, nesterov=nesterov):
            return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=kernel)
        case AdamWOptimizer(lr=lr, betas=betas, eps=eps):
            return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=kernel)


def _keep_from_compiler() -> None:
    """Nothing here compiles an optimizer, whose methods would import the compiler nonetheless."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        call_without_compiler(getattr(torch.optim.Optimizer, name))
