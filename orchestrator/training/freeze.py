"""What an experiment changes about a detector before it trains: what is frozen, what is shared."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.config.schema import TrainConfig
from orchestrator.errors import ConfigError
from orchestrator.training.normalization import (
    FixedBatchNorm2d,
    SharedBatchNorm2d,
    replace_batch_norm,
)
from orchestrator.training.patterns import fits, nothing_fits


def adapt(model: nn.Module, config: TrainConfig) -> None:
    """Freeze parameters and statistics, and share batch normalisation, as configured.

    Args:
        model: changed in place, before anything holds on to its parameters.
        config: of the experiment.

    Raises:
        ConfigError: a pattern that no parameter or layer has, a layer of a kind that cannot be
            kept fixed or shared, or nothing left to train.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for index, pattern in enumerate(config.freeze.parameters):
        names = _named(pattern, parameters, f"train.freeze.parameters.{index}", "parameters")
        for name in names:
            parameters[name].requires_grad_(False)
    norms = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.BatchNorm2d)
    ]
    for index, pattern in enumerate(config.freeze.batch_norm):
        names = _named(
            pattern, norms, f"train.freeze.batch_norm.{index}", "batch-normalisation layers"
        )
        replace_batch_norm(model, FixedBatchNorm2d, frozenset(names).__contains__)
        for name in names:
            _require(model.get_submodule(name), name, f"train.freeze.batch_norm.{index}")
    if config.sync_batch_norm:
        replace_batch_norm(model, SharedBatchNorm2d, lambda _: True)
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm):
                _require(module, name, "train.sync_batch_norm")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "train.freeze.parameters: no parameter is left to train; name fewer of them"
        )


def _require(layer: nn.Module, name: str, key: str) -> None:
    """Refuse a layer that was to be replaced, and is not of the kind that can be."""
    if not isinstance(layer, FixedBatchNorm2d | SharedBatchNorm2d):
        raise ConfigError(
            f"{key}: '{name}' is a {type(layer).__name__}, a kind of its own, and would stay as it "
            "is; allowed is torch's BatchNorm2d. Next: leave it out, or have the detector use that"
        )


def _named(pattern: str, names: Iterable[str], key: str, what: str) -> list[str]:
    """The names that fit ``pattern``, of which there must be some."""
    known = list(names)
    found = [name for name in known if fits(name, [pattern])]
    if not found:
        raise ConfigError(f"{key}: {nothing_fits([pattern], known, what)}")
    return found
