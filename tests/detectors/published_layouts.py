"""Tensors as published files lay them out, filled with numbers that tell them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: Convolutions of ``vgg16_reducedfc.pth`` and of the backbones of released detectors.
VGG_CONVOLUTIONS = {
    0: (64, 3, 3),
    2: (64, 64, 3),
    5: (128, 64, 3),
    7: (128, 128, 3),
    10: (256, 128, 3),
    12: (256, 256, 3),
    14: (256, 256, 3),
    17: (512, 256, 3),
    19: (512, 512, 3),
    21: (512, 512, 3),
    24: (512, 512, 3),
    26: (512, 512, 3),
    28: (512, 512, 3),
    31: (1024, 512, 3),
    33: (1024, 1024, 1),
}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Small numbers that differ from tensor to tensor and from place to place."""
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        count = math.prod(shape)
        values = torch.arange(count, dtype=torch.float32).remainder_(997.0).add_(index / 1024)
        tensors[name] = values.reshape(shape)
    return tensors


def like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same names, shapes and types as ``state``, on the CPU and told apart."""
    values = filled({name: tuple(tensor.shape) for name, tensor in state.items()})
    return {name: values[name].to(state[name].dtype) for name in state}


def vgg16_reducedfc() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (out, into, kernel) in VGG_CONVOLUTIONS.items():
        shapes[f"{index}.weight"] = (out, into, kernel, kernel)
        shapes[f"{index}.bias"] = (out,)
    return filled(shapes)


def amdegroot_ssd300(classes: int) -> dict[str, Tensor]:
    """SSD300 of amdegroot/ssd.pytorch with ``classes`` channels, background among them."""
    shapes: dict[str, tuple[int, ...]] = {
        f"vgg.{name}": tuple(tensor.shape) for name, tensor in vgg16_reducedfc().items()
    }
    shapes["L2Norm.weight"] = (512,)
    extras = [
        (256, 1024, 1),
        (512, 256, 3),
        (128, 512, 1),
        (256, 128, 3),
        (128, 256, 1),
        (256, 128, 3),
        (128, 256, 1),
        (256, 128, 3),
    ]
    for index, (out, into, kernel) in enumerate(extras):
        shapes[f"extras.{index}.weight"] = (out, into, kernel, kernel)
        shapes[f"extras.{index}.bias"] = (out,)
    maps = zip((512, 1024, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), strict=True)
    for index, (channels, boxes) in enumerate(maps):
        for head, columns in (("loc", 4), ("conf", classes)):
            shapes[f"{head}.{index}.weight"] = (boxes * columns, channels, 3, 3)
            shapes[f"{head}.{index}.bias"] = (boxes * columns,)
    return filled(shapes)


def conv_bn(prefix: str, out: int, into: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """A convolution without bias and its batch normalisation, as ``.conv`` and ``.bn``."""
    return {
        f"{prefix}.conv.weight": (out, into, kernel, kernel),
        **{
            f"{prefix}.bn.{part}": (out,)
            for part in ("weight", "bias", "running_mean", "running_var")
        },
        f"{prefix}.bn.num_batches_tracked": (),
    }
