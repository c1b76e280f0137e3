"""What can be wrong with a file of weights."""

from __future__ import annotations


class WeightsError(ValueError):
    """The file cannot be read as weights, or its weights are not those of the network."""


class UnsafeWeightsError(WeightsError):
    """The file asks for more than tensors: reading it would run code from it."""
