"""Priors that fit the boxes of a data set better: a search over what a detector's file can say.

Shapes are compared as matching compares them, by IoU. Ratios come from clusters of the boxes' own;
every proposal is then measured with the detector's real priors, at their real places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.boxes import View, boxes_in_view, prior_recall

#: Gives the (A, 4) xyxy priors of a detector with some of its keys changed.
Priors = Callable[[Mapping[str, Any]], NDArray[np.float32]]
#: Clusters of ratios that are proposed: one, two and three.
_MOST_RATIOS = 3
_ROUNDS = 50
_SPREAD = (0.1, 0.5, 0.9)
#: Mean best IoU that a change must bring to be worth proposing.
_WORTH = 0.005


@dataclass(frozen=True)
class Suggestion:
    """What was found.

    Attributes:
        changes: dotted keys of the ``detector`` section and their values; empty where nothing
            better was found.
        before, after: by split, ``recall`` at IoU 0.5, ``mean_iou`` and ``boxes``.
        tried: proposals that were measured.
    """

    changes: dict[str, Any]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    tried: int

    def to_yaml(self) -> str:
        """Lines for the experiment file."""
        tree: dict[str, Any] = {}
        for key, value in self.changes.items():
            *path, last = key.split(".")
            place = tree
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
        return "\n".join(["detector:", *_lines(tree, 1)])


def _lines(tree: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += [f"{'  ' * depth}{key}:", *_lines(value, depth + 1)]
        else:
            text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
            lines.append(f"{'  ' * depth}{key}: {text}")
    return lines


def suggest_priors(
    splits: Mapping[str, Dataset],
    priors: Priors,
    choices: Callable[[Sequence[Sequence[float]]], Mapping[str, Sequence[Any]]],
    view: View,
) -> Suggestion | None:
    """Search for priors that find more of the boxes, one key of the detector after the other.

    A proposal may not have more priors than the detector has now: more would always fit better,
    and cost time in every step.

    Args:
        splits: ``train``, which is searched on, and others that show whether it holds there; of
            these, one without a box that could be compared is left out.
        priors: of the detector with changes.
        choices: values worth trying for each dotted key, given lists of ratios (height / width).
        view: where the pixels of an image come to lie in the input.

    Returns:
        None where ``train`` has no box that could be compared.
    """
    splits = {name: data for name, data in splits.items() if not data.crowd.all()}
    if "train" not in splits:
        return None
    train = splits["train"]
    boxes = boxes_in_view(train, view)[0]
    sides = boxes[:, 2:] - boxes[:, :2]
    logs = np.log(sides[:, 1] / sides[:, 0]).astype(np.float64)
    proposals = [ratio_clusters(logs, count) for count in range(1, _MOST_RATIOS + 1)]
    # Centres of clusters leave out the outermost shapes, which matter for recall.
    spread = np.exp(np.quantile(logs, _SPREAD)).round(2).tolist()
    proposals.append(sorted(set(spread)))
    changes: dict[str, Any] = {}
    now = priors(changes)
    most, best, tried = len(now), _goodness(train, now, view), 0
    for key, values in choices(proposals).items():
        for value in values:
            candidate = {**changes, key: value}
            made = priors(candidate)
            tried += 1
            if len(made) > most:
                continue
            found = _goodness(train, made, view)
            if found[0] >= best[0] and sum(found) > sum(best) + _WORTH:
                changes, best = candidate, found
    after = priors(changes)
    return Suggestion(
        changes=changes,
        before={name: prior_recall(data, now, view)["all"] for name, data in splits.items()},
        after={name: prior_recall(data, after, view)["all"] for name, data in splits.items()},
        tried=tried,
    )


def _goodness(data: Dataset, priors: NDArray[np.float32], view: View) -> tuple[float, float]:
    """Recall at the threshold, which may not fall, and the mean overlap."""
    found = prior_recall(data, priors, view)["all"]
    return found["recall"], found["mean_iou"]


def ratio_clusters(logs: NDArray[np.float64], count: int) -> list[float]:
    """Centres of ``count`` clusters of ratios, by the IoU of boxes of equal area.

    Two boxes of one area whose ratios are r and s overlap in exp(-|log r - log s| / 2) of it.

    Args:
        logs: (k,) logarithm of height / width of each box.
        count: of clusters.

    Returns:
        Ratios, rising, rounded to two digits.
    """
    ordered = np.sort(logs)
    centres = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(_ROUNDS):
        nearest = np.abs(ordered[:, None] - centres[None]).argmin(axis=1)
        fresh = centres.copy()
        for number in range(count):
            members = ordered[nearest == number]
            if len(members):
                candidates = np.quantile(members, np.linspace(0, 1, 33))
                shared = np.exp(-np.abs(members[None] - candidates[:, None]) / 2)
                fresh[number] = candidates[(shared / (2 - shared)).mean(axis=1).argmax()]
        if np.allclose(fresh, centres):
            break
        centres = fresh
    return sorted({round(float(np.exp(centre)), 2) for centre in centres})
