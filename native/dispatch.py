"""Choice between the compiled kernels and the reference, made once per process on first use.

What every public function does before it calls a kernel stands here too: refusing boxes that no
kernel can work on, and choosing the number of threads.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol, cast

import numpy as np

from native import reference
from native.records import AccumulateParams, Annotations, Detections, MatchedDetections, MatchParams
from native.rules import INVERTED, LARGEST_COORDINATE, NOT_FINITE, TOO_LARGE, Rule
from native.types import Bool, Float32, Float64, Int64, UInt64

_logger = logging.getLogger("native")

_VARIABLE = "ORCHESTRATOR_NATIVE"


class Kernels(Protocol):
    """What the compiled module and :mod:`native.reference` both offer, on checked arrays."""

    def first_bad_box(self, boxes: Float32) -> tuple[int, int]:
        """See :func:`native.reference.first_bad_box`."""

    def first_bad_score(self, scores: Float32) -> int:
        """See :func:`native.reference.first_bad_score`."""

    def suppress(
        self,
        boxes: Float32,
        scores: Float32,
        labels: Int64,
        offsets: Int64,
        rule: Rule,
        threads: int,
    ) -> tuple[Int64, Float32, Int64]:
        """See :func:`native.reference.suppress`."""

    def match_priors(
        self,
        boxes: Float32,
        valid: Bool,
        priors: Float32,
        threshold: float,
        claims: int,
        threads: int,
    ) -> tuple[Int64, Bool]:
        """See :func:`native.reference.match_priors`."""

    def match_detections(
        self, detections: Detections, annotations: Annotations, params: MatchParams, threads: int
    ) -> tuple[UInt64, UInt64, Int64, Int64]:
        """See :func:`native.reference.match_detections`."""

    def accumulate(
        self, matched: MatchedDetections, params: AccumulateParams, threads: int
    ) -> tuple[Float64, Float64, Float64]:
        """See :func:`native.reference.accumulate`."""


def backend() -> Literal["native", "reference"]:
    """Which implementation serves in this process."""
    return "reference" if kernels() is _REFERENCE else "native"


@cache
def kernels() -> Kernels:
    """The compiled kernels if they were built and are wanted, else the reference.

    Raises:
        ImportError: ``ORCHESTRATOR_NATIVE=1`` and there are no compiled kernels.
        ValueError: ``ORCHESTRATOR_NATIVE`` is none of ``0``, ``1`` and empty.
    """
    wish = os.environ.get(_VARIABLE, "")
    if wish not in ("", "0", "1"):
        raise ValueError(
            f"{_VARIABLE}={wish!r}: allowed are 0 (reference), 1 (compiled kernels or an error) "
            "and unset (whichever is there)"
        )
    if wish == "0":
        return _REFERENCE
    try:
        return _complete(importlib.import_module("native._core"))
    except ImportError as error:
        remedy = "reinstall where a C++17 compiler is found (c++ --version) to build them"
        if wish == "1":
            raise ImportError(f"{_VARIABLE}=1, but: {error}; {remedy}") from error
        _logger.warning(
            "compiled kernels are missing (%s); the Python reference serves, equal but slower; "
            "%s, or set %s=0 to accept this silently",
            error,
            remedy,
            _VARIABLE,
        )
        return _REFERENCE


_REFERENCE = cast(Kernels, reference)


def _complete(module: ModuleType) -> Kernels:
    """The module, if it was built from these sources.

    Raises:
        ImportError: a kernel is missing, or the module is another package's, of other sources.
    """
    here, there = Path(__file__).parent, Path(str(module.__file__)).parent
    if there != here and _sources(there) != _sources(here):
        raise ImportError(f"none in {here}, and those in {there} were built of other sources")
    missing = [name for name in vars(Kernels) if name[0] != "_" and not hasattr(module, name)]
    if missing:
        raise ImportError(f"native._core is older than this package: no {', '.join(missing)} in it")
    return cast(Kernels, module)


def _sources(package: Path) -> dict[str, bytes]:
    """What kernels are built of, which is installed beside them."""
    files = [package / "binding.cpp", *sorted(package.glob("core/*.*"))]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def default_threads() -> int:
    """Threads a call may use: the cores this process may run on, capped by ``OMP_NUM_THREADS``.

    Ray sets that variable to the cores it granted a worker, so kernels stay inside their share.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    granted = os.environ.get("OMP_NUM_THREADS", "")
    if granted.isdigit() and int(granted) > 0:
        return min(cores, int(granted))
    return cores


def refuse_bad_boxes(serving: Kernels, name: str, boxes: Float32) -> None:
    """Raise ValueError for the first of (..., 4) boxes not finite, too large or inverted."""
    row, fault = serving.first_bad_box(boxes.reshape(-1, 4))
    if row < 0:
        return
    reason = {
        NOT_FINITE: "is not finite",
        TOO_LARGE: f"has a coordinate beyond {LARGEST_COORDINATE:g}, where areas overflow",
        INVERTED: "is inverted: x1 <= x2 and y1 <= y2 must hold",
    }[fault]
    place = np.unravel_index(row, boxes.shape[:-1])
    where = ", ".join(str(int(index)) for index in place)
    raise ValueError(f"{name}[{where}] = {boxes[place].tolist()} {reason}")


def checked_threads(threads: int | None) -> int:
    """The number of threads asked for, or that granted to the process."""
    if threads is None:
        return default_threads()
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1, or None for the cores granted")
    return threads
