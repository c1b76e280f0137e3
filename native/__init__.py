"""Compiled kernels for NumPy arrays, with a Python reference that serves where none are compiled.

Both give the same bits. The environment variable ``ORCHESTRATOR_NATIVE`` chooses: ``0`` forces the
reference, ``1`` refuses to run without the compiled kernels, unset takes what is there.

A copy of the package without compiled kernels, such as a job that was uploaded to a cluster, uses
those of an installed package that were built of the same sources.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

from native.coco import Curves, DetectionMatches, accumulate, match_detections
from native.dispatch import backend
from native.matching import match_priors
from native.records import (
    AccumulateParams,
    Annotations,
    Detections,
    MatchedDetections,
    MatchParams,
)
from native.rules import Claims, Method
from native.suppression import nms_batch, soft_nms_batch

__all__ = [
    "AccumulateParams",
    "Annotations",
    "Claims",
    "Curves",
    "DetectionMatches",
    "Detections",
    "MatchParams",
    "MatchedDetections",
    "Method",
    "accumulate",
    "backend",
    "match_detections",
    "match_priors",
    "nms_batch",
    "soft_nms_batch",
]
