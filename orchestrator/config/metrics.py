"""Names of the numbers of an evaluation.

An experiment chooses among them what ranks checkpoints, stops a run and judges trials;
:mod:`orchestrator.evaluation.coco` computes each of them. Imports nothing, so that evaluation need
not wait for the schema.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

#: The 12 numbers of a COCO evaluation, as they are logged, in the order pycocotools gives them.
Metric: TypeAlias = Literal[
    "val/AP",
    "val/AP50",
    "val/AP75",
    "val/APs",
    "val/APm",
    "val/APl",
    "val/AR1",
    "val/AR10",
    "val/AR100",
    "val/ARs",
    "val/ARm",
    "val/ARl",
]
