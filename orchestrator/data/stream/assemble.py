"""From a step number to the batch of that step: the one place where batches are made.

Both streams call :class:`BatchPlan`, in this process or in a Ray task; since a batch is a pure
function of the plan, the step, the rank and the number of ranks, they yield the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.mix import Mix, Picture
from orchestrator.data.augment.protocol import Augment, build_augment
from orchestrator.data.batch import Batch
from orchestrator.data.counter_rng import Domain, SampleKey, uniforms
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import fetch_images, image_pixels, require_still_there
from orchestrator.data.shards.split import keep_shards
from orchestrator.data.stream.sampling import SampleIds, visit_factors
from orchestrator.data.stream.schedule import Schedule, eval_slots
from orchestrator.data.tiling import tiled, tiles_of
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.config.schema import DataConfig

#: Samples tried in place of one that cannot be decoded before the data set is given up.
MAX_REPLACEMENTS = 32
_PIECE_IMAGES = 1 << 16

_Replaced = tuple[int, int, str]


@dataclass(frozen=True, eq=False)
class View:
    """How the images of a training step are brought to the network.

    Attributes:
        size: (H, W) of its images.
        augment: applied to them.
        mix: makes samples of several images; None leaves them alone.
    """

    size: tuple[int, int]
    augment: Augment
    mix: Mix | None = None

    @classmethod
    def of(cls, config: DataConfig, size: tuple[int, int]) -> View:
        """What the ``data`` section asks for, for images of this size."""
        mix = None if config.mix is None else Mix(size=size, **config.mix.model_dump())
        return cls(size, build_augment(config.augmentation, size), mix)


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything that decides what is in which batch; plain data, picklable.

    Attributes:
        train, val: the two splits, with ``data.tiles`` as their tiles.
        schedule: which samples form which training step.
        augment: applied to training images; evaluation does its part that draws nothing.
        input_size: (H, W) of the network.
        box_slots: G, boxes per image in a batch. Of an image with more, the largest are kept.
        with_crowd: whether crowd boxes are training targets.
        eval_batch: images per rank in one evaluation batch.
        mix: makes training samples of several images; None leaves them alone.
        canvases: of training steps, by :meth:`Schedule.canvas`, in the place of the three above;
            none where all training images are of ``input_size``.
    """

    train: Dataset
    val: Dataset
    schedule: Schedule
    augment: Augment
    input_size: tuple[int, int]
    box_slots: int
    with_crowd: bool
    eval_batch: int
    mix: Mix | None = None
    canvases: tuple[View, ...] = ()

    @classmethod
    def from_config(
        cls,
        config: DataConfig,
        train: Dataset,
        val: Dataset,
        *,
        seed: int,
        epochs: int,
        batch_size: int,
        workers: int,
        input_size: tuple[int, int],
        canvases: Sequence[tuple[int, int]] = (),
    ) -> BatchPlan:
        """Plan a run.

        Args:
            config: the ``data`` section of the experiment.
            train, val: the splits it names.
            seed: of the experiment.
            epochs: of training.
            batch_size: images of one step over all workers.
            workers: number of ranks; evaluation batches are as large as a rank's training batches.
            input_size: (H, W) of the network.
            canvases: (H, W) of training images that are wider than high, and of the others, where
                those are not of ``input_size``.

        Raises:
            DataError: too few usable images, or splits with different classes.
            ConfigError: the batch does not divide among the workers.
        """
        train.label_map.require_equal(val.label_map, here="data.train", there="data.val")
        with_crowd = config.crowd == "include"
        counts = usable_boxes(train, with_crowd=with_crowd)
        if config.tiles is not None:
            tiles = tiles_of(config.tiles)
            train, val = tiled(train, tiles), tiled(val, tiles)
            counts = usable_boxes(train, with_crowd=with_crowd)
        samples = training_samples(config, train)
        turned = len(canvases) > 1
        higher = train.heights[samples] >= train.widths[samples]
        schedule = Schedule(
            seed=seed,
            sample_ids=samples,
            batch_size=batch_size,
            epochs=epochs,
            window=config.window,
            bounds=_shard_bounds(train),
            factors=visit_factors(config, train, samples),
            computed=config.order == "computed",
            lanes=config.lanes,
            canvases=higher.astype(np.int8) if turned else None,
        )
        reach = schedule.shards_in_reach
        view = View.of(config, input_size)
        images = 1 if view.mix is None else view.mix.images
        return cls(
            train=keep_shards(train, reach),
            val=keep_shards(val, reach),
            schedule=schedule,
            augment=view.augment,
            input_size=input_size,
            box_slots=config.max_boxes or max(1, images * int(counts.max())),
            with_crowd=with_crowd,
            eval_batch=schedule.rank_batch(workers),
            mix=view.mix,
            canvases=tuple(View.of(config, size) for size in canvases) if turned else (),
        )

    def view(self, step: int) -> View:
        """How the images of a training step are made."""
        if not self.canvases:
            return View(self.input_size, self.augment, self.mix)
        return self.canvases[self.schedule.canvas(step)]

    def train_batch(self, step: int, rank: int, world: int, into: Batch | None = None) -> Batch:
        """One rank's share of training step ``step``.

        Args:
            step: of the run.
            rank, world: whose share of it.
            into: a batch whose arrays to fill, of the same shapes but for how its pixels make rows
                and columns; None makes new ones.

        Raises:
            DataError: neither an image nor any of its replacements could be decoded.
        """
        epoch = self.schedule.epoch_of(step)
        samples = self.schedule.rank_samples(step, rank, world)
        visits = self.schedule.rank_visits(step, rank, world).tolist()
        view = self.view(step)
        fetch_images(self.train, samples)
        builder = _BatchBuilder(self.train, step, self._memory(len(samples), view.size, into))
        for position, sample in enumerate(samples.tolist()):
            used, picture = self._picture(position, sample, builder.replaced)
            key = SampleKey(self.schedule.seed, epoch, used, visit=visits[position])
            if view.mix is not None:
                pool = self.schedule.partners(step)
                picture = view.mix(picture, key, len(pool), partial(self._partner, pool))
            made = view.augment(*picture, key, builder.room(position))
            builder.put(position, used, made)
        return builder.finish()

    def eval_batch_count(self, world: int) -> int:
        """Evaluation batches of each of ``world`` ranks."""
        return len(eval_slots(len(self.val), 0, world, self.eval_batch))

    def eval_batch_at(self, index: int, rank: int, world: int, into: Batch | None = None) -> Batch:
        """One rank's ``index``-th evaluation batch, ``into`` as for :meth:`train_batch`.

        Its boxes serve a validation loss; scoring compares with the annotations of ``val``. An
        image that cannot be decoded becomes padding: its annotations then count as missed.
        """
        slots = eval_slots(len(self.val), rank, world, self.eval_batch)[index]
        fetch_images(self.val, slots[slots >= 0])
        prepare = self.augment.plain()
        builder = _BatchBuilder(self.val, -1, self._memory(len(slots), self.input_size, into))
        for position, sample in enumerate(slots.tolist()):
            if sample < 0:
                continue
            image = self._read(self.val, sample)
            if isinstance(image, BadImageError):
                builder.replaced.append((position, sample, str(image)))
                continue
            boxes, labels = self.val.training_boxes(sample)
            key = SampleKey(self.schedule.seed, 0, sample)
            made = prepare(image, boxes, labels, key, builder.room(position))
            builder.put(position, sample, made)
        return builder.finish()

    def _memory(self, n: int, size: tuple[int, int], into: Batch | None) -> Batch:
        if into is not None:
            return replace(into, images=into.images.reshape(n, *size, 3))
        return Batch.unfilled(n, size, self.box_slots)

    def _picture(
        self, position: int, sample: int, replaced: list[_Replaced]
    ) -> tuple[int, Picture]:
        """The sample that is used, and its image with the boxes to learn from."""
        used, image = self._decode_or_replace(position, sample, replaced)
        boxes, labels = self.train.training_boxes(used, with_crowd=self.with_crowd)
        return used, Picture(image, boxes, labels)

    def _partner(self, pool: NDArray[np.int64] | SampleIds, number: int) -> Picture:
        """The picture of the ``number``-th sample of ``pool``.

        Where it has to be replaced nobody is told: that happens when its own turn comes.
        """
        return self._picture(0, int(pool[number]), [])[1]

    def _decode_or_replace(
        self, position: int, sample: int, replaced: list[_Replaced]
    ) -> tuple[int, NDArray[np.uint8]]:
        """The image of ``sample``, or of the first sample of its chain that can be decoded.

        The chain depends on seed and sample alone, so that the same image stands in for a bad one
        in every epoch, on every rank and after every restart.
        """
        image = self._read(self.train, sample)
        if not isinstance(image, BadImageError):
            return sample, image
        replaced.append((position, sample, str(image)))
        pool = self.schedule.sample_ids
        chain = uniforms(
            self.schedule.seed, Domain.REPLACEMENT, sample=sample, count=MAX_REPLACEMENTS
        )
        for candidate in pool[(chain * len(pool)).astype(np.int64)].tolist():
            image = self._read(self.train, candidate)
            if not isinstance(image, BadImageError):
                return candidate, image
        raise DataError(
            f"training set: image {self.train.files[sample]} and {MAX_REPLACEMENTS} others tried "
            f"in its place cannot be decoded; the last: {image}\n"
            "check that data.root points at the image files"
        )

    @staticmethod
    def _read(dataset: Dataset, sample: int) -> NDArray[np.uint8] | BadImageError:
        """The pixels of an image, or why they cannot be used; a storage that is lost is no why."""
        try:
            return image_pixels(dataset, sample)
        except BadImageError as error:
            require_still_there(dataset, sample)
            return error


def _shard_bounds(data: Dataset) -> NDArray[np.int64] | None:
    """First image, or tile, of each shard, and of what follows the last; None without shards."""
    if data.shards is None or data.tiling is None:
        return None if data.shards is None else data.shards.bounds
    return np.searchsorted(data.tiling.images, data.shards.bounds).astype(np.int64)


def training_samples(config: DataConfig, train: Dataset) -> SampleIds:
    """(n,) indices of the images that take part in training, in the order of the data set."""
    if config.keep_empty:
        return SampleIds(len(train), np.empty(0, np.int64))
    counts = usable_boxes(train, with_crowd=config.crowd == "include")
    return SampleIds(len(train), np.flatnonzero(counts == 0).astype(np.int64, copy=False))


def usable_boxes(dataset: Dataset, *, with_crowd: bool) -> NDArray[np.int32]:
    """(n,) int32: how many boxes of each image training can learn from."""
    counts = np.empty(len(dataset), np.int32)
    # Some at a time: what is computed on the way takes several times the room of the boxes.
    for first in range(0, len(dataset), _PIECE_IMAGES):
        rows = slice(first, min(first + _PIECE_IMAGES, len(dataset)))
        boxes = slice(int(dataset.offsets[rows.start]), int(dataset.offsets[rows.stop]))
        per_image = np.diff(dataset.offsets[rows.start : rows.stop + 1])
        sizes = np.stack([dataset.widths[rows], dataset.heights[rows]], axis=1)
        sizes = sizes.repeat(per_image, axis=0)
        xywh = dataset.boxes_xywh[boxes]
        low = np.clip(xywh[:, :2], 0, sizes)
        high = np.clip(xywh[:, :2] + xywh[:, 2:], 0, sizes)
        usable = (high > low).all(axis=1) & (with_crowd | ~dataset.crowd[boxes])
        image = np.arange(len(per_image)).repeat(per_image)
        counts[rows] = np.bincount(image[usable], minlength=len(per_image))
    return counts


class _BatchBuilder:
    """Fills the arrays of one batch, image by image."""

    def __init__(self, dataset: Dataset, step: int, memory: Batch) -> None:
        """Begin with padding; the images of ``memory`` are left as they are until the end."""
        self.replaced: list[_Replaced] = []
        self._dataset = dataset
        self._step = step
        self._batch = memory
        for zeros in (memory.boxes, memory.labels, memory.valid):
            zeros.fill(0)
        for nothing in (memory.sample_ids, memory.image_ids):
            nothing.fill(-1)
        memory.sizes.fill(1)
        memory.transforms[:] = 1.0, 1.0, 0.0, 0.0

    def room(self, position: int) -> NDArray[np.uint8]:
        """(H, W, 3) memory of one image."""
        room: NDArray[np.uint8] = self._batch.images[position]
        return room

    def put(self, position: int, sample: int, made: Sample) -> None:
        """Place a prepared image, unless it was made in its room, and its boxes."""
        batch, data = self._batch, self._dataset
        kept = _largest(made.boxes, batch.boxes.shape[1])
        boxes = made.boxes[kept]
        if not np.may_share_memory(made.image, batch.images[position]):
            batch.images[position] = made.image
        batch.boxes[position, : len(boxes)] = boxes
        batch.labels[position, : len(boxes)] = made.labels[kept]
        batch.valid[position, : len(boxes)] = True
        batch.sample_ids[position] = sample
        batch.image_ids[position] = data.image_ids[sample]
        batch.sizes[position] = data.heights[sample], data.widths[sample]
        batch.transforms[position] = made.transform

    def finish(self) -> Batch:
        """The batch; positions that nothing was placed at are padding."""
        self._batch.images[self._batch.sample_ids < 0] = 0
        return replace(self._batch, step=self._step, replaced=tuple(self.replaced))


def _largest(boxes: NDArray[np.float32], slots: int) -> slice | NDArray[np.int64]:
    """Rows of the ``slots`` largest boxes, in their order."""
    if len(boxes) <= slots:
        return slice(None)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sort(np.argsort(-areas, kind="stable")[:slots])
