"""Matching while detections arrive, so that only accumulation waits for the last batch."""

from __future__ import annotations

import numpy as np

import native
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.evaluation.coco import CocoMetrics, metrics_of, sound
from orchestrator.evaluation.coco_matching import Backend, CocoMatcher, coco_curves, fastest
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results


class StreamingEvaluator:
    """Takes detections part by part and ends with the bits `evaluate` gives for all of them.

    With compiled kernels a part is matched when it comes; with pycocotools, which cannot do that,
    at the end. An image that comes again (padding of a last batch) is not looked at a second time.

    Args:
        dataset: ground truth.
        backend: what matches; None takes the fastest there is.
    """

    def __init__(self, dataset: Dataset, *, backend: Backend | None = None) -> None:
        self.dataset = dataset
        self.backend = backend or fastest()
        self._parts: list[Detections] = []
        self._seen = np.zeros(len(dataset), np.bool_)
        self._matcher = CocoMatcher(dataset) if self.backend == "native" else None

    def add(self, part: Detections) -> None:
        """Match the detections of some images.

        Raises:
            DataError: they cannot be scored; see
                :func:`~orchestrator.evaluation.coco.evaluate`. Nothing was taken then.
        """
        sound(self.dataset, part)
        where, _ = positions_in(part.images, self.dataset.image_ids)
        fresh = np.unique(where[~self._seen[where]])
        self._seen[fresh] = True
        keep = np.isin(part.image_ids, self.dataset.image_ids[fresh])
        taken = Detections(
            images=self.dataset.image_ids[fresh],
            image_ids=part.image_ids[keep],
            labels=part.labels[keep],
            boxes=part.boxes[keep],
            scores=part.scores[keep],
        )
        self._parts.append(taken)
        if self._matcher is not None:
            self._matcher.add(Results.of(taken))

    def detections(self) -> Detections:
        """Everything taken so far, merged."""
        return Detections.merge(self._parts)

    def curves(self) -> native.Curves:
        """Those of all that came; images that never came are missed."""
        if self._matcher is None:
            return coco_curves(self.dataset, Results.of(self.detections()), backend=self.backend)
        return self._matcher.curves()

    def finish(self) -> CocoMetrics:
        """The numbers; images that never came count as missed."""
        return metrics_of(
            self.dataset,
            self.curves(),
            labels=np.concatenate([part.labels for part in [_NOTHING, *self._parts]]),
            images=self.dataset.image_ids[self._seen],
        )


_NOTHING = Detections.merge([])
