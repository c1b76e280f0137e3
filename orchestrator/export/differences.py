"""How far the outputs of two copies of a network are apart, output by output.

Most outputs have a place for everything and are subtracted. Where a network selects by score,
rounding decides between neighbours, and that is no difference of networks:

* Rows that the network ranks itself (:attr:`detectors.base.Detector.ranked`) may have changed
  places: each is compared with the closest row of the other side, in both directions.
* A candidate may be the last of those kept on one side and the first of those left out, whose score
  is 0, on the other.

What has no counterpart is counted instead, as `lone`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.export.artifact import RAW

_BOXES: Final = "boxes"
_SCORES: Final = "scores"


@dataclass
class Share:
    """A part of something that was counted."""

    part: int = 0
    whole: int = 0

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.part / max(self.whole, 1)


@dataclass
class Differences:
    """What was found so far.

    Attributes:
        side: longer side of the input, which boxes are measured by.
        limit: up to this, rows are the same row and scores the same score.
        ranked: outputs whose rows the network ranks, boxes and scores first.
        largest: absolute difference of each output; boxes as a part of ``side``.
        where: image id at which that is.
        lone: rows of the ranked outputs, and scores, that only one side has.
    """

    side: int
    limit: float
    ranked: Sequence[str] = ()
    largest: dict[str, float] = field(default_factory=dict)
    where: dict[str, int] = field(default_factory=dict)
    lone: dict[str, Share] = field(default_factory=dict)

    def add(
        self, ids: Sequence[int], expected: Mapping[str, Tensor], found: Mapping[str, NDArray[Any]]
    ) -> None:
        """Compare all outputs (N, ...) of images ``ids``, those of PyTorch with those of a file."""
        ours = {name: self._measured(name, value) for name, value in expected.items()}
        theirs = {name: self._measured(name, torch.from_numpy(found[name])) for name in ours}
        alike = all(value.shape == theirs[name].shape for name, value in ours.items())
        moving = [*(RAW + name for name in self.ranked), _BOXES, _SCORES] if self.ranked else []
        if not alike:
            moving = []
        for name, value in ours.items():
            if name in moving:
                continue
            if name == _SCORES and alike:
                self._add_scores(ids, value, theirs[name])
            else:
                self.note(name, ids, value, theirs[name])
        if moving:
            self._add_ranked(ids, ours, theirs, moving)
            self._add_ranked(ids, theirs, ours, moving)

    def note(self, name: str, ids: Sequence[int], expected: Tensor, found: Tensor) -> None:
        """Compare one output place by place."""
        if expected.shape != found.shape:
            each = torch.full((len(ids),), torch.inf)
        else:
            gap = (expected.float() - found.float()).abs()
            # NaN on one side alone must not pass for a small difference.
            each = torch.where(gap.isnan(), torch.inf, gap).flatten(1).amax(1)
        worst = int(each.argmax())
        if name not in self.largest or float(each[worst]) > self.largest[name]:
            self.largest[name], self.where[name] = float(each[worst]), ids[worst]

    def _measured(self, name: str, value: Tensor) -> Tensor:
        in_pixels = {_BOXES, *(RAW + name for name in self.ranked[:1])}
        return value / self.side if name in in_pixels else value

    def _add_ranked(
        self,
        ids: Sequence[int],
        here: Mapping[str, Tensor],
        there: Mapping[str, Tensor],
        moving: Sequence[str],
    ) -> None:
        """Compare each row of one side with the closest one of the other."""
        boxes, scores = moving[:2]
        mine, theirs = (
            torch.cat([side[boxes], side[scores].unsqueeze(-1)], dim=-1) for side in (here, there)
        )
        distance, closest = torch.cdist(mine, theirs, p=torch.inf).min(dim=2)
        same = distance <= self.limit
        self._count(boxes, ~same, torch.ones_like(same))
        for name in moving:
            rows = here[name].reshape(*same.shape, -1)
            others = there[name].reshape(*same.shape, -1)
            others = others.gather(1, closest.unsqueeze(-1).expand_as(others))
            others = torch.where(same.unsqueeze(-1), others, rows)
            if name == _SCORES:
                self._add_scores(ids, rows, others)
            else:
                self.note(name, ids, rows, others)

    def _add_scores(self, ids: Sequence[int], expected: Tensor, found: Tensor) -> None:
        """Compare scores, but for those that one side left out."""
        dropped = (expected == 0) != (found == 0)
        lone = dropped & ((expected - found).abs() > self.limit)
        self._count(_SCORES, lone, (expected != 0) | (found != 0))
        self.note(_SCORES, ids, torch.where(lone, found, expected), found)

    def _count(self, name: str, part: Tensor, whole: Tensor) -> None:
        share = self.lone.setdefault(name, Share())
        share.part += int(part.sum())
        share.whole += int(whole.sum())
