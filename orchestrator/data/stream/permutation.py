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
#: Which user of the random words of an epoch's order this is.
_STAGE = 1
#: Constants of the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
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
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = words(seed, Domain.ORDER, epoch=epoch, stage=_STAGE, count=_ROUNDS)
    values = _round_trip(places.astype(np.uint64), half, keys)
    limit = np.uint64(n)
    while (outside := values >= limit).any():
        values[outside] = _round_trip(values[outside], half, keys)
    return values.astype(np.int64)


def _round_trip(
    values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """All rounds, on numbers of twice ``half`` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) >> (np.uint64(64) - half))
    joined: NDArray[np.uint64] = (left << half) | right
    return joined


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of a value."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed
