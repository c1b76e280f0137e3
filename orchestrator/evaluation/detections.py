"""Detections of any number of images as flat arrays: what ranks exchange and evaluation reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.label_map import LabelMap


@dataclass(frozen=True)
class Detections:
    """d detections over a set of images.

    Attributes:
        images: ids of every image that was looked at, with detections or without; (i,) int64.
        image_ids: (d,) int64 image of each detection.
        labels: (d,) int64 contiguous labels.
        boxes: (d, 4) float32 xyxy, absolute pixels of the original image.
        scores: (d,) float32.
    """

    images: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def merge(cls, parts: Sequence[Detections]) -> Detections:
        """Join the parts of all ranks, ordered by image id; the order of parts does not matter.

        Within an image the order of its part is kept. An image that occurs in several parts
        (padding of the last batch) counts once: the first part that has it.
        """
        if not parts:
            empty = np.zeros(0)
            return cls(
                images=empty.astype(np.int64),
                image_ids=empty.astype(np.int64),
                labels=empty.astype(np.int64),
                boxes=np.zeros((0, 4), np.float32),
                scores=empty.astype(np.float32),
            )
        ordered = sorted(parts, key=lambda part: tuple(part.images.tolist()))
        taken: set[int] = set()
        keeps: list[NDArray[np.bool_]] = []
        for part in ordered:
            fresh = [i for i in part.images.tolist() if i not in taken]
            keeps.append(np.isin(part.image_ids, np.array(fresh, np.int64)))
            taken.update(fresh)
        image_ids = np.concatenate([p.image_ids[k] for p, k in zip(ordered, keeps, strict=True)])
        order = np.argsort(image_ids, kind="stable")

        def join(name: str) -> NDArray[Any]:
            rows = [getattr(p, name)[k] for p, k in zip(ordered, keeps, strict=True)]
            joined: NDArray[Any] = np.concatenate(rows)[order]
            return joined

        return cls(
            images=np.array(sorted(taken), np.int64),
            image_ids=image_ids[order],
            labels=join("labels"),
            boxes=join("boxes"),
            scores=join("scores"),
        )

    def to_coco(self, label_map: LabelMap) -> list[dict[str, Any]]:
        """COCO results entries with data-set category ids and xywh boxes, unrounded."""
        ids = np.asarray(label_map.ids, np.int64)[self.labels]
        xywh = self.boxes.astype(np.float64)
        xywh[:, 2:] -= xywh[:, :2]
        return [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(
                self.image_ids.tolist(),
                ids.tolist(),
                xywh.tolist(),
                self.scores.astype(np.float64).tolist(),
                strict=True,
            )
        ]
