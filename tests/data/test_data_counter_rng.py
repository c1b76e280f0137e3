from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from orchestrator.data.counter_rng import Domain, SampleKey, uniforms, words

_MASK = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in whole numbers, from the paper (Salmon et al. 2011, section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (
            (product1 >> 64) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 64) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return [c0, c1, c2, c3]


def test_reference_satisfies_the_published_known_answer() -> None:
    # kat_vectors of Random123, philox4x64 10 rounds, all zero.
    assert philox([0, 0, 0, 0], [0, 0]) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


def test_words_are_philox_of_the_address() -> None:
    drawn = words(11, Domain.FLIP, epoch=3, sample=9, count=8)
    # The first block has number 1: the generator counts before it draws.
    expected = [philox([block, 9, 3, 0], [11, int(Domain.FLIP)]) for block in (1, 2)]
    assert drawn.tolist() == expected[0] + expected[1]


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"domain": Domain.CROP},
        {"epoch": 1},
        {"sample": 1},
    ],
)
def test_every_coordinate_matters(other: dict[str, int]) -> None:
    address = {"seed": 1, "domain": Domain.FLIP, "epoch": 0, "sample": 0, "count": 4}
    assert not set(words(**address)) & set(words(**{**address, **other}))


def test_longer_request_begins_with_the_shorter_one() -> None:
    key = SampleKey(5, 6, 7)
    assert key.uniforms(Domain.CROP, 9)[:4].tolist() == key.uniforms(Domain.CROP, 4).tolist()


def test_no_draw_is_what_an_earlier_one_left() -> None:
    addresses = [(seed, sample, count) for seed in (0, 7) for sample in (0, 3) for count in (1, 6)]

    def draw(address: tuple[int, int, int]) -> list[int]:
        seed, sample, count = address
        return words(seed, Domain.CROP, sample=sample, count=count).tolist()

    def fresh(address: tuple[int, int, int]) -> list[int]:
        seed, sample, count = address
        counter = np.array([0, sample, 0, 0], np.uint64)
        key = np.array([seed, int(Domain.CROP)], np.uint64)
        return np.random.Philox(counter=counter, key=key).random_raw(count).tolist()

    expected = [fresh(address) for address in addresses]
    assert [draw(address) for address in addresses] == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, addresses * 50)) == expected * 50


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    drawn = uniforms(1, Domain.SCENE, count=100_000)
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    counts, _ = np.histogram(drawn, bins=10, range=(0.0, 1.0))
    # Ten standard deviations of a binomial count are 950.
    assert np.abs(counts - 10_000).max() < 950


def test_uniform_takes_the_highest_53_bits() -> None:
    word = int(words(1, Domain.CROP, count=1)[0])
    assert uniforms(1, Domain.CROP, count=1)[0] == (word >> 11) / 2**53


@pytest.mark.parametrize("coordinate", ["seed", "epoch", "sample"])
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_coordinate_outside_64_bits_is_refused(coordinate: str, value: int) -> None:
    address = {"seed": 0, "epoch": 0, "sample": 0, coordinate: value}
    with pytest.raises(ValueError, match=f"{coordinate} is {value}"):
        words(address.pop("seed"), Domain.CROP, **address, count=1)
