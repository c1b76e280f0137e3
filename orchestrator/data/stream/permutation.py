"""A permutation of 0..n-1 that is computed place by place and never stored.

A Feistel network of eight rounds is a bijection on the numbers of 2h bits, whatever its round
function (Luby and Rackoff, "How to Construct Pseudorandom Permutations", SIAM J. Comput. 17, 1988).
A number that it sends to n or above is sent on until it lies below: cycle walking (Black and
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), fewer than four times on average.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, words

_ROUNDS = 8
#: Which users of the random words of an epoch's order these are: the whole, and two of blocks.
_STAGE, _BLOCK_STAGES = 1, (2, 3)
#: Constants of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): its step, and those of its finalizer.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def permuted(seed: int, epoch: int, n: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """What a permutation of ``0..n-1`` has at some places.

    Args:
        seed: of the experiment.
        epoch: each has a permutation of its own.
        n: length of the permutation, at least 1.
        places: (k,) in 0..n-1.

    Returns:
        (k,) int64.
    """
    keys = words(seed, Domain.ORDER, epoch=epoch, stage=_STAGE, count=_ROUNDS)
    return _walked(n, places, keys, np.zeros(len(places), np.uint64))


def mixed_within(
    seed: int, epoch: int, n: int, window: int, places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """What a permutation of ``0..n-1`` that moves nothing by ``window`` or more has at some places.

    Blocks of half a window are permuted, and then blocks whose borders lie in the middle of those,
    so that there is no border that nothing crosses.

    Args:
        seed: of the experiment.
        epoch: each has a permutation of its own.
        n: length of the permutation, at least 1.
        window: at least 1; with 1 nothing is moved.
        places: (k,) in 0..n-1.

    Returns:
        (k,) int64.
    """
    size = max(1, window // 2)
    for stage, shift in zip(_BLOCK_STAGES, (0, size // 2), strict=True):
        keys = words(seed, Domain.ORDER, epoch=epoch, stage=stage, count=_ROUNDS)
        # The first block and the last one may be shorter.
        block = (places - shift) // size
        first = np.maximum(block * size + shift, 0)
        sizes = np.minimum((block + 1) * size + shift, n) - first
        moved = np.empty_like(places)
        for each in np.unique(sizes).tolist():
            rows = sizes == each
            tweak = _mixed((block[rows] + 2).astype(np.uint64) * _GOLDEN)
            moved[rows] = first[rows] + _walked(each, (places - first)[rows], keys, tweak)
        places = moved
    return places


def _walked(
    n: int, places: NDArray[np.int64], keys: NDArray[np.uint64], tweak: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Places through the network until they lie in 0..n-1; each tweak is a network of its own."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    values = _round_trip(places.astype(np.uint64), half, keys, tweak)
    limit = np.uint64(n)
    while (outside := values >= limit).any():
        values[outside] = _round_trip(values[outside], half, keys, tweak[outside])
    return values.astype(np.int64)


def _round_trip(
    values: NDArray[np.uint64],
    half: np.uint64,
    keys: NDArray[np.uint64],
    tweak: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """All rounds, on numbers of twice ``half`` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key ^ tweak) >> (np.uint64(64) - half))
    joined: NDArray[np.uint64] = (left << half) | right
    return joined


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of a value."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
