"""SpineNet and RetinaNet's head once more, as functions of a state dict in float64.

Written from the facts alone (levels, kinds, inputs, resampling rules), without the package's
modules, so that names, shapes and the order of operations are checked by what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]

#: Level, kind and inputs of blocks 2 to 16: b is a bottleneck, r a residual block.
TABLE = (
    "2b 0 1|4r 0 1|3b 2 3|4b 2 4|6r 3 5|4b 3 5|5r 6 7|7r 6 8|5b 8 9|5b 8 10"
    "|4b 5 10|3b 4 10|5b 7 12|7b 5 14|6b 12 14"
)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-3)
    shift = state[f"{name}.bias"] - mean * scale
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def conv_bn(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    out = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    return norm(state, f"{name}.bn", out)


def unit(state: State, name: str, x: Tensor, kind: str, act: Callable[[Tensor], Tensor]) -> Tensor:
    out = x
    kernels = (1, 3, 1) if kind == "b" else (3, 3)
    for i, kernel in enumerate(kernels, start=1):
        weight = state[f"{name}.conv{i}.weight"]
        assert weight.shape[-2:] == (kernel, kernel)
        out = norm(state, f"{name}.bn{i}", F.conv2d(out, weight, padding=kernel // 2))
        if i < len(kernels):
            out = act(out)
    if f"{name}.downsample.0.weight" in state:
        x = F.conv2d(x, state[f"{name}.downsample.0.weight"])
        x = norm(state, f"{name}.downsample.1", x)
    return act(out + x)


def group(state: State, name: str, x: Tensor, kind: str, act: Callable[[Tensor], Tensor]) -> Tensor:
    index = 0
    while f"{name}.{index}.conv1.weight" in state:
        x = unit(state, f"{name}.{index}", x, kind, act)
        index += 1
    assert index > 0, name
    return x


def resample(
    state: State, name: str, x: Tensor, rise: int, act: Callable[[Tensor], Tensor]
) -> Tensor:
    x = act(conv_bn(state, f"{name}.squeeze_conv", x))
    if rise > 0:
        x = act(conv_bn(state, f"{name}.downsample_conv", x, stride=2))
        if rise == 2:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        elif rise > 2:
            x = F.max_pool2d(x, 5, stride=2**rise // 2, padding=2)
    elif rise < 0:
        x = x.repeat_interleave(2**-rise, dim=2).repeat_interleave(2**-rise, dim=3)
    return conv_bn(state, f"{name}.expand_conv", x)


def backbone(
    state: State, x: Tensor, act: Callable[[Tensor], Tensor] = F.relu, *, activated: bool = False
) -> list[Tensor]:
    """Five maps of a normalised image, from the state dict of a backbone."""
    state = {name: value.double() for name, value in state.items()}
    x = act(conv_bn(state, "conv1", x.double(), stride=2))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    first = group(state, "init_block1", x, "b", act)
    maps, levels = [first, group(state, "init_block2", first, "b", act)], [2, 2]
    for index, row in enumerate(TABLE.split("|")):
        kind, *parents = row.split()
        level = int(kind[0])
        merged = torch.zeros((), dtype=torch.float64)
        for place, parent in enumerate(map(int, parents)):
            name = f"merge_ops.{index}.resample_ops.{place}"
            merged = merged + resample(state, name, maps[parent], level - levels[parent], act)
        if index + 2 == 14:
            merged = merged + maps[11]
        maps.append(group(state, f"scale_permuted_blocks.{index}", act(merged), kind[1], act))
        levels.append(level)
    ends = [(3, 13), (4, 12), (5, 14), (6, 16), (7, 15)]
    found = [conv_bn(state, f"endpoint_convs.{level}", maps[index]) for level, index in ends]
    return [act(x) for x in found] if activated else found


def head(state: State, maps: list[Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Offsets and class logits from the state dict of a head."""
    state = {name: value.double() for name, value in state.items()}
    found = []
    for tower, predictor, columns in (("reg", "reg", 4), ("cls", "cls", classes)):
        rows = []
        for level, x in enumerate(maps):
            index = 0
            while f"{tower}_convs.{level}.{index}.conv.weight" in state:
                x = F.relu(conv_bn(state, f"{tower}_convs.{level}.{index}", x))
                index += 1
            name = f"retina_{predictor}"
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
            n, channels, height, width = x.shape
            x = x.view(n, channels // columns, columns, height, width)
            rows.append(x.permute(0, 3, 4, 1, 2).reshape(n, -1, columns))
        found.append(torch.cat(rows, dim=1))
    return found[0], found[1]
