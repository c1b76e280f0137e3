"""Forward pass and losses of a detector as one graph, compiled for the device.

The graph has fixed shapes and holds no number of the host's, so that no other targets have it made
again. On a GPU it is also captured: its kernels are launched together, out of and into buffers that
stay where they are. Rounding is the compiler's, and so are not the bits of a step done operator by
operator; random numbers are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from detectors.base import Detector
from detectors.structures import LossTerm, Targets
from orchestrator.accelerators import Accelerator
from orchestrator.errors import first_line

#: What makes kernels of a graph.
BACKEND = "inductor"


class LossGraph:
    """Stands for ``loss_terms`` of a detector in training mode.

    What the compiler cannot take runs as if there were no graph, from the first time on.

    Args:
        model: in training mode.
        accelerator: kind of device.
        pieces: of a batch on this rank. Each has a graph of its own where the network draws random
            numbers, and so has each of the sizes that images may have.

    Attributes:
        trouble: why there is no graph; None while there is one.
    """

    def __init__(self, model: Detector, accelerator: Accelerator, *, pieces: int = 1) -> None:
        self.trouble: str | None = None
        self._model = model
        self._captured = accelerator.kind == "gpu"
        # Where kernels are to be deterministic, the compiler is told as well.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        # Torch gives up after eight of a function, for which it takes them for a mistake.
        graphs = pieces * len(model.train_canvases)
        config.recompile_limit = max(config.recompile_limit, graphs)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, graphs)
        options: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": self._captured}
        self._terms = torch.compile(
            model.loss_terms,
            fullgraph=True,
            dynamic=False,
            backend=BACKEND,
            options=options if BACKEND == "inductor" else None,
        )

    def __call__(self, images: torch.Tensor, targets: Targets) -> dict[str, LossTerm]:
        """Losses, each a sum and its count; see :meth:`Detector.loss_terms`."""
        if self.trouble is not None:
            return self._model.loss_terms(images, targets)
        if self._captured:
            # What the last replay put out may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            terms: dict[str, LossTerm] = self._terms(images, targets)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            hard = isinstance(error, FailOnRecompileLimitHit)
            self.trouble = first_line((error.__cause__ or error) if hard else error)
            return self._model.loss_terms(images, targets)
        return terms

    def text(self) -> str:
        """What became of it, for logs."""
        if self.trouble is not None:
            return f"train.compile: no graph could be made, so steps run without: {self.trouble}"
        captured = ", captured with static buffers" if self._captured else ""
        return f"train.compile: forward pass and losses are one graph{captured}"
