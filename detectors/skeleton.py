"""A detector without memory for its weights, of which all but values can be asked at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detectors.base import Detector
from detectors.config import DetectorConfig
from detectors.registry import build_detector

#: Functions that change nothing but the values of the tensor that they are given.
_FILL = {
    "__setitem__",
    *("add_", "bernoulli_", "clamp_", "constant_", "copy_", "dirac_", "div_", "eye_", "fill_"),
    *("kaiming_normal_", "kaiming_uniform_", "mul_", "normal_", "ones_", "orthogonal_", "sub_"),
    *("trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zero_", "zeros_"),
}


class _Unfilled(TorchFunctionMode):
    """Puts what layers allocate on torch's meta device, and leaves it unfilled.

    With everything there, as by ``torch.device("meta")``, most of what a constructor computes is
    done by a part of torch that imports its compiler first, which takes two seconds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            return func(*args, **{**kwargs, "device": "meta"})
        filled = args[0] if args else kwargs.get("tensor")
        if func.__name__ in _FILL and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


def skeleton(config: DetectorConfig, *, num_classes: int) -> Detector:
    """The detector with weights that have shape and type only; buffers may have values."""
    try:
        with _Unfilled():
            return build_detector(config, num_classes=num_classes)
    except (RuntimeError, NotImplementedError):
        # A constructor that computes with weights.
        return meta_detector(config, num_classes=num_classes)


def meta_detector(config: DetectorConfig, *, num_classes: int) -> Detector:
    """The same with all tensors on the meta device, where its forward pass has shapes, too."""
    with torch.device("meta"):
        return build_detector(config, num_classes=num_classes)
