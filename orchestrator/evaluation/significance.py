"""Whether one detector is better than another on a data set, or was lucky with its images.

A paired bootstrap over images (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 6): the images of the data set are drawn anew, with replacement, some thousand times, each
time for both detectors, and the spread of the difference in AP is that of the estimate. Detections
are matched once. A drawn data set is a number of copies of each image, so its AP follows from the
ranked true positives by sums weighted with these numbers, for many draws at a time.

The p-value and the interval take the difference over its spread as Student's t with one degree of
freedom less than there are images. Another seed would have given other weights, which is luck as
well: the spread among several runs of one experiment, pooled where there are several experiments,
is part of that of the difference. With one run a side it is not known, and what is compared is
these two sets of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import sound
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.matching import match_at
from orchestrator.evaluation.results import Results

#: Of confidence; a difference is called significant when its p-value is below 1 - LEVEL.
LEVEL: Final = 0.95
#: Data sets that are drawn. The spread is then known to 1.6 % of itself.
RESAMPLES: Final = 2000
#: With fewer images the spread of a few draws says nothing.
LEAST_IMAGES: Final = 20

#: Numbers over all classes, and the IoU thresholds each is a mean over.
_NUMBERS: Final = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
# As in ``Params`` of pycocotools, to the last bit: 0.50, 0.55 ... 0.95 and 0.00, 0.01 ... 1.00.
_THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
#: Numbers that one block of draws may hold at a time: 32 MB of them.
_BLOCK = 2**22


@dataclass(frozen=True)
class _Ranking:
    """The detections of one class by falling score, those behind the last true positive left out.

    Attributes:
        image: (d,) position of the image each lies in.
        true_positives: ten arrays, one for each threshold: rows of those that match a box, rising.
        ignored: likewise, rows of those that match a crowd.
    """

    image: NDArray[np.int64]
    true_positives: tuple[NDArray[np.int64], ...]
    ignored: tuple[NDArray[np.int64], ...]

    def precision(
        self, weights: NDArray[np.int64], boxes: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(r, 10) AP of the class for r draws with (r,) boxes each, at every threshold."""
        drawn = weights[:, self.image]
        seen = np.cumsum(drawn, axis=1)
        needed = _true_positives_for_recalls(boxes)
        columns = [
            _interpolated(drawn, seen, needed, rows, ignored)
            for rows, ignored in zip(self.true_positives, self.ignored, strict=True)
        ]
        return np.stack(columns, axis=1)


def _true_positives_for_recalls(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(r, 101) fewest true positives whose share of (r,) boxes reaches each recall.

    In float64, as COCO's.
    """
    total = np.maximum(boxes, 1)[:, None]
    least = np.ceil(_RECALLS * total)
    least = np.where((least - 1) / total >= _RECALLS, least - 1, least)
    least = np.where(least / total < _RECALLS, least + 1, least)
    return least.astype(np.int64)


def _interpolated(
    drawn: NDArray[np.int64],
    seen: NDArray[np.int64],
    needed: NDArray[np.int64],
    true_positives: NDArray[np.int64],
    ignored: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(r,) mean over the recalls of the highest precision at that recall or above.

    Precision has its maxima at true positives, so only these are looked at. The copies of an image
    follow each other: the last of them has the highest precision if it is a true positive and adds
    no recall if not, and a detection that was drawn no times changes nothing.

    Args:
        drawn: (r, d) copies of every detection.
        seen: (r, d) their running sum.
        needed: (r, 101), see :func:`_true_positives_for_recalls`.
        true_positives: (t,) rows.
        ignored: (i,) rows that do not count.
    """
    draws, count = len(drawn), len(true_positives)
    if not count:
        return np.zeros(draws)
    correct = np.cumsum(drawn[:, true_positives], axis=1)
    counted = seen[:, true_positives]
    before = np.searchsorted(ignored, true_positives)
    if before.any():
        skipped = np.cumsum(drawn[:, ignored], axis=1)
        counted = counted - np.where(before > 0, skipped[:, before - 1], 0)
    precision = correct / (counted + np.spacing(1))
    highest = np.zeros((draws, count + 1))
    highest[:, :count] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # One search for all draws: each draw's counts lie above those of the draw before.
    apart = int(max(correct[:, -1].max(), needed.max())) + 1
    row = np.arange(draws)[:, None]
    place = np.searchsorted((correct + row * apart).ravel(), (needed + row * apart).ravel())
    place = place.reshape(needed.shape) - row * count
    means: NDArray[np.float64] = np.take_along_axis(highest, place, axis=1).mean(axis=1)
    return means


@dataclass(frozen=True)
class Tally:
    """Which of a set of detections are true positives, ready to be weighted by images.

    Attributes:
        boxes: (K, n) boxes of every class in every image, crowds not counted.
        rankings: one for each class.
    """

    boxes: NDArray[np.int64]
    rankings: tuple[_Ranking, ...]

    @classmethod
    def of(cls, dataset: Dataset, detections: Detections | Results) -> Tally:
        """Match detections at the ten thresholds.

        Raises:
            DataError: they cannot be scored; see :func:`orchestrator.evaluation.coco.evaluate`.
        """
        results = sound(dataset, detections)
        classes = len(dataset.label_map)
        rows, matches = match_at(dataset, results, _THRESHOLDS.tolist())
        image, _ = positions_in(results.image_ids[rows], dataset.image_ids)
        bits = np.arange(len(_THRESHOLDS), dtype=np.uint64)[:, None]
        true_positive, false_positive = (
            (words[rows] >> bits & np.uint64(1)).astype(np.bool_)
            for words in (matches.true_positives, matches.false_positives)
        )
        counting = ~dataset.crowd
        truth_image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
        boxes = np.zeros((classes, len(dataset)), np.int64)
        np.add.at(boxes, (dataset.labels[counting], truth_image[counting]), 1)
        rankings = []
        for label in range(classes):
            mine = np.flatnonzero(results.labels[rows] == label)
            correct = tuple(np.flatnonzero(level) for level in true_positive[:, mine])
            end = max((int(one[-1]) + 1 for one in correct if len(one)), default=0)
            mine = mine[:end]
            neither = ~(true_positive | false_positive)
            ignored = tuple(np.flatnonzero(level) for level in neither[:, mine])
            rankings.append(_Ranking(image[mine], correct, ignored))
        return cls(boxes, tuple(rankings))

    def precision(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """AP for data sets in which every image occurs a number of times.

        It is the AP the evaluator would give if the images were copied, each copy next to its
        image in the order of ids. One thing could differ: of detections with one score, one class
        and one image, all copies of the first come before all copies of the second.

        Args:
            weights: (r, n) number of copies; 0 leaves an image out.

        Returns:
            (r, 10, K); NaN for a class without boxes.
        """
        boxes = weights @ self.boxes.T
        values = np.full((len(weights), len(_THRESHOLDS), len(self.rankings)), np.nan)
        for label, ranking in enumerate(self.rankings):
            step = max(1, _BLOCK // max(1, len(ranking.image)))
            for start in range(0, len(weights), step):
                part = slice(start, start + step)
                values[part, :, label] = ranking.precision(weights[part], boxes[part, label])
            values[boxes[:, label] == 0, :, label] = np.nan
        return values

    def ap(self) -> float:
        """AP of the data set as it is; NaN without boxes."""
        return float(_numbers(self.precision(np.ones((1, self.boxes.shape[1]), np.int64)))[0, 0])


@dataclass(frozen=True)
class Effect:
    """What a number gains from one side to the other.

    Attributes:
        before, after: its values on the data set, means over the runs of a side.
        difference: ``after - before``.
        low, high: confidence interval of the difference.
        p: how probable a difference at least as large would be if there were none in truth; for
            one of several classes multiplied by Holm's rule, so that the least of them may be
            looked at.
        significant: whether ``p`` is below 1 - level.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    significant: bool


@dataclass(frozen=True)
class Significance:
    """The result of :func:`compare`.

    Attributes:
        level: of confidence.
        images: of the data set.
        resamples: that were drawn.
        runs: on each side.
        seeds: runs from which the spread among seeds was taken; 0 where it is not known and so not
            part of the intervals.
        numbers: effects on ``AP``, ``AP50``, ``AP75``.
        classes: effects on the AP of every class that has boxes.
    """

    level: float
    images: int
    resamples: int
    runs: tuple[int, int]
    seeds: int
    numbers: dict[str, Effect]
    classes: dict[str, Effect]

    @property
    def verdict(self) -> str:
        """One sentence on AP."""
        effect = self.numbers["AP"]
        if not effect.significant:
            return f"no significant difference in AP ({_words(effect, self.level)})"
        direction = "better" if effect.difference > 0 else "worse"
        return f"{direction} by {abs(effect.difference):.4f} AP ({_words(effect, self.level)})"


def _words(effect: Effect, level: float) -> str:
    return (
        f"{effect.difference:+.4f}, {level:.0%} interval {effect.low:+.4f} to {effect.high:+.4f}, "
        f"p = {effect.p:.2g}"
    )


def compare(
    dataset: Dataset,
    before: Sequence[Tally],
    after: Sequence[Tally],
    *,
    experiments: Sequence[Sequence[Tally]] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Significance:
    """Compare the detections of one or more runs with those of others on the same images.

    Args:
        dataset: ground truth of them all.
        before: one tally for each run of the first side; more than one if they are the same
            experiment with other seeds.
        after: those of the second side.
        experiments: for each, its runs with different seeds, whose spread among each other is that
            of both sides; None for the two sides themselves.
        level: of confidence.
        resamples: how many data sets to draw.
        seed: of the draws; equal seeds give equal bits.

    Raises:
        DataError: the data set has fewer than :data:`LEAST_IMAGES` images, or no boxes.
    """
    images = len(dataset)
    if images < LEAST_IMAGES:
        raise DataError(
            f"{images} images cannot tell two detectors apart, at least {LEAST_IMAGES} are needed. "
            "Next: compare on a larger data set"
        )
    if dataset.crowd.all():
        raise DataError("the data set has no boxes to find. Next: compare on one that has")
    sides = before, after
    rng = np.random.default_rng(seed)
    whole = np.ones((1, images), np.int64)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    old, new = (np.concatenate([_numbers(one.precision(whole)) for one in s]) for s in sides)
    old_drawn, new_drawn = (
        np.mean([_numbers(one.precision(drawn)) for one in s], axis=0) for s in sides
    )
    # Drawing n of n images has the spread of n - 1 of them.
    spread = _variance(new_drawn - old_drawn) * images / (images - 1)
    freedom = np.full(len(spread), images - 1.0)
    repeated = [runs for runs in experiments or sides if len(runs) > 1]
    if repeated:
        among, others = _seed_variance(repeated, whole)
        among = among * (1 / len(old) + 1 / len(new))
        freedom = _freedom(spread, images - 1.0, among, others)
        spread = spread + among
    effects = _effects(old.mean(axis=0), new.mean(axis=0), np.sqrt(spread), freedom, level)
    names = dataset.label_map.names
    at = len(_NUMBERS)
    there = [i for i in range(len(names)) if not math.isnan(effects[at + i].difference)]
    return Significance(
        level=level,
        images=images,
        resamples=resamples,
        runs=(len(old), len(new)),
        seeds=sum(map(len, repeated)),
        numbers=dict(zip(_NUMBERS, effects[:at], strict=True)),
        classes=dict(
            zip(
                [names[i] for i in there],
                _holm([effects[at + i] for i in there], level),
                strict=True,
            )
        ),
    )


def _seed_variance(
    experiments: Sequence[Sequence[Tally]], whole: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Variance of every number among runs of one experiment, and its degrees of freedom."""
    strays = []
    for runs in experiments:
        points = np.concatenate([_numbers(one.precision(whole)) for one in runs])
        strays.append(points - points.mean(axis=0))
    freedom = float(sum(map(len, experiments)) - len(experiments))
    squares: NDArray[np.float64] = (np.concatenate(strays) ** 2).sum(axis=0)
    return squares / freedom, freedom


def _numbers(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """(r, 3 + K) from (r, 10, K): the numbers over all classes, then the AP of each class."""
    draws = len(precision)
    overall = [_mean(precision[:, rows].reshape(draws, -1).T) for rows in _NUMBERS.values()]
    return np.concatenate([np.stack(overall, axis=1), precision.mean(axis=1)], axis=1)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each column over what is not NaN; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    total = values.sum(axis=0, where=there)
    means: NDArray[np.float64] = np.full(len(count), np.nan)
    np.divide(total, count, out=means, where=count > 0)
    return means


def _variance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of each column over what is not NaN."""
    return _mean((values - _mean(values)) ** 2)


def _freedom(
    one: NDArray[np.float64], one_freedom: float, two: NDArray[np.float64], two_freedom: float
) -> NDArray[np.float64]:
    """Degrees of freedom of a sum of two variances (Welch and Satterthwaite)."""
    share = one**2 / one_freedom + two**2 / two_freedom
    freedom = np.full(len(one), one_freedom)
    np.divide((one + two) ** 2, share, out=freedom, where=share > 0)
    return freedom


def _effects(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    deviation: NDArray[np.float64],
    freedom: NDArray[np.float64],
    level: float,
) -> list[Effect]:
    difference = after - before
    reach = stats.t.ppf((1 + level) / 2, freedom) * deviation
    # Without any spread a difference is certain, and no difference is none.
    ratio = np.where(difference == 0, 0.0, np.inf)
    np.divide(np.abs(difference), deviation, out=ratio, where=deviation > 0)
    p = 2 * stats.t.sf(ratio, freedom)
    columns = (before, after, difference, difference - reach, difference + reach, p)
    return [
        Effect(one, two, change, low, high, chance, significant=chance < 1 - level)
        for one, two, change, low, high, chance in np.stack(columns, axis=1).tolist()
    ]


def _holm(effects: Sequence[Effect], level: float) -> list[Effect]:
    """Effects whose p-values allow for there being several (Holm, Scand. J. Statist. 1979)."""
    order = sorted(range(len(effects)), key=lambda i: effects[i].p)
    adjusted = list(effects)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = min(1.0, max(highest, effects[i].p * (len(effects) - rank)))
        adjusted[i] = replace(effects[i], p=highest, significant=highest < 1 - level)
    return adjusted
