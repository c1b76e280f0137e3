"""Training object detectors at scale: one experiment file in, a tracked detector out.

::

    import orchestrator

    result = orchestrator.run("experiments/quickstart.yaml", "train.max_steps=20")
    detector = orchestrator.TrainedDetector(result.folder)
    (found,) = detector.predict(["image.jpg"])
    picture = orchestrator.draw("image.jpg", found)

What is public is listed in ``__all__`` and described in :mod:`orchestrator.api`. Importing costs
nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.api import (
        Prediction,
        RunResult,
        TrainedDetector,
        draw,
        load,
        run,
    )

__all__ = [
    "Prediction",
    "RunResult",
    "TrainedDetector",
    "__version__",
    "draw",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("detection-orchestrator")
        except PackageNotFoundError:
            return "0+unknown"
    if name in __all__:
        return getattr(import_module("orchestrator.api"), name)
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
