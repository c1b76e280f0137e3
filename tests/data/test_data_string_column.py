from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data import dataset
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.string_column import Names

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8)


@given(names=TEXTS, others=TEXTS)
def test_it_is_the_sequence_it_was_made_of(names: list[str], others: list[str]) -> None:
    made = Names.of(names)
    assert len(made) == len(names)
    assert list(made) == names
    assert [made[i] for i in range(-len(names), len(names))] == names + names
    assert made[1:3] == tuple(names[1:3])
    assert made == names
    assert made == tuple(names)
    assert (made == Names.of(others)) == (names == others)
    assert (made == tuple(others)) == (names == others)
    assert Names.of(made) is made
    assert pickle.loads(pickle.dumps(made)) == made


@given(names=TEXTS, cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_some_of_it_are_joined(names: list[str], cuts: tuple[int, int]) -> None:
    rows = slice(min(cuts), max(cuts))
    assert Names.of(names).joined(rows, b"|") == "|".join(names[rows]).encode()


@pytest.mark.parametrize("rows", [1, 3, 1 << 18])
def test_a_digest_does_not_depend_on_how_much_is_worked_on_at_a_time(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole in one piece, as digests were made from the first version on."""
    monkeypatch.setattr(dataset, "_PIECE_ROWS", rows)
    rng = np.random.Generator(np.random.PCG64(1))
    data = Dataset(
        label_map=LabelMap(("one", "zwei"), (1, 7)),
        root="/data",
        files=["a/ä.jpg", "", "b/../c.jpg", "d"],
        image_ids=np.array([5, 3, 9, 4]),
        widths=np.arange(4, dtype=np.int32),
        heights=np.arange(4, dtype=np.int32) * 2,
        offsets=np.array([0, 2, 2, 3, 7]),
        boxes_xywh=np.where(rng.random((7, 4)) < 0.3, -0.0, rng.random((7, 4))),
        labels=rng.integers(0, 2, 7),
        areas=rng.random(7),
        crowd=rng.random(7) < 0.5,
    )
    head = data.label_map.to_json().encode() + "a/ä.jpg\0\0b/../c.jpg\0d".encode()
    arrays = (data.image_ids, data.widths, data.heights, data.offsets, data.boxes_xywh)
    tail = b"".join(a.tobytes() for a in (*arrays, data.labels, data.areas, data.crowd))
    assert data.digest == hashlib.sha256(head + tail).hexdigest()
    head = "one\nzweia/ä.jpg\0.\0c.jpg\0d".encode()
    arrays = (data.widths, data.heights, data.offsets, data.boxes_xywh + 0.0)
    tail = b"".join(a.tobytes() for a in (*arrays, data.labels, data.crowd))
    assert data.content_digest == hashlib.sha256(head + tail).hexdigest()


def test_names_that_are_no_utf8_come_back() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert Names.of([name, "b"])[0] == name


@pytest.mark.parametrize("index", [2, -3])
def test_there_is_nothing_beyond_the_ends(index: int) -> None:
    with pytest.raises(IndexError, match=f"name {index} of 2"):
        Names.of(["a", "b"])[index]


def test_arrays_are_all_that_is_pickled() -> None:
    """So that Ray can share them: what stays in the stream of a process is small."""
    buffers: list[pickle.PickleBuffer] = []
    names = Names.of(f"train2017/{number:012d}.jpg" for number in range(10_000))
    stream = pickle.dumps(names, protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 1000
    assert sum(len(buffer.raw()) for buffer in buffers) == 10_000 * (26 + 8)


def test_a_data_set_is_shared_as_a_whole() -> None:
    n = 5000
    data = Dataset(
        label_map=LabelMap(("one",), (1,)),
        root="/data",
        files=[f"{number:012d}.jpg" for number in range(n)],
        image_ids=np.arange(n),
        widths=np.full(n, 640, np.int32),
        heights=np.full(n, 480, np.int32),
        offsets=np.arange(n + 1),
        boxes_xywh=np.ones((n, 4)),
        labels=np.zeros(n, np.int64),
        areas=np.ones(n),
        crowd=np.zeros(n, dtype=bool),
    )
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 4000
    back = pickle.loads(stream, buffers=buffers)
    assert back.digest == data.digest
    assert np.shares_memory(back.boxes_xywh, data.boxes_xywh)
    assert np.shares_memory(back.files.text, data.files.text)
