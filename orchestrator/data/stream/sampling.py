"""How often each training image is visited in an epoch: weights of sources and repeat factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, uniforms
from orchestrator.data.dataset import Dataset

if TYPE_CHECKING:
    from orchestrator.config.schema import DataConfig


@dataclass(frozen=True, eq=False)
class SampleIds:
    """The indices of a data set that take part, rising, without a table of them.

    Attributes:
        images: in the data set.
        left_out: (k,) int64 indices that take no part, rising.
    """

    images: int
    left_out: NDArray[np.int64]

    def __len__(self) -> int:
        return self.images - len(self.left_out)

    @overload
    def __getitem__(self, places: int) -> int: ...

    @overload
    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]: ...

    def __getitem__(self, places: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        passed = np.searchsorted(self._before, places, side="right")
        return int(places + passed) if isinstance(places, int) else places + passed

    def before(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many that take part lie before indices of the data set."""
        return indices - np.searchsorted(self.left_out, indices)

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """How many that take part lie before each that does not."""
        return self.left_out - np.arange(len(self.left_out))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[np.arange(len(self))], dtype=dtype)


def visit_factors(
    config: DataConfig, train: Dataset, samples: NDArray[np.int64] | SampleIds
) -> NDArray[np.float64] | None:
    """Mean number of visits of each training image in an epoch.

    It is the weight of the image's source times its repeat factor.

    Args:
        config: the ``data`` section.
        train: the training images, those of ``config.sources`` behind those of ``config.train``.
        samples: (n,) indices of the images that take part.

    Returns:
        (n,) float64, positive; None where every image is visited once.
    """
    weights = [config.weight, *(source.weight for source in config.sources)]
    if config.repeat_threshold is None and all(weight == 1.0 for weight in weights):
        return None
    samples = np.asarray(samples)
    starts = np.array([first for first, _ in train.parts], np.int64)
    factors = np.array(weights)[np.searchsorted(starts, samples, side="right")]
    if config.repeat_threshold is not None:
        with_crowd = config.crowd == "include"
        factors = factors * repeat_factors(
            train, samples, config.repeat_threshold, with_crowd=with_crowd
        )
    return factors


def repeat_factors(
    data: Dataset, samples: NDArray[np.int64], threshold: float, *, with_crowd: bool = False
) -> NDArray[np.float64]:
    """Repeat factors of images (Gupta et al., "LVIS", CVPR 2019, section 5.1).

    With f(c) the fraction of the images that show class c, the factor of a class is
    r(c) = max(1, sqrt(t / f(c))), and that of an image the largest of its classes'; 1 where it
    shows none.

    Args:
        data: the training images.
        samples: (n,) indices of those that take part.
        threshold: t, below which a class is rare.
        with_crowd: whether crowd boxes show a class.

    Returns:
        (n,) float64, at least 1.
    """
    place = np.full(len(data), -1, np.int64)
    place[samples] = np.arange(len(samples))
    image = place[np.arange(len(data)).repeat(np.diff(data.offsets))]
    counts = (image >= 0) & (with_crowd | ~data.crowd)
    shown = np.unique(np.stack([image[counts], data.labels[counts]]), axis=1)
    images_with = np.bincount(shown[1], minlength=len(data.label_map))
    frequency = np.maximum(images_with, 1) / len(samples)
    of_class = np.maximum(1.0, np.sqrt(threshold / frequency))
    factors = np.ones(len(samples))
    np.maximum.at(factors, shown[0], of_class[shown[1]])
    return factors


def visits_of(seed: int, epoch: int, factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) int64: visits of each image in an epoch, a whole number beside its factor.

    The fractional part of a factor is the probability of one visit more, drawn for each image in
    each epoch.
    """
    whole = np.floor(factors)
    drawn = uniforms(seed, Domain.REPEAT, epoch=epoch, count=len(factors)) < factors - whole
    return whole.astype(np.int64) + drawn
