"""Compiled kernels for NumPy arrays, with a Python reference that serves where none are compiled.

Both give the same bits. The environment variable ``ORCHESTRATOR_NATIVE`` chooses: ``0`` forces the
reference, ``1`` refuses to run without the compiled kernels, unset takes what is there.
"""

from native.candidates import Collected, collect
from native.dispatch import backend
from native.grading import Curves, Verdicts, grade, tally
from native.matching import match_priors
from native.records import Exam, Found, Graded, Scale, Truth
from native.rules import Claims, Method
from native.suppression import nms, nms_batch, soft_nms, soft_nms_batch

__all__ = [
    "Claims",
    "Collected",
    "Curves",
    "Exam",
    "Found",
    "Graded",
    "Method",
    "Scale",
    "Truth",
    "Verdicts",
    "backend",
    "collect",
    "grade",
    "match_priors",
    "nms",
    "nms_batch",
    "soft_nms",
    "soft_nms_batch",
    "tally",
]
