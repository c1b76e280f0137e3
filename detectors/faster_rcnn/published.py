"""Figures of Faster R-CNN on ResNet-50 with a feature pyramid.

The seeds' "Parameters (M) 250" is the size of a file; the counts below are those of the network.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_ZOO = "mindspore-ai/models, official/cv/FasterRCNN, its layers in torch, counted"
_ZOO_ANCHORS = "mindspore-ai/models, official/cv/FasterRCNN, num_bboxes"
_TORCHVISION = "torchvision 0.29, fasterrcnn_resnet50_fpn, built and counted"
_OPERATIONS = "torchvision 0.29, FasterRCNN_ResNet50_FPN_Weights.COCO_V1, at 800 x 800"

PUBLISHED = (
    Published(
        "faster_rcnn_mindspore",
        80,
        (Figure("parameters", 41_757_156, _ZOO), Figure("priors", 245_520, _ZOO_ANCHORS)),
    ),
    Published(
        "faster_rcnn_torchvision",
        90,
        (
            Figure("parameters", 41_755_286, _TORCHVISION),
            Figure("trainable", 41_532_886, _TORCHVISION),
            Figure("state_entries", 295, _TORCHVISION),
            Figure("multiply_adds", 134.38e9, _OPERATIONS, within=0.5e7),
        ),
        fields={"input_size": (800, 800)},
    ),
)
