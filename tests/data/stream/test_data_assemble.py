from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.schema import DataConfig, NoAugmentation, SplitConfig
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import read_image
from orchestrator.data.label_map import LabelMap
from orchestrator.data.stream.assemble import BatchPlan, usable_boxes
from orchestrator.errors import ConfigError, DataError
from tests.support.data_cases import make_plan, write_coco

SPLIT = SplitConfig(images="images", annotations="instances.json")


def dataset(boxes: list[list[float]], crowd: list[bool], counts: list[int]) -> Dataset:
    """Images of 40x30 pixels with the given boxes."""
    n = len(counts)
    return Dataset(
        label_map=LabelMap(names=("a",), ids=(1,)),
        root="/nowhere",
        files=tuple(f"{i}.jpg" for i in range(n)),
        image_ids=np.arange(n),
        widths=np.full(n, 40, np.int32),
        heights=np.full(n, 30, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.zeros(len(boxes), np.int64),
        areas=np.ones(len(boxes)),
        crowd=np.array(crowd, dtype=bool),
    )


def plan_for(
    data: Dataset, *, batch_size: int = 1, workers: int = 1, **config: object
) -> BatchPlan:
    return BatchPlan.from_config(
        DataConfig(train=SPLIT, val=SPLIT, **config),
        data,
        data,
        seed=1,
        epochs=2,
        batch_size=batch_size,
        workers=workers,
        input_size=(30, 40),
    )


#: Image 0: two boxes and a crowd; 1: none; 2: a crowd alone; 3: a box that has no area inside.
MIXED = dataset(
    [[1, 1, 5, 5], [2, 2, 5, 5], [0, 0, 40, 30], [3, 3, 9, 9], [40, 3, 9, 9]],
    [False, False, True, True, False],
    [3, 0, 1, 1],
)


def test_usable_boxes_agree_with_what_training_gets() -> None:
    assert usable_boxes(MIXED, with_crowd=False).tolist() == [2, 0, 0, 0]
    assert usable_boxes(MIXED, with_crowd=True).tolist() == [3, 0, 1, 0]
    for with_crowd in (False, True):
        expected = [len(MIXED.training_boxes(i, with_crowd=with_crowd)[0]) for i in range(4)]
        assert usable_boxes(MIXED, with_crowd=with_crowd).tolist() == expected


@pytest.mark.parametrize(
    ("config", "samples", "slots"),
    [
        ({}, [0], 2),
        ({"crowd": "include"}, [0, 2], 3),
        ({"keep_empty": True}, [0, 1, 2, 3], 2),
        ({"max_boxes": 7}, [0], 7),
    ],
)
def test_configuration_chooses_samples_and_slots(
    config: dict[str, object], samples: list[int], slots: int
) -> None:
    plan = plan_for(MIXED, **config)
    assert np.asarray(plan.schedule.sample_ids).tolist() == samples
    assert plan.box_slots == slots


def test_set_without_any_box_can_be_trained_on_when_asked() -> None:
    empty = dataset([], [], [0, 0])
    assert plan_for(empty, keep_empty=True).box_slots == 1
    with pytest.raises(DataError, match="no image has a box to learn from"):
        plan_for(empty)


def test_evaluation_batches_are_as_large_as_a_ranks_training_batches() -> None:
    data = dataset([[1, 1, 5, 5]] * 8, [False] * 8, [1] * 8)
    assert plan_for(data, batch_size=8, workers=4).eval_batch == 2
    with pytest.raises(ConfigError, match="does not divide"):
        plan_for(data, batch_size=8, workers=3)


def test_splits_with_other_classes_are_refused() -> None:
    other = Dataset(**{**vars(MIXED), "label_map": LabelMap(names=("b",), ids=(1,))})
    with pytest.raises(DataError, match=r"label maps differ: data\.train against data\.val"):
        BatchPlan.from_config(
            DataConfig(train=SPLIT, val=SPLIT),
            MIXED,
            other,
            seed=1,
            epochs=1,
            batch_size=1,
            workers=1,
            input_size=(30, 40),
        )


def test_augmentation_comes_from_the_configuration() -> None:
    assert plan_for(MIXED).augment == SSDAugment(size=(30, 40))
    plain = plan_for(MIXED, augmentation=NoAugmentation())
    assert plain.augment == PlainResize(size=(30, 40))


def test_training_batch_holds_augmented_samples(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    data = plan.train
    batch = plan.train_batch(6, 1, 2)
    assert batch.step == 6
    assert len(batch) == 2
    assert batch.replaced == ()
    samples = plan.schedule.rank_samples(6, 1, 2)
    assert batch.sample_ids.tolist() == samples.tolist()
    assert batch.images.shape == (2, 48, 64, 3)
    assert batch.boxes.shape == (2, 3, 4)
    for row, index in enumerate(samples.tolist()):
        image = read_image(data.path(index))
        made = plan.augment(image, *data.training_boxes(index), SampleKey(1, 1, index))
        count = len(made.boxes)
        assert np.array_equal(batch.images[row], made.image)
        assert batch.valid[row].tolist() == [True] * count + [False] * (3 - count)
        assert np.array_equal(batch.boxes[row, :count], made.boxes)
        assert not batch.boxes[row, count:].any()
        assert np.array_equal(batch.labels[row, :count], made.labels)
        assert batch.image_ids[row] == data.image_ids[index]
        assert batch.sizes[row].tolist() == list(image.shape[:2])
        assert batch.transforms[row].tolist() == list(made.transform)


def test_step_has_the_same_images_for_any_number_of_workers(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    alone = plan.train_batch(7, 0, 1)
    for world in (2, 4):
        shares = [plan.train_batch(7, rank, world) for rank in range(world)]
        assert np.array_equal(np.concatenate([b.images for b in shares]), alone.images)
        assert np.array_equal(np.concatenate([b.sample_ids for b in shares]), alone.sample_ids)


def test_same_sample_looks_different_in_another_epoch(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    looks: dict[int, set[bytes]] = {}
    for step in range(plan.schedule.total_steps):
        batch = plan.train_batch(step, 0, 1)
        for sample, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
            looks.setdefault(sample, set()).add(image.tobytes())
    assert sum(len(seen) for seen in looks.values()) == plan.schedule.total_steps * 4


def test_of_too_many_boxes_the_largest_are_kept_in_order(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    few = BatchPlan(**{**vars(plan), "box_slots": 2, "augment": PlainResize(size=(48, 64))})
    batch = few.train_batch(0, 0, 1)
    for row, index in enumerate(batch.sample_ids.tolist()):
        boxes, _ = plan.train.training_boxes(index)
        scale = np.array([64 / batch.sizes[row, 1], 48 / batch.sizes[row, 0]] * 2)
        areas = ((boxes[:, 2:] - boxes[:, :2]) * scale[:2]).prod(axis=1)
        kept = np.sort(np.argsort(areas)[1:])
        assert np.allclose(batch.boxes[row], boxes[kept] * scale, rtol=1e-6)


def test_evaluation_batches_cover_the_set_without_augmentation(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    seen = []
    for rank in range(2):
        for index in range(plan.eval_batch_count(2)):
            batch = plan.eval_batch_at(index, rank, 2)
            assert batch.step == -1
            assert batch.images.shape == (2, 48, 64, 3)
            for row, sample in enumerate(batch.sample_ids.tolist()):
                if sample < 0:
                    assert batch.image_ids[row] == -1
                    assert not batch.images[row].any()
                    continue
                seen.append(sample)
                height, width = batch.sizes[row]
                assert batch.transforms[row].tolist() == [64 / width, 48 / height, 0, 0]
                assert batch.valid[row].sum() == len(plan.val.training_boxes(sample)[0])
    # 22 images, 11 on each rank, in six batches of two.
    assert sorted(seen) == list(range(22))


@pytest.fixture
def damaged(coco_folder: Path, tmp_path: Path) -> Path:
    """A copy in which images 3 and 8 cannot be decoded."""
    folder = tmp_path / "damaged"
    shutil.copytree(coco_folder, folder)
    (folder / "images" / "003.jpg").write_bytes(b"")
    whole = (folder / "images" / "008.jpg").read_bytes()
    (folder / "images" / "008.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_bad_image_is_always_replaced_by_the_same_good_one(damaged: Path) -> None:
    plan = make_plan(damaged)
    stand_ins: dict[int, set[int]] = {3: set(), 8: set()}
    for step in range(plan.schedule.total_steps):
        batch = plan.train_batch(step, 0, 1)
        wanted = plan.schedule.samples(step)
        replaced = {position: sample for position, sample, _ in batch.replaced}
        for position, sample in enumerate(wanted.tolist()):
            used = int(batch.sample_ids[position])
            assert batch.image_ids[position] == plan.train.image_ids[used]
            if sample in stand_ins:
                assert replaced.pop(position) == sample
                assert used not in stand_ins
                stand_ins[sample].add(used)
            else:
                assert used == sample
        assert not replaced
    assert [len(used) for used in stand_ins.values()] == [1, 1]


def test_replacement_names_file_and_reason(damaged: Path) -> None:
    plan = make_plan(damaged)
    reasons = {
        sample: reason
        for step in range(plan.schedule.steps_per_epoch * 2)
        for _, sample, reason in plan.train_batch(step, 0, 1).replaced
    }
    assert reasons[3].endswith("003.jpg: empty file")
    assert "008.jpg: truncated JPEG" in reasons[8]


def test_replacement_does_not_depend_on_the_number_of_workers(damaged: Path) -> None:
    plan = make_plan(damaged)
    for step in range(plan.schedule.steps_per_epoch):
        alone = plan.train_batch(step, 0, 1)
        shares = [plan.train_batch(step, rank, 2) for rank in range(2)]
        assert np.array_equal(np.concatenate([b.sample_ids for b in shares]), alone.sample_ids)


def test_bad_image_becomes_padding_in_evaluation(damaged: Path) -> None:
    plan = make_plan(damaged)
    batches = [plan.eval_batch_at(index, 0, 1) for index in range(plan.eval_batch_count(1))]
    seen = [sample for batch in batches for sample in batch.sample_ids.tolist() if sample >= 0]
    assert sorted(seen) == [i for i in range(22) if i not in (3, 8)]
    assert [(p, s) for batch in batches for p, s, _ in batch.replaced] == [(1, 3), (0, 8)]


def test_size_that_is_not_the_annotated_one_is_a_bad_image(tmp_path: Path) -> None:
    write_coco(tmp_path, 4)
    shutil.copy(tmp_path / "images" / "001.jpg", tmp_path / "images" / "000.jpg")
    batch = make_plan(tmp_path).train_batch(0, 0, 1)
    ((_, sample, reason),) = batch.replaced
    assert sample == 0
    assert "but annotated as" in reason


def test_data_set_without_any_readable_image_ends_the_run(tmp_path: Path) -> None:
    write_coco(tmp_path, 4)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="32 others tried in its place cannot be decoded"):
        make_plan(tmp_path).train_batch(0, 0, 1)
