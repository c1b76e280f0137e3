"""M2Det once more, as functions of a state dict in float64 and loops over images and boxes.

Written from the facts alone (layers, strides, orders of concatenation, formulas), without the
package's modules, so that names, shapes and the order of operations are checked by what they
compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]

#: Kernels, strides and paddings of the named layers of every U.
ENCODER = ((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 1, 0))

PRIORS = {
    320: ((8, 16, 32, 64, 107, 320), (0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
    512: ((8, 16, 32, 64, 128, 256), (0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
    704: ((8, 16, 32, 64, 117, 176), (0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05)),
    800: ((8, 16, 32, 62, 115, 160), (0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)),
}


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    shift = state[f"{name}.bias"] - mean * scale
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def basic(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    out = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
    return norm(state, f"{name}.bn", out).relu()


def vgg(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    shallow = x
    for index in range(35):
        name = f"base.{index}"
        if index in (4, 9, 16, 23):
            x = F.max_pool2d(x, 2, 2)
        elif index == 30:
            x = F.max_pool2d(x, 3, 1, 1)
        elif f"{name}.weight" in state:
            large = index == 31
            padding = 6 if large else 0 if index == 33 else 1
            x = F.conv2d(
                x,
                state[f"{name}.weight"],
                state[f"{name}.bias"],
                padding=padding,
                dilation=6 if large else 1,
            ).relu()
        if index == 22:
            shallow = x
    return shallow, x


def resnet(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    x = norm(state, "base.bn1", F.conv2d(x, state["base.conv1.weight"], stride=2, padding=3))
    x = F.max_pool2d(x.relu(), 3, 2, 1)
    stages = []
    for stage, stride in zip((1, 2, 3, 4), (1, 2, 1, 2), strict=True):
        block = 0
        while f"base.layer{stage}.{block}.conv1.weight" in state:
            name, step = f"base.layer{stage}.{block}", stride if block == 0 else 1
            out = norm(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])).relu()
            out = F.conv2d(out, state[f"{name}.conv2.weight"], stride=step, padding=1)
            out = norm(state, f"{name}.bn2", out).relu()
            out = norm(state, f"{name}.bn3", F.conv2d(out, state[f"{name}.conv3.weight"]))
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=step)
                x = norm(state, f"{name}.downsample.1", x)
            x = (x + out).relu()
            block += 1
        stages.append(x)
    return stages[1], stages[3]


def nearest(x: Tensor, height: int, width: int) -> Tensor:
    rows = torch.arange(height) * x.shape[2] // height
    columns = torch.arange(width) * x.shape[3] // width
    return x[:, :, rows][:, :, :, columns]


def u_shape(state: State, name: str, x: Tensor) -> list[Tensor]:
    encoded = [x]
    for index, (_, stride, padding) in enumerate(ENCODER):
        encoded.append(basic(state, f"{name}.layers.{index}", encoded[-1], stride, padding))
    summed = basic(state, f"{name}.toplayer.0", encoded[5])
    outputs = [summed]
    for index in range(5):
        lateral = basic(state, f"{name}.latlayer.{index}", encoded[4 - index], 1, 1)
        summed = nearest(summed, lateral.shape[2], lateral.shape[3]) + lateral
        outputs.append(basic(state, f"{name}.smooth.{index}", summed))
    return outputs


def forward(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """RGB images 0..255 to offsets (N, A, 4) and logits (N, A, C), in evaluation mode."""
    state = {name: value.double() for name, value in state.items()}
    x = images.double()[:, [2, 1, 0]] - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    shallow, deep = (resnet if "base.conv1.weight" in state else vgg)(state, x)
    shallow = basic(state, "reduce", shallow, 1, 1)
    deep = basic(state, "up_reduce", deep)
    base = torch.cat([shallow, nearest(deep, 2 * deep.shape[2], 2 * deep.shape[3])], 1)
    levels: list[list[Tensor]] = []
    while f"unet{len(levels) + 1}.toplayer.0.conv.weight" in state:
        own = basic(state, f"leach.{len(levels)}", base)
        own = torch.cat([own, levels[-1][-1]], 1) if levels else own
        levels.append(u_shape(state, f"unet{len(levels) + 1}", own))
    loc, conf = [], []
    for scale in range(6):
        source = torch.cat([level[5 - scale] for level in levels], 1)
        if "sfam_module.fc1.0.weight" in state:
            mean = source.mean((2, 3), keepdim=True)
            for layer, act in (("fc1", torch.relu), ("fc2", torch.sigmoid)):
                name = f"sfam_module.{layer}.{scale}"
                mean = act(F.conv2d(mean, state[f"{name}.weight"], state[f"{name}.bias"]))
            source = source * mean
        if scale == 0:
            source = norm(state, "Norm", source)
        for head, outputs in (("loc", loc), ("conf", conf)):
            name = f"{head}.{scale}"
            out = F.conv2d(source, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
            outputs.append(out.permute(0, 2, 3, 1).flatten(1))
    classes = state["conf.0.bias"].numel() // 6
    return (
        torch.cat(loc, 1).reshape(len(images), -1, 4),
        torch.cat(conf, 1).reshape(len(images), -1, classes),
    )


def priors(size: int) -> Tensor:
    """(A, 4) centre form, one after the other."""
    steps, pattern = PRIORS[size]
    maps, cells = [], size
    for halving in range(7):
        cells = math.ceil(cells / 2)
        if halving >= 2:
            maps.append(cells)
    maps.append(maps[-1] - 2)
    rows = []
    for k, cells in enumerate(maps):
        least, most = round(size * pattern[k], 2), round(size * pattern[k + 1], 2)
        small, between = least / size, math.sqrt(least * most) / size
        for i in range(cells):
            for j in range(cells):
                center = (j + 0.5) * steps[k] / size, (i + 0.5) * steps[k] / size
                rows.append((*center, small, small))
                rows.append((*center, between, between))
                for ratio in (2, 3):
                    long, short = small * math.sqrt(ratio), small / math.sqrt(ratio)
                    rows += [(*center, long, short), (*center, short, long)]
    return torch.tensor(rows, dtype=torch.float64).clamp(0, 1)


def losses(
    loc: Tensor, conf: Tensor, truth: list[tuple[Tensor, Tensor]], boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Box and class loss, image by image and box by box.

    Args:
        loc: (N, A, 4) float64.
        conf: (N, A, C) float64.
        truth: for each image boxes (M, 4) relative to the input and labels from 1 on.
        boxes: (A, 4) priors, centre form.
    """
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    box_loss, class_loss, positives = loc.sum() * 0, conf.sum() * 0, 0
    for image, (found, labels) in enumerate(truth):
        best, owner = torch.zeros(len(boxes)).double(), torch.zeros(len(boxes)).long()
        claims = []
        for slot, box in enumerate(found.double()):
            overlap = (torch.minimum(high, box[2:]) - torch.maximum(low, box[:2])).clamp(min=0)
            shared = overlap.prod(1)
            union = (high - low).prod(1) + (box[2:] - box[:2]).prod() - shared
            iou = shared / union
            owner = torch.where(iou > best, slot, owner)
            best = torch.maximum(best, iou)
            claims.append(int(iou.argmax()))
        for slot, prior in enumerate(claims):
            owner[prior], best[prior] = slot, 2.0
        chosen = (best >= 0.5).nonzero().flatten().tolist()
        wanted = torch.zeros(len(boxes), dtype=torch.long)
        for prior in chosen:
            box = found[owner[prior]].double()
            center, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            code = torch.cat(
                [
                    (center - boxes[prior, :2]) / (0.1 * boxes[prior, 2:]),
                    (size / boxes[prior, 2:]).log() / 0.2,
                ]
            )
            away = (loc[image, prior] - code).abs()
            box_loss = box_loss + torch.where(away < 1, away**2 / 2, away - 0.5).sum()
            wanted[prior] = labels[owner[prior]]
        each = conf[image].logsumexp(1) - conf[image].gather(1, wanted[:, None])[:, 0]
        negatives = sorted(set(range(len(boxes))) - set(chosen), key=lambda p: -each[p].item())
        taken = chosen + negatives[: min(3 * len(chosen), len(boxes) - 1)]
        class_loss = class_loss + each[taken].sum()
        positives += len(chosen)
    return box_loss / max(positives, 1), class_loss / max(positives, 1)
