"""Which samples form which step: pure functions of the seed, the same for any number of workers.

A step is a global batch. Position ``p`` of epoch ``e`` is ``order(seed, e, n)[p]``; step ``s`` of
an epoch takes positions ``s*B .. s*B+B-1`` and rank ``r`` of ``W`` the ``r``-th contiguous share of
them, so the sample ids of a step do not depend on ``W`` and a run can begin at any step. Where
images are not visited once each, the order is one of visits instead.

Samples in shards can be ordered by :func:`windowed_order` instead: shards one after the other, and
mixed within a window that moves along. Where images of two shapes have canvases of their own,
:func:`batched_by_canvas` cuts the order into batches of one canvas each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, uniforms, words
from orchestrator.data.stream.permutation import mixed_within, permuted
from orchestrator.data.stream.sampling import SampleIds, visits_of
from orchestrator.errors import ConfigError, DataError

#: Visits of an epoch that are few for any number of images: 128 MiB of places.
_MOST_VISITS = 1 << 24


def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The permutation of ``0..n-1`` in which an epoch visits its samples.

    Positions are sorted by one random word each, ties by position.

    Returns:
        (n,) int64.
    """
    keys = words(seed, Domain.ORDER, epoch=epoch, count=n)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def windowed_order(
    seed: int, epoch: int, shard: NDArray[np.int64], window: int
) -> NDArray[np.int64]:
    """A permutation that reads shards one after the other and mixes within a moving window.

    Shards are laid out in an order of the epoch's own, each as it is stored. In this sequence place
    ``q`` gets the sort key ``q + window * u``, with one uniform ``u`` a sample. So a sample moves
    by less than ``window`` places, and whoever has read ``window`` places ahead holds all that is
    needed. Other than in a shuffle of block after block there are no borders that no sample
    crosses, and no step that needs a whole window at once. A window that holds all samples mixes
    them as :func:`order` does.

    Args:
        seed: of the experiment.
        epoch: of the training run.
        shard: (n,) shard of each sample, never decreasing.
        window: places, at least 1; with 1 nothing is mixed but shards.

    Returns:
        (n,) int64.
    """
    n = len(shard)
    if window >= n:
        return order(seed, epoch, n)
    first, sizes = np.unique(shard, return_index=True, return_counts=True)[1:]
    sequence = np.argsort(words(seed, Domain.SHARDS, epoch=epoch, count=len(first)), kind="stable")
    starts = np.empty(len(first), dtype=np.int64)
    starts[sequence] = np.cumsum(sizes[sequence]) - sizes[sequence]
    places = np.arange(n) + np.repeat(starts - first, sizes)
    keys = places + window * uniforms(seed, Domain.ORDER, epoch=epoch, count=n)
    return np.lexsort((places, keys)).astype(np.int64, copy=False)


def batched_by_canvas(canvases: NDArray[np.int8], batch: int, steps: int) -> NDArray[np.int64]:
    """Places of an epoch's order, cut into batches whose images come on one canvas.

    Places are collected by canvas as they come, and a batch is complete with its last one, as in
    Detectron2's grouping by aspect ratio, so the mixing of the order is kept. What an epoch leaves
    out, since it fills no batch, are the last places of the more frequent canvas. So no image of
    the other one is left out, however few they are, and one batch at most is of both.

    Args:
        canvases: (m,) of each place, 0 or 1.
        batch: B, images of a step.
        steps: of the epoch, with B times as many places as there are or fewer.

    Returns:
        (steps * B,) distinct places, batch after batch.
    """
    frequent = int(np.bincount(canvases, minlength=2).argmax())
    kept = np.ones(len(canvases), np.bool_)
    rarest_last = np.lexsort((-np.arange(len(canvases)), canvases != frequent))
    kept[rarest_last[: len(canvases) - steps * batch]] = False
    whole, rest = [], []
    for canvas in (0, 1):
        places = np.flatnonzero(kept & (canvases == canvas))
        full = len(places) // batch * batch
        whole.append(places[:full].reshape(-1, batch))
        rest.append(places[full:])
    batches = np.concatenate([*whole, np.sort(np.concatenate(rest)).reshape(-1, batch)])
    return batches[np.argsort(batches[:, -1])].reshape(-1)


@lru_cache(maxsize=2)
def _cached_places(
    schedule: Schedule, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """The places of an epoch, kept for its next step (10 ms for COCO's 118,000)."""
    permutation, visits = schedule.places(epoch)
    permutation.flags.writeable = False
    return permutation, visits


@lru_cache(maxsize=4)
def _laid_out_shards(schedule: Schedule, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shards in the order of an epoch: (s,) first position of each, and (s,) first place."""
    bounds, ids = schedule.bounds, schedule.sample_ids
    assert bounds is not None, "there is a window"
    if isinstance(ids, SampleIds):
        starts = ids.before(bounds)
    else:
        starts = np.searchsorted(ids, bounds).astype(np.int64, copy=False)
    keys = words(schedule.seed, Domain.SHARDS, epoch=epoch, count=len(bounds) - 1)
    sequence = np.argsort(keys, kind="stable")
    sizes = np.diff(starts)[sequence]
    return starts[:-1][sequence], np.cumsum(sizes) - sizes


@dataclass(frozen=True, eq=False)
class Schedule:
    """The training samples of every step of a run.

    The remainder of an epoch that does not fill a batch is dropped; since every epoch has its own
    order, it is another remainder each time.

    Attributes:
        seed: of the experiment.
        sample_ids: (n,) int64 indices into the data set that take part in training, distinct; or
            what stands for them.
        batch_size: B, images of one step over all workers.
        epochs: how often the samples are visited.
        factors: (n,) float64 mean visits of each sample in an epoch; None for one visit each. See
            :mod:`orchestrator.data.stream.sampling`.
        computed: the order is computed place by place, so that no process holds it; another order
            than otherwise. Not with factors.
        window: samples that are mixed with each other; None for all.
        lanes: parts of a batch, each of which goes through a part of the shards of its own; with
            ``computed`` and a window.
        bounds: (s + 1,) int64 first data-set index of each shard, and of what follows the last;
            None without shards.
        canvases: (n,) int8 canvas, 0 or 1, that each sample belongs on; None where all are on one.

    Raises:
        ConfigError: a seed that does not fit 64 bits.
        DataError: fewer samples than one batch needs.
    """

    seed: int
    sample_ids: NDArray[np.int64] | SampleIds
    batch_size: int
    epochs: int
    window: int | None = None
    bounds: NDArray[np.int64] | None = None
    factors: NDArray[np.float64] | None = None
    computed: bool = False
    lanes: int = 1
    canvases: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}, allowed is 0..2**64-1")
        n = len(self.sample_ids)
        if n < self.batch_size:
            raise DataError(
                f"training set: {n} usable image{'' if n == 1 else 's'}, but one step takes "
                f"train.batch_size = {self.batch_size}; set train.batch_size to at most {n}"
                if n
                else "training set: no image has a box to learn from; "
                "check data.train, or set data.keep_empty to train on empty images"
            )
        if self.computed and self.canvases is not None:
            raise ConfigError(
                "data.order: computed knows no place before it is asked for, so it cannot collect "
                "images by canvas. Next: leave data.order or detector.train_canvas out"
            )
        if self.visits_per_epoch > max(_MOST_VISITS, 100 * n):
            raise DataError(
                f"training set: {self.visits_per_epoch} visits in an epoch of {n} images, which "
                "takes 8 bytes each and more in every process; lower data.weight and the weights "
                "of data.sources: what counts is how large one is against the other"
            )
        if not self.steps_per_epoch:
            raise DataError(
                f"training set: {self.visits_per_epoch} images are visited in an epoch, but one "
                f"step takes train.batch_size = {self.batch_size}; raise data.weight or the "
                "weights of data.sources"
            )

    @cached_property
    def visits_per_epoch(self) -> int:
        """Samples of an epoch: all of them once, or the whole part of the sum of the factors."""
        # Kept, since every step asks for it several times, and a sum of millions takes long.
        if self.factors is None:
            return len(self.sample_ids)
        # Rounded first: ten weights of 0.1 are one visit.
        return math.floor(round(math.fsum(self.factors), 6))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one epoch."""
        return self.visits_per_epoch // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def epoch_of(self, step: int) -> int:
        """The epoch that ``step`` belongs to.

        Raises:
            ValueError: the run has no such step.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} is outside 0..{self.total_steps - 1}")
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(n,) int64: the position among ``sample_ids`` that each place of an epoch takes."""
        return self.places(epoch)[0]

    def places(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """What each place of an epoch takes.

        With factors an epoch may draw fewer visits than its steps take. The order then begins
        anew, with further visits of the samples it began with. With two canvases places that fill
        no batch are left out.

        Returns:
            (n,) int64 positions among ``sample_ids``, and (n,) int64 which visit of the sample in
            this epoch that is, from 0; None where there are no others.
        """
        positions, visits = self._visited(epoch)
        if self.canvases is None:
            return positions, visits
        chosen = batched_by_canvas(self.canvases[positions], self.batch_size, self.steps_per_epoch)
        return positions[chosen], None if visits is None else visits[chosen]

    def _visited(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """As :meth:`places`, whatever canvas the samples belong on."""
        if self.factors is None:
            return self._mixed(epoch, None), None
        counts = visits_of(self.seed, epoch, self.factors)
        if not counts.any():
            counts[:] = 1
        positions = np.repeat(np.arange(len(counts)), counts)
        visits = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
        mixed = self._mixed(epoch, positions)
        places = np.arange(max(len(mixed), self.steps_per_epoch * self.batch_size))
        within = places % len(mixed)
        taken = positions[mixed][within].astype(np.int64, copy=False)
        again = places // len(mixed) * counts[taken]
        return taken, (visits[mixed][within] + again).astype(np.int64, copy=False)

    def _mixed(self, epoch: int, positions: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The order of ``positions`` among ``sample_ids``, never decreasing; None for all."""
        n = len(self.sample_ids) if positions is None else len(positions)
        if self.computed:
            return self._computed(epoch, np.arange(n))
        if self.window is None or self.bounds is None:
            return order(self.seed, epoch, n)
        samples = np.asarray(self.sample_ids)
        samples = samples if positions is None else samples[positions]
        shard = np.searchsorted(self.bounds, samples, side="right")
        return windowed_order(self.seed, epoch, shard, self.window)

    def _computed(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions among ``sample_ids`` that some places of an epoch take."""
        n = len(self.sample_ids)
        if self.window is None or self.bounds is None or self.window >= n:
            return permuted(self.seed, epoch, n, places)
        first, laid_out = _laid_out_shards(self, epoch)
        # Place c of step s is of the lane c // width, which has all its steps in a row.
        steps, width = self.steps_per_epoch, self.batch_size // self.lanes
        step, slot = np.divmod(places, self.batch_size)
        lane, within = np.divmod(slot, width)
        in_lanes = lane * (steps * width) + step * width + within
        places = np.where(places < steps * self.batch_size, in_lanes, places)
        window = max(1, self.window // self.lanes)
        mixed = mixed_within(self.seed, epoch, n, window, places)
        shard = np.searchsorted(laid_out, mixed, side="right") - 1
        return first[shard] + mixed - laid_out[shard]

    def samples(self, step: int) -> NDArray[np.int64]:
        """(B,) int64 data-set indices of the images of ``step``."""
        return self._samples(step, slice(0, self.batch_size))

    def _samples(self, step: int, share: slice) -> NDArray[np.int64]:
        """Of a part of them; no more than that is computed."""
        first = self._first_place(step)
        if self.computed:
            places = np.arange(first + share.start, first + share.stop)
            return self.sample_ids[self._computed(self.epoch_of(step), places)]
        return self.sample_ids[self._order(step)[first + share.start : first + share.stop]]

    def canvas(self, step: int) -> int:
        """The canvas of the images of ``step``: the one that most of them belong on."""
        if self.canvases is None:
            return 0
        first = self._first_place(step)
        of_images = self.canvases[self._order(step)[first : first + self.batch_size]]
        return int(np.bincount(of_images, minlength=2).argmax())

    def visits(self, step: int) -> NDArray[np.int64]:
        """(B,) int64: which visit of its sample in the epoch each image of ``step`` is, from 0."""
        if self.factors is None:
            return np.zeros(self.batch_size, np.int64)
        visits = _cached_places(self, self.epoch_of(step))[1]
        assert visits is not None, "there are factors"
        first = self._first_place(step)
        return visits[first : first + self.batch_size]

    def partners(self, step: int) -> NDArray[np.int64] | SampleIds:
        """(w,) int64 data-set indices from which the samples of ``step`` may be made up.

        All there are, or with a window those of the places around the step, so that they lie in
        shards that are being read anyway.
        """
        if self.window is None or self.bounds is None:
            return self.sample_ids
        n = len(self.sample_ids) if self.computed else len(self._order(step))
        if self.window >= n:
            return self.sample_ids
        middle = self._first_place(step) + self.batch_size // 2
        first = min(max(middle - self.window // 2, 0), n - self.window)
        if self.computed:
            places = np.arange(first, first + self.window)
            return self.sample_ids[self._computed(self.epoch_of(step), places)]
        return self.sample_ids[self._order(step)[first : first + self.window]]

    @property
    def shards_in_reach(self) -> int | None:
        """Shards that steps close to each other may need; None for all.

        The samples of a place lie less than a window before or behind it, partners half a window
        further, and the next steps are prepared meanwhile. With two canvases a batch of the rarer
        one is collected from further away.
        """
        if self.window is None or self.bounds is None:
            return None
        shards = len(self.bounds) - 1
        visited = min(len(self.sample_ids), self.visits_per_epoch)
        reach = 3 * self.window
        if self.canvases is not None:
            rarer = np.bincount(self.canvases, minlength=2).min()
            reach += self.batch_size * len(self.canvases) // max(int(rarer), 1)
        near = math.ceil(reach * shards / visited)
        return min(near + 8 * self.lanes, shards)

    def _order(self, step: int) -> NDArray[np.int64]:
        return _cached_places(self, self.epoch_of(step))[0]

    def _first_place(self, step: int) -> int:
        return step % self.steps_per_epoch * self.batch_size

    def rank_samples(self, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """(B / world,) int64: the contiguous share of ``samples(step)`` that is ``rank``'s.

        Raises:
            ConfigError: the batch does not divide among the workers.
        """
        return self._samples(step, self._share(rank, world))

    def rank_visits(self, step: int, rank: int, world: int) -> NDArray[np.int64]:
        """(B / world,) int64: the share of ``visits(step)`` that goes with ``rank_samples``."""
        return self.visits(step)[self._share(rank, world)]

    def _share(self, rank: int, world: int) -> slice:
        share = self.rank_batch(world)
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is outside 0..{world - 1}")
        return slice(rank * share, (rank + 1) * share)

    def rank_batch(self, world: int) -> int:
        """Images of one step on each of ``world`` ranks.

        Raises:
            ConfigError: the batch does not divide among the workers.
        """
        if self.batch_size % world:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} does not divide among "
                f"cluster.workers = {world}; choose a multiple of {world}"
            )
        return self.batch_size // world


def eval_slots(n: int, rank: int, world: int, batch: int) -> NDArray[np.int64]:
    """Which validation images a rank evaluates, cut into batches of one fixed shape.

    Images are dealt to the ranks in turn. All ranks get the same number of batches, so that they
    may meet after each; what is left over is padding.

    Args:
        n: images in the validation set.
        rank, world: the asking rank and the number of ranks.
        batch: images per batch and rank.

    Returns:
        (b, batch) int64 image indices, -1 where padded; over all ranks every index occurs once.
    """
    mine = np.arange(rank, n, world, dtype=np.int64)
    most = -(-n // world)
    slots = np.full((-(-most // batch), batch), -1, dtype=np.int64)
    slots.flat[: len(mine)] = mine
    return slots
