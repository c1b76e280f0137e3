"""Repeat factors, weights of sources, and the order of an epoch that visits images by them."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import DataConfig, SourceConfig, SplitConfig
from orchestrator.data.counter_rng import Domain, SampleKey, uniforms, words
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.mixture import MixedSource, mix_sources
from orchestrator.data.readers.split import read_splits, read_training
from orchestrator.data.stream import schedule as schedule_module
from orchestrator.data.stream.assemble import BatchPlan, training_samples
from orchestrator.data.stream.local import LocalStream
from orchestrator.data.stream.sampling import (
    SampleIds,
    repeat_factors,
    visit_factors,
    visits_of,
)
from orchestrator.data.stream.schedule import Schedule, order
from orchestrator.errors import DataError
from orchestrator.runs.digests import config_digest
from tests.support.data_cases import assert_same_batch, write_coco


def dataset(*labels: list[int], classes: int = 3) -> Dataset:
    """One image of 10 by 10 pixels for each list of labels."""
    flat = [label for one in labels for label in one]
    n = len(labels)
    return Dataset(
        label_map=LabelMap(tuple("abc"[:classes]), tuple(range(classes))),
        root="/nowhere",
        files=tuple(f"{i}.jpg" for i in range(n)),
        image_ids=np.arange(1, n + 1),
        widths=np.full(n, 10, np.int32),
        heights=np.full(n, 10, np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(one) for one in labels])]).astype(np.int64),
        boxes_xywh=np.tile([1.0, 1.0, 4.0, 4.0], (len(flat), 1)),
        labels=np.array(flat, np.int64),
        areas=np.full(len(flat), 16.0),
        crowd=np.zeros(len(flat), bool),
    )


def test_repeat_factors_by_hand() -> None:
    # f(a) = 8/10, f(b) = 2/10, f(c) = 1/10; with t = 0.4: r(a) = 1, r(b) = sqrt(2), r(c) = 2.
    data = dataset([0], [0], [0], [0], [0], [0], [0, 0, 1], [1], [0, 2, 2], [])
    samples = np.arange(10)
    expected = [1.0] * 6 + [2**0.5, 2**0.5, 2.0, 1.0]
    assert repeat_factors(data, samples, 0.4) == pytest.approx(expected)
    # Of the five that take part, two show b: f(b) = 0.4, r(b) = 1; f(c) = 0.2, r(c) = sqrt(2).
    some = np.array([4, 5, 6, 7, 8])
    assert repeat_factors(data, some, 0.4) == pytest.approx([1.0, 1.0, 1.0, 1.0, 2**0.5])


def test_visits_have_the_factor_as_their_mean() -> None:
    factors = np.array([0.25, 1.0, 1.4, 2.0, 3.75])
    visits = np.array([visits_of(1, epoch, factors) for epoch in range(4000)])
    assert set(visits[:, 0].tolist()) == {0, 1}
    assert set(visits[:, 1].tolist()) == {1}
    assert set(visits[:, 4].tolist()) == {3, 4}
    # Six standard deviations of a mean of 4,000 coins.
    assert np.abs(visits.mean(axis=0) - factors).max() < 6 * 0.5 / 4000**0.5
    drawn = uniforms(1, Domain.REPEAT, epoch=7, count=5) < [0.25, 0.0, 0.4, 0.0, 0.75]
    assert visits[7].tolist() == (np.array([0, 1, 1, 2, 3]) + drawn).tolist()


def weighted(n: int = 20, **values: object) -> Schedule:
    factors = np.where(np.arange(n) % 5 == 0, 2.5, 0.8)
    return Schedule(
        seed=3, sample_ids=np.arange(n) * 3 + 1, batch_size=4, epochs=6, factors=factors, **values
    )


def test_an_epoch_is_as_long_as_its_visits() -> None:
    plan = weighted()
    # 4 * 2.5 + 16 * 0.8 = 22.8 visits.
    assert plan.visits_per_epoch == 22
    assert plan.steps_per_epoch == 5
    seen = np.zeros(60, np.int64)
    for step in range(plan.total_steps):
        seen += np.bincount(plan.samples(step), minlength=60)
    assert set(np.flatnonzero(seen).tolist()) == set(plan.sample_ids.tolist())
    # 20 of about 22.8 visits in each of six epochs.
    often = seen[plan.sample_ids][np.arange(20) % 5 == 0].mean() / 6
    assert 1.5 < often < 3


def test_visits_of_an_epoch_are_counted_and_mixed() -> None:
    plan = weighted()
    for epoch in range(6):
        taken, visits = plan.places(epoch)
        assert visits is not None
        counts = visits_of(3, epoch, plan.factors)
        # The first round takes each visit once; what follows begins anew with further numbers.
        pairs = list(zip(taken.tolist(), visits.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs) >= 20
        first = pairs[: counts.sum()]
        assert sorted(first) == [(i, v) for i in range(20) for v in range(counts[i])]
        expected = np.repeat(np.arange(20), counts)[order(3, epoch, counts.sum())]
        assert taken[: counts.sum()].tolist() == expected.tolist()


def test_an_epoch_that_draws_too_little_begins_anew() -> None:
    plan = Schedule(
        seed=1, sample_ids=np.arange(4), batch_size=2, epochs=400, factors=np.full(4, 0.5)
    )
    assert plan.steps_per_epoch == 1
    lengths = set()
    for epoch in range(400):
        taken, visits = plan.places(epoch)
        lengths.add(int(visits_of(1, epoch, plan.factors).sum()))
        assert len(taken) >= 2
        assert len(set(zip(taken.tolist(), visits.tolist(), strict=True))) == len(taken)
    assert lengths == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_order_is_the_same_for_any_number_of_workers(world: int) -> None:
    plan = weighted()
    for step in range(plan.total_steps):
        for whole, part in ((plan.samples, plan.rank_samples), (plan.visits, plan.rank_visits)):
            shares = [part(step, rank, world) for rank in range(world)]
            assert np.concatenate(shares).tolist() == whole(step).tolist()


def test_with_a_window_visits_stay_near_their_shard() -> None:
    plan = weighted(window=4, bounds=np.array([0, 16, 31, 46, 60]))
    for epoch in range(6):
        taken, _ = plan.places(epoch)
        counts = visits_of(3, epoch, plan.factors)
        first = taken[: counts.sum()]
        assert np.bincount(first, minlength=20).tolist() == counts.tolist()
        shards = np.searchsorted(plan.bounds, plan.sample_ids[first], side="right")
        # Four shards one after the other, mixed within four places.
        assert (np.diff(shards) != 0).sum() <= 3 * 4
    assert plan.partners(7).tolist()


def test_weights_too_small_for_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 images are visited in an epoch.*batch_size = 4"):
        Schedule(seed=1, sample_ids=np.arange(20), batch_size=4, epochs=1, factors=np.full(20, 0.1))


def test_the_second_visit_of_a_sample_draws_for_itself() -> None:
    keys = [SampleKey(1, 2, 3, visit=visit) for visit in range(3)]
    drawn = [key.uniforms(Domain.CROP, 4).tolist() for key in keys]
    assert drawn[0] == SampleKey(1, 2, 3).uniforms(Domain.CROP, 4).tolist()
    assert drawn[0] != drawn[1] != drawn[2]
    stage = keys[2].of_stage(1)
    raw = words(1, Domain.CROP, epoch=2, sample=3, stage=1 + (2 << 32), count=4)
    assert stage.uniforms(Domain.CROP, 4).tolist() == ((raw >> np.uint64(11)) * 2.0**-53).tolist()


def test_sources_are_mapped_by_name() -> None:
    main = dataset([0], [2, 1])
    other = dataset([1, 0], [2], [1])
    other = Dataset(
        **{
            **{name: getattr(other, name) for name in other.__dataclass_fields__},
            "label_map": LabelMap(("c", "thing", "x"), (5, 6, 7)),
            "root": "/elsewhere",
        }
    )
    mixed = mix_sources(main, [MixedSource(other, {"thing": "a", "x": None}, "data.sources.0")])
    assert mixed.label_map == main.label_map
    assert [mixed.labels[mixed.boxes_of(i)].tolist() for i in range(5)] == [
        [0],
        [2, 1],
        [0, 2],
        [],
        [0],
    ]
    assert mixed.image_ids.tolist() == [1, 2, 3, 4, 5]
    assert [str(mixed.path(i)) for i in (1, 2, 4)] == [
        "/nowhere/1.jpg",
        "/elsewhere/0.jpg",
        "/elsewhere/2.jpg",
    ]
    for class_map, text in (
        ({"x": None}, "'thing' is no class of data.train"),
        ({"thing": "b", "x": "aa"}, "'aa' is no class of data.train.*did you mean 'a'"),
        ({"thing": "a", "x": None, "thin": "a"}, "'thin' is no class of this source; did you mean"),
    ):
        with pytest.raises(DataError, match=text):
            mix_sources(main, [MixedSource(other, class_map, "data.sources.0")])


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Eight images of `train`, four of another folder that calls classes otherwise."""
    write_coco(tmp_path / "train", 8, seed=1)
    write_coco(tmp_path / "more", 4, seed=2)
    path = tmp_path / "more" / "instances.json"
    tree = json.loads(path.read_text())
    for one in tree["categories"]:
        one["name"] = f"my {one['name']}"
    path.write_text(json.dumps(tree))
    names = [one["name"].removeprefix("my ") for one in tree["categories"]]
    split = SplitConfig(images="train/images", annotations="train/instances.json")
    source = SourceConfig(
        images="images",
        annotations="instances.json",
        root=str(tmp_path / "more"),
        weight=2.0,
        class_map={f"my {name}": name for name in names},
    )
    return DataConfig(root=str(tmp_path), train=split, val=split, sources=(source,), weight=0.5)


def test_batches_of_a_mixture_are_exact(config: DataConfig) -> None:
    train, val = (read.dataset for read in read_splits(config))
    assert (len(train), len(val)) == (12, 8)
    samples = training_samples(config, train)
    factors = visit_factors(config, train, samples)
    assert factors is not None
    assert factors.tolist() == [0.5] * 8 + [2.0] * 4

    def plan(workers: int) -> BatchPlan:
        return BatchPlan.from_config(
            config, train, val, seed=1, epochs=3, batch_size=4, workers=workers, input_size=(64, 48)
        )

    whole = list(LocalStream(plan(1)).train_batches(0, 9))
    # 8 * 0.5 + 4 * 2 = 12 visits: three steps an epoch, eight of them of the source.
    assert plan(1).schedule.total_steps == 9
    assert sum((batch.sample_ids >= 8).sum() for batch in whole) >= 9 * 4 // 2
    assert all(not batch.replaced for batch in whole)
    for start in (1, 5):
        again = LocalStream(plan(1)).train_batches(start, 9)
        for batch, expected in zip(again, whole[start:], strict=True):
            assert_same_batch(batch, expected)
    shares = [list(LocalStream(plan(2), rank=rank, world=2).train_batches(0, 9)) for rank in (0, 1)]
    for first, second, expected in zip(*shares, whole, strict=True):
        joined = np.concatenate([first.images, second.images])
        assert (joined == expected.images).all()
    # The same image twice in a batch is not the same sample twice.
    for batch in whole:
        ids = batch.sample_ids.tolist()
        for i in range(4):
            for j in range(i):
                if ids[i] == ids[j]:
                    assert (batch.images[i] != batch.images[j]).any()


@pytest.mark.parametrize("world", [2, 4])
def test_repeat_factors_give_the_same_batches_for_any_workers_and_after_a_kill(
    world: int, config: DataConfig
) -> None:
    config = config.model_copy(update={"weight": 1.0, "repeat_threshold": 1.0})
    train, val = (read.dataset for read in read_splits(config))
    samples = training_samples(config, train)
    factors = visit_factors(config, train, samples)
    assert factors is not None
    assert len(set(factors.tolist())) > 2
    sizes = {"seed": 1, "epochs": 2, "batch_size": 4, "input_size": (64, 48)}
    alone = BatchPlan.from_config(config, train, val, workers=1, **sizes)
    steps = alone.schedule.total_steps
    whole = list(LocalStream(alone).train_batches(0, steps))
    assert len(whole) > 2 * len(samples) // 4
    # Whoever was killed makes a plan of its own and begins where it was.
    for start in (0, 1, steps // 2, steps - 1):
        plans = [
            BatchPlan.from_config(config, train, val, workers=world, **sizes) for _ in range(world)
        ]
        streams = [LocalStream(plan, rank=rank, world=world) for rank, plan in enumerate(plans)]
        shares = zip(*(stream.train_batches(start, steps) for stream in streams), strict=True)
        for parts, batch in zip(shares, whole[start:], strict=True):
            assert (np.concatenate([part.images for part in parts]) == batch.images).all()
            joined = np.concatenate([part.sample_ids for part in parts])
            assert joined.tolist() == batch.sample_ids.tolist()


def test_sources_of_which_nothing_is_learnt_are_refused(config: DataConfig) -> None:
    (source,) = config.sources
    dropped = source.model_copy(update={"class_map": dict.fromkeys(source.class_map)})
    config = config.model_copy(update={"sources": (source, dropped)})
    with pytest.raises(DataError, match=r"data.sources.1: no box to learn from in its 4 images"):
        read_training(config)
    data = read_training(config.model_copy(update={"keep_empty": True})).dataset
    assert len(data) == 16


def test_ids_of_sources_stay_within_64_bits() -> None:
    main = dataset([0], [1])
    main = replace(main, image_ids=np.array([0, 2**63 - 1]))
    mixed = mix_sources(main, [MixedSource(dataset([0], [1], [2]), {}, "data.sources.0")])
    assert mixed.image_ids.tolist() == [0, 2**63 - 1, 1, 2, 3]


def test_visits_without_number_are_refused() -> None:
    with pytest.raises(DataError, match=r"4000000000 visits in an epoch of 4 images"):
        Schedule(seed=1, sample_ids=np.arange(4), batch_size=2, epochs=1, factors=np.full(4, 1e9))


def test_missing_files_of_a_source_are_said(config: DataConfig, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "more")
    with pytest.raises(DataError, match=r"(?s)data.sources.0.images: .*data.sources.0.annotations"):
        read_splits(config)
    with pytest.raises(DataError, match="more"):
        read_training(config)


def test_an_experiment_of_before_keeps_its_identity() -> None:
    old = {"seed": 1, "data": {"train": {"images": "a"}}}
    new = {
        "seed": 1,
        "data": {
            "train": {"images": "a"},
            "sources": [],
            "weight": 1.0,
            "repeat_threshold": None,
        },
    }
    assert config_digest(old) == config_digest(new)
    new["data"]["repeat_threshold"] = 0.001  # type: ignore[index]
    assert config_digest(old) != config_digest(new)


@given(takes_part=st.lists(st.booleans(), max_size=60))
def test_ids_without_a_table_are_those_of_a_table(takes_part: list[bool]) -> None:
    table = np.flatnonzero(takes_part)
    ids = SampleIds(len(takes_part), np.flatnonzero(~np.array(takes_part, bool)))
    assert len(ids) == len(table)
    assert np.asarray(ids).tolist() == table.tolist()
    places = np.arange(len(table))[::-1]
    assert ids[places].tolist() == table[places].tolist()
    assert [ids[place] for place in range(len(table))] == table.tolist()


def test_the_visits_of_an_epoch_are_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million images that takes long, and every step needs the number several times."""
    added: list[int] = []

    def counting(values: Any) -> float:
        added.append(len(values))
        return math.fsum(values)

    monkeypatch.setattr(schedule_module, "math", SimpleNamespace(fsum=counting, floor=math.floor))
    plan = Schedule(
        seed=1, sample_ids=np.arange(40), batch_size=4, epochs=3, factors=np.full(40, 1.5)
    )
    for step in range(plan.total_steps):
        plan.rank_samples(step, 0, 2)
        plan.rank_visits(step, 0, 2)
    assert plan.total_steps == 45
    assert added == [40]
    assert pickle.loads(pickle.dumps(plan)).visits_per_epoch == 60
