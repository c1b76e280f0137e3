"""Random numbers as a pure function of what they are for.

Every draw is addressed by ``(seed, domain, epoch, sample)`` and read from the counter-based Philox
generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): there is no
generator state to carry from one sample to the next, to save in a checkpoint, or to depend on which
process handled a sample. Only raw 64-bit words are taken from NumPy, because NEP 19 promises the
streams of its bit generators for good, but not what ``Generator`` makes of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORD = 1 << 64


class Domain(IntEnum):
    """What a draw is for; draws of different domains are independent."""

    ORDER = 1
    REPLACEMENT = 2
    CROP = 3
    FLIP = 4
    COLOUR = 5
    SCENE = 6
    EXPAND = 7
    RESIZE = 8
    MIX = 9
    SHARDS = 10
    SWEEP = 11
    SPLIT = 12
    REPEAT = 13


class _PerThread(threading.local):
    """A generator that is set to the place of each draw: a new one would ask for entropy first."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)


_PER_THREAD = _PerThread()
#: Words that a generator has computed and not handed out.
_NOTHING = np.zeros(4, dtype=np.uint64)


def words(
    seed: int, domain: Domain, *, epoch: int = 0, sample: int = 0, stage: int = 0, count: int
) -> NDArray[np.uint64]:
    """``count`` independent 64-bit words.

    Args:
        seed: of the experiment, 0 <= seed < 2**64.
        domain: what the words are for.
        epoch: of the training run.
        sample: index of the sample in its data set.
        stage: which of several users of a domain draws for the sample.
        count: how many; a longer request begins with the words of a shorter one.

    Returns:
        (count,) uint64.

    Raises:
        ValueError: a coordinate outside 0..2**64-1.
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("sample", sample), ("stage", stage)):
        if not 0 <= value < _WORD:
            raise ValueError(f"{name} is {value}, allowed is 0..2**64-1")
    # The lowest counter word is left to the generator, which counts blocks of four words with it.
    counter = np.array([0, sample, epoch, stage], dtype=np.uint64)
    key = np.array([seed, int(domain)], dtype=np.uint64)
    philox = _PER_THREAD.philox
    philox.state = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        "buffer": _NOTHING,
        "buffer_pos": len(_NOTHING),
        "has_uint32": 0,
        "uinteger": 0,
    }
    drawn: NDArray[np.uint64] = philox.random_raw(count)
    return drawn


def uniforms(
    seed: int, domain: Domain, *, epoch: int = 0, sample: int = 0, stage: int = 0, count: int
) -> NDArray[np.float64]:
    """Like :func:`words`, as (count,) float64 uniform in [0, 1) with 53 random bits."""
    drawn = words(seed, domain, epoch=epoch, sample=sample, stage=stage, count=count)
    fractions: NDArray[np.float64] = (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return fractions


@dataclass(frozen=True)
class SampleKey:
    """Address of all draws that belong to one visit of one sample.

    Attributes:
        seed: of the experiment.
        epoch: in which the sample is visited.
        sample: its index in the data set.
        stage: in a list of augmentations, which of them draws; the last is 0.
        visit: which visit of the sample in this epoch it is.
    """

    seed: int
    epoch: int
    sample: int
    stage: int = 0
    visit: int = 0

    def of_stage(self, stage: int) -> SampleKey:
        """The same visit, for another of several augmentations."""
        return replace(self, stage=stage)

    def uniforms(self, domain: Domain, count: int) -> NDArray[np.float64]:
        """(count,) float64 in [0, 1)."""
        return uniforms(
            self.seed,
            domain,
            epoch=self.epoch,
            sample=self.sample,
            stage=self.stage + (self.visit << 32),
            count=count,
        )
