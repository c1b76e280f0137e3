"""Matching while detections arrive, so that only accumulation waits for the last batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.data.coco_tables import positions_in
from orchestrator.data.records import Dataset
from orchestrator.evaluation.backends import Backend, fastest, scored_of
from orchestrator.evaluation.coco import CocoMetrics, evaluate, metrics_of, sound
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results


class StreamingEvaluator:
    """Takes detections part by part and ends with the bits :func:`evaluate` gives for all of them.

    With hotcoco a part is matched when it comes; with pycocotools, which cannot do that, at the
    end. An image that comes again (padding of a last batch) is not looked at a second time.

    Args:
        dataset: ground truth.
        backend: what matches; None takes the fastest that can be trusted.
    """

    def __init__(self, dataset: Dataset, *, backend: Backend | None = None) -> None:
        self.dataset = dataset
        self.backend = backend or fastest()
        self._parts: list[Detections] = []
        self._seen = np.zeros(len(dataset), np.bool_)
        ids = np.asarray(dataset.label_map.ids, np.int64)
        self._class_rank = np.argsort(np.argsort(ids)) + 1
        self._image_rank = np.argsort(np.argsort(dataset.image_ids)) + 1
        self._matcher: Any = None
        if self.backend == "hotcoco":
            import hotcoco

            classes = [{"id": i + 1, "name": str(i + 1)} for i in range(len(ids))]
            self._matcher = hotcoco.StreamingEval(classes, "bbox")

    def add(self, part: Detections) -> None:
        """Match the detections of some images.

        Raises:
            DataError: they cannot be scored; see :func:`evaluate`. Nothing was taken then.
        """
        results = sound(self.dataset, part)
        where, _ = positions_in(results.images, self.dataset.image_ids)
        fresh = np.unique(where[~self._seen[where]])
        self._seen[fresh] = True
        keep = np.isin(results.image_ids, self.dataset.image_ids[fresh])
        self._parts.append(
            Detections(
                images=self.dataset.image_ids[fresh],
                image_ids=part.image_ids[keep],
                labels=part.labels[keep],
                boxes=part.boxes[keep],
                scores=part.scores[keep],
            )
        )
        if self._matcher is not None:
            self._match(fresh, results, keep)

    def detections(self) -> Detections:
        """Everything taken so far, merged."""
        return Detections.merge(self._parts)

    def finish(self) -> CocoMetrics:
        """The numbers; images that never came count as missed."""
        if self._matcher is None:
            return evaluate(self.dataset, self.detections(), backend=self.backend)
        seen = self.dataset.image_ids[self._seen]
        nothing = Results.of(Detections.merge([]))
        self._match(np.flatnonzero(~self._seen), nothing, np.zeros(0, np.bool_))
        evaluation = self._matcher.finalize()
        evaluation.accumulate()
        scored = scored_of(dict(evaluation.eval), self.dataset.label_map)
        labels = [part.labels for part in self._parts]
        every_label = np.concatenate(labels) if labels else np.zeros(0, np.int64)
        return metrics_of(self.dataset, scored, labels=every_label, images=seen)

    def _match(self, positions: Any, results: Results, keep: Any) -> None:
        """Hand the images at ``positions``, their boxes and detections to hotcoco."""
        if not len(positions):
            return
        data = self.dataset
        truths = [
            {
                # Numbered from 1 over the whole data set.
                "id": row + 1,
                "image_id": int(self._image_rank[position]),
                "category_id": int(self._class_rank[data.labels[row]]),
                "bbox": data.boxes_xywh[row].tolist(),
                "area": float(data.areas[row]),
                "iscrowd": int(data.crowd[row]),
            }
            for position in positions.tolist()
            for row in range(int(data.offsets[position]), int(data.offsets[position + 1]))
        ]
        where, _ = positions_in(results.image_ids[keep], data.image_ids)
        rows = [
            self._image_rank[where],
            results.boxes_xywh[keep],
            results.scores[keep],
            self._class_rank[results.labels[keep]],
        ]
        images = [{"id": int(self._image_rank[position])} for position in positions]
        self._matcher.update(images, truths, np.column_stack(rows).astype(np.float64))
