"""Matching while detections arrive, so that only accumulation waits for the last batch."""

from __future__ import annotations

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.evaluation.backends import Backend, Scored, fastest, score, scored_of
from orchestrator.evaluation.coco import CocoMetrics, metrics_of, sound
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.grading import SIZES, Columns, Grader
from orchestrator.evaluation.results import Results


class StreamingEvaluator:
    """Takes detections part by part and ends with the bits `evaluate` gives for all of them.

    With our kernels a part is matched when it comes; with the other backends, which cannot do that
    as fast, at the end. An image that comes again (padding of a last batch) is not looked at a
    second time.

    Args:
        dataset: ground truth.
        backend: what matches; None takes the fastest that can be trusted.
    """

    def __init__(self, dataset: Dataset, *, backend: Backend | None = None) -> None:
        self.dataset = dataset
        self.backend = backend or fastest()
        self._parts: list[Detections] = []
        self._seen = np.zeros(len(dataset), np.bool_)
        self._columns = Columns.of(dataset, SIZES)
        self._grader = Grader(self._columns, SIZES) if self.backend == "native" else None

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
        if self._grader is not None:
            self._grader.add(self._columns.found(Results.of(taken)))

    def detections(self) -> Detections:
        """Everything taken so far, merged."""
        return Detections.merge(self._parts)

    def scored(self) -> Scored:
        """What :func:`~orchestrator.evaluation.backends.score` gives for all that came."""
        if self._grader is None:
            results = Results.of(self.detections())
            return score(self.dataset, results, backend=self.backend)
        return scored_of(self._grader.arrays(), self.dataset.label_map)

    def finish(self) -> CocoMetrics:
        """The numbers; images that never came count as missed."""
        return metrics_of(
            self.dataset,
            self.scored(),
            labels=np.concatenate([part.labels for part in [_NOTHING, *self._parts]]),
            images=self.dataset.image_ids[self._seen],
        )


_NOTHING = Detections.merge([])
