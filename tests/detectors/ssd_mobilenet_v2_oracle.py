"""SSD300-MobileNetV2 a second time, straight from the published description, in float64.

Nothing here comes from the package: the network is a list of plain functional calls over a state
dict, the priors nested loops, matching and loss loops over images, boxes and priors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]

# Block and stride of its depthwise convolution; the names are the reference's.
_BLOCKS = [
    ("features_1.1", 1),
    ("features_1.2", 2), ("features_1.3", 1),
    ("features_1.4", 2), ("features_1.5", 1), ("features_1.6", 1),
    ("features_1.7", 2), ("features_1.8", 1), ("features_1.9", 1), ("features_1.10", 1),
    ("features_1.11", 1), ("features_1.12", 1), ("features_1.13", 1),
    ("features_2.0", 2), ("features_2.1", 1), ("features_2.2", 1),
    ("features_2.3", 1),
]  # fmt: skip


class Oracle:
    """Runs the network on float64 copies of ``weights``; ``training`` uses batch statistics."""

    def __init__(self, weights: Weights, *, eps: float, training: bool) -> None:
        self.weights = weights
        self.eps = eps
        self.training = training

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        padded = F.pad(x, pads)
        if weight.shape[1] == x.shape[1]:
            out = F.conv2d(padded, weight, stride=stride)
        else:
            rows, columns = math.ceil(x.shape[2] / stride), math.ceil(x.shape[3] / stride)
            out = torch.zeros(len(x), x.shape[1], rows, columns, dtype=x.dtype)
            for dy in range(kernel):
                for dx in range(kernel):
                    window = padded[:, :, dy::stride, dx::stride][:, :, :rows, :columns]
                    out = out + window * weight[None, :, 0, dy, dx, None, None]
        bias = self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias[None, :, None, None]

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.training:
            mean = x.mean((0, 2, 3))
            var = ((x - mean[None, :, None, None]) ** 2).mean((0, 2, 3))
        else:
            mean = self.weights[f"{name}.running_mean"]
            var = self.weights[f"{name}.running_var"]
        scale = self.weights[f"{name}.weight"] / torch.sqrt(var + self.eps)
        shift = self.weights[f"{name}.bias"] - mean * scale
        return x * scale[None, :, None, None] + shift[None, :, None, None]

    def unit(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """Convolution, normalisation, ReLU6."""
        return self.norm(self.conv(x, f"{name}.0", stride), f"{name}.1").clamp(0, 6)

    def bottleneck(self, x: Tensor, name: str, stride: int) -> Tensor:
        expands = f"{name}.conv.3.weight" in self.weights
        out, last = x, 1
        if expands:
            out, last = self.unit(out, f"{name}.conv.0.features"), 2
        out = self.unit(out, f"{name}.conv.{last - 1}.features", stride)
        out = self.norm(self.conv(out, f"{name}.conv.{last}"), f"{name}.conv.{last + 1}")
        return x + out if x.shape == out.shape else out

    def head(self, x: Tensor, name: str) -> Tensor:
        out = self.norm(self.conv(x, f"{name}.0"), f"{name}.1").clamp(0, 6)
        return self.conv(out, f"{name}.3").permute(0, 2, 3, 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        # Constants rounded to float32 first, because a deep network amplifies the difference.
        mean = torch.tensor([0.485 * 255, 0.456 * 255, 0.406 * 255]).double()
        std = torch.tensor([0.229 * 255, 0.224 * 255, 0.225 * 255]).double()
        x = (images.double() - mean[None, :, None, None]) / std[None, :, None, None]
        x = self.unit(x, "backbone.features_1.0.features", 2)
        found = []
        for name, stride in _BLOCKS:
            if name == "features_2.0":
                found.append(self.unit(x, "backbone.expand_layer_conv_13.features"))
            x = self.bottleneck(x, f"backbone.{name}", stride)
        found.append(self.unit(x, "backbone.features_2.4.features"))
        for index in range(4):
            extra = self.bottleneck(found[-1], f"multi_residual.{index}", 2)
            found.append(extra.clamp(0, 6))
        return found

    def raw(self, images: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        loc, cls = [], []
        for index, found in enumerate(self.maps(images)):
            offsets = self.head(found, f"multi_box.multi_loc_layers.{index}")
            logits = self.head(found, f"multi_box.multi_cls_layers.{index}")
            loc.append(offsets.reshape(len(images), -1, 4))
            cls.append(logits.reshape(len(images), -1, 1 + classes))
        return torch.cat(loc, 1), torch.cat(cls, 1)


def priors() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(1917, 4) centre form ``cy, cx, h, w`` and corners ``y1, x1, y2, x2``."""
    scales = [0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0]
    rows = []
    for level, (cells, step) in enumerate(
        [(19, 16), (10, 32), (5, 64), (3, 100), (2, 150), (1, 300)]
    ):
        s = scales[level]
        if level == 0:
            sizes = [(0.1, 0.1), (s * 2**0.5, s / 2**0.5), (s / 2**0.5, s * 2**0.5)]
        else:
            sizes = [(s, s)]
            for ratio in (2, 3):
                sizes += [(s * ratio**0.5, s / ratio**0.5), (s / ratio**0.5, s * ratio**0.5)]
            sizes += [((s * scales[level + 1]) ** 0.5,) * 2]
        for i in range(cells):
            for j in range(cells):
                for w, h in sizes:
                    rows.append(((i + 0.5) * step / 300, (j + 0.5) * step / 300, h, w))
    centers = np.array(rows)
    half = centers[:, 2:] / 2
    return centers, np.concatenate([centers[:, :2] - half, centers[:, :2] + half], axis=1)


def encode_image(
    boxes_xyxy: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Targets of one image from its boxes in pixels: (1917, 4) offsets, (1917,) channel."""
    centers, corners = priors()
    wanted, channel = np.zeros((len(centers), 4)), np.zeros(len(centers), np.int64)
    best = np.zeros(len(centers), np.float32)
    # The reference computes overlaps in float32, which decides cases next to the threshold.
    py1, px1, py2, px2 = corners.astype(np.float32).T
    for box, label in zip(boxes_xyxy[:, [1, 0, 3, 2]], labels, strict=True):
        y1, x1, y2, x2 = box / 300
        fy1, fx1, fy2, fx2 = box.astype(np.float32) / np.float32(300)
        height = np.maximum(np.minimum(fy2, py2) - np.maximum(fy1, py1), np.float32(0))
        width = np.maximum(np.minimum(fx2, px2) - np.maximum(fx1, px1), np.float32(0))
        shared = height * width
        area = (py2 - py1) * (px2 - px1)
        overlap = shared / (area + (fy2 - fy1) * (fx2 - fx1) - shared)
        overlap[np.argmax(overlap)] = 2.0
        for index in np.flatnonzero((overlap > 0.5) & (overlap > best)):
            cy, cx, h, w = centers[index]
            best[index], channel[index] = overlap[index], label + 1
            wanted[index] = (
                ((y1 + y2) / 2 - cy) / (0.1 * h),
                ((x1 + x2) / 2 - cx) / (0.1 * w),
                math.log(max((y2 - y1) / h, 1e-6)) / 0.2,
                math.log(max((x2 - x1) / w, 1e-6)) / 0.2,
            )
    return wanted, channel


def losses(
    loc: Tensor, cls: Tensor, wanted: NDArray[np.float64], channel: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Both losses of a batch, (N, 1917, ...) float64."""
    target = F.one_hot(torch.from_numpy(channel), cls.shape[-1]).double()
    positive = torch.from_numpy(channel > 0)
    count = max(int(positive.sum()), 1)
    gap = (loc - torch.from_numpy(wanted)).abs()
    smooth = torch.where(gap < 1, 0.5 * gap**2, gap - 0.5)
    p = torch.sigmoid(cls)
    p_t = target * p + (1 - target) * (1 - p)
    alpha_t = target * 0.75 + (1 - target) * 0.25
    entropy = F.binary_cross_entropy_with_logits(cls, target, reduction="none")
    return {
        "cls": ((1 - p_t) ** 2 * alpha_t * entropy).sum() / count,
        "loc": (smooth.sum(-1) * positive).sum() / count,
    }


def decode(loc: Tensor) -> NDArray[np.float64]:
    """(N, 1917, 4) offsets to xyxy pixels cut to the image."""
    centers, _ = priors()
    offsets = loc.detach().double().numpy()
    cy = offsets[..., 0] * 0.1 * centers[:, 2] + centers[:, 0]
    cx = offsets[..., 1] * 0.1 * centers[:, 3] + centers[:, 1]
    h = np.exp(offsets[..., 2] * 0.2) * centers[:, 2]
    w = np.exp(offsets[..., 3] * 0.2) * centers[:, 3]
    corners = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)
    return np.clip(corners, 0, 1) * 300
