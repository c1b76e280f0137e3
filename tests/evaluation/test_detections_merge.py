"""Joining the detections of all ranks."""

from __future__ import annotations

import itertools

import numpy as np
from coco_cases import detections_of

from orchestrator.evaluation.detections import Detections

BOX = [0.0, 0.0, 4.0, 4.0]


def _rows(found: Detections) -> list[tuple[int, int, float]]:
    columns = (found.image_ids.tolist(), found.labels.tolist(), found.scores.tolist())
    return list(zip(*columns, strict=True))


def test_order_of_parts_does_not_matter():
    parts = [
        detections_of([(9, 0, BOX, 0.5), (2, 1, BOX, 0.25)], [9, 2]),
        detections_of([(5, 0, BOX, 0.75), (5, 1, BOX, 1.0)], [5, 4]),
        detections_of([], [7]),
    ]
    expected = [(2, 1, 0.25), (5, 0, 0.75), (5, 1, 1.0), (9, 0, 0.5)]
    for order in itertools.permutations(parts):
        merged = Detections.merge(order)
        assert _rows(merged) == expected
        assert merged.images.tolist() == [2, 4, 5, 7, 9]


def test_an_image_of_two_parts_counts_once():
    part = detections_of([(2, 1, BOX, 0.25), (2, 0, BOX, 0.5)], [2])
    other = detections_of([(2, 1, BOX, 0.25), (2, 0, BOX, 0.5), (3, 0, BOX, 0.5)], [2, 3])
    assert _rows(Detections.merge([part, other])) == [(2, 1, 0.25), (2, 0, 0.5), (3, 0, 0.5)]


def test_an_image_in_which_one_part_found_nothing():
    # Whichever part comes first by its images is believed, in every order of the parts.
    nothing = detections_of([], [1, 2])
    something = detections_of([(2, 0, BOX, 0.5)], [2])
    for parts in ([nothing, something], [something, nothing]):
        assert len(Detections.merge(parts)) == 0


def test_nothing_at_all():
    for parts in ([], [detections_of([], [])], [detections_of([], [])] * 2):
        merged = Detections.merge(parts)
        assert (len(merged), merged.boxes.shape) == (0, (0, 4))
        assert [
            a.dtype for a in (merged.image_ids, merged.labels, merged.boxes, merged.scores)
        ] == [
            np.int64,
            np.int64,
            np.float32,
            np.float32,
        ]
