"""Small detectors with drawn weights, on the images of the small run, to be exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detectors.base import Detector
from detectors.registry import build_detector
from orchestrator.config.resolve import load_experiment
from orchestrator.data.dataset import Dataset
from orchestrator.data.images import image_pixels
from orchestrator.predict.loading import LoadedDetector
from orchestrator.predict.scoring import read_split
from orchestrator.predict.tta import prepared

_SUPPRESSION = {"score_threshold": 0.02, "nms": "hard", "plus_one": False}
_PAD = {"name": "resize_pad", "short_side": 80, "long_side": 90, "fill": [9, 8, 7]}
_TWO_STAGES = {
    "input_size": [96, 96],
    "width": 0.125,
    "norm": "batch",
    "rpn": {"before_test": 60, "after_test": 40},
}

#: By variant: the detector, and the augmentation that says how images come to its size.
SMALL = {
    "ssd300_mobilenet_v2": ({"name": "ssd", "width": 0.1}, {"name": "none"}),
    "ssd300_vgg16": ({"name": "ssd", "width": 0.0625}, {"name": "none"}),
    "ssd512_vgg16": ({"name": "ssd", "width": 0.0625}, {"name": "none"}),
    "m2det320_vgg16": ({"name": "m2det", "width": 0.0625, "levels": 2}, {"name": "m2det"}),
    "retinanet_spinenet49s": (
        # As many candidates as a level may have are fewer than it has.
        {
            "name": "retinanet",
            "width": 0.0625,
            "input_size": [128, 128],
            "zero_init": False,
            "candidates_per_level": 100,
        },
        {"name": "scale_jitter"},
    ),
    "tiny_fcos": ({"name": "tiny_fcos"}, {"name": "none"}),
    "faster_rcnn_torchvision": ({"name": "faster_rcnn", **_TWO_STAGES}, _PAD),
    "faster_rcnn_mindspore": (
        {"name": "faster_rcnn", **_TWO_STAGES, "head": {"aligned": True}},
        _PAD,
    ),
}


def drawn_detector(
    variant: str, small_run: Path, folder: Path, *, images: int = 3
) -> tuple[LoadedDetector, Dataset]:
    """A detector whose outputs depend on the image, and the first images of validation."""
    fields, augmentation = SMALL[variant]
    named = {} if fields["name"] == variant else {"variant": variant}
    data = load_experiment(small_run / "config" / "resolved.yaml").experiment.data
    tree = {
        "name": variant,
        "detector": {**fields, **named, "postprocess": _SUPPRESSION},
        "data": {
            "root": data.root,
            "train": {"images": "images", "annotations": "annotations/instances_train.json"},
            "val": {"images": "images", "annotations": "annotations/instances_val.json"},
            "augmentation": augmentation,
        },
        "train": {
            "epochs": 1,
            "batch_size": 4,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"name": "constant"},
        },
    }
    file = folder / f"{variant}.yaml"
    file.write_text(json.dumps(tree))
    resolved = load_experiment(file)
    dataset = read_split(resolved.experiment, "val", limit=images)
    torch.manual_seed(1)
    model = build_detector(resolved.experiment.detector, num_classes=len(dataset.label_map))
    loaded = LoadedDetector(
        model=model.eval(),
        resolved=resolved,
        label_map=dataset.label_map,
        source=file,
        run_dir=None,
        step=None,
        averaged=False,
        weights_sha256="0" * 64,
    )
    _wake(model, inputs(loaded, dataset))
    return loaded, dataset


def inputs(loaded: LoadedDetector, dataset: Dataset) -> torch.Tensor:
    """(N, 3, H, W) uint8: what the network sees of the images."""
    pixels = [image_pixels(dataset, i, declared=False) for i in range(len(dataset))]
    samples = [prepared(image, loaded.prepare).image for image in pixels]
    return torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2).contiguous()


def _wake(model: Detector, images: torch.Tensor) -> None:
    """Statistics that know the images, and classifiers that do not say the same of all of them.

    With the weights that training begins with, every score is the same to three digits, and no
    comparison of scores could fail. The statistics go half the way to those of the images: a map of
    one cell has next to no variance over three of them, and what divides by it magnifies rounding
    until single precision differs from double in the first decimal.
    """
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.5
            part.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(images)
    model.eval()
    named = {name.rpartition(".")[2]: part for name, part in model.named_modules()}
    for name in {"retina_cls", "cls_logits", "cls_score"} & named.keys():
        nn.init.normal_(named[name].weight, std=0.3)
    if "retina_cls" in named:
        # As far apart as those of a trained detector, so that few scores are nearly the same.
        with torch.no_grad():
            named["retina_cls"].weight.mul_(2.0 / model(images)["cls"].std())
