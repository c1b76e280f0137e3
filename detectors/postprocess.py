"""From candidates to detections: threshold, non-maximum suppression and caps.

Every detector goes through :func:`detections_of`; what differs between published recipes is only
the :class:`~detectors.config.PostprocessConfig`. Suppression is in pixels of the original image,
because the recipes suppress there: with the ``plus_one`` convention the scale changes the result.

On a CPU every candidate above the threshold is suppressed. From other devices a shortlist of the
best :data:`SHORTLIST` of an image comes to the host instead of all of them. Scores only fall in
suppression, so a candidate outside the list can neither be among the detections nor remove any that
score better than it does. Where that does not settle every detection of an image, a longer list of
it follows: the detections are those of all candidates, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import native
from detectors.boxes import map_to_original
from detectors.config import PostprocessConfig
from detectors.structures import Candidates, ImageDetections
from native.rules import LARGEST_COORDINATE

#: Names of the suppression modes in the kernels.
_METHODS: dict[str, native.Method] = {
    "hard": "hard",
    "soft_linear": "linear",
    "soft_gaussian": "gaussian",
}

#: Candidates of an image and view that come to the host from a device: 24 bytes each.
SHORTLIST = 4000

#: How much longer the next list is, where one does not settle an image.
_LONGER = 8


class Frames(NamedTuple):
    """How the network's pixels lie in the original images.

    Attributes:
        transforms: (N, 4) float64 ``sx, sy, tx, ty`` with network x = sx * original x + tx; sx is
            negative in a mirrored view.
        sizes: (N, 2) original height and width.
    """

    transforms: Tensor
    sizes: Tensor

    def to_original(self, boxes: Tensor, images: Tensor) -> Tensor:
        """(R, 4) boxes of the images (R,) in pixels of those, cut to them."""
        rows = boxes.unsqueeze(1)
        mapped = map_to_original(rows, self.transforms[images], self.sizes[images]).squeeze(1)
        # In a mirrored view left and right change places.
        x = mapped[:, 0::2]
        return torch.stack([x.amin(1), mapped[:, 1], x.amax(1), mapped[:, 3]], dim=1)


class Arriving(Protocol):
    """Tensors on their way to the host."""

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they are there."""
        ...


#: Begins to copy tensors of a device to the host.
ToHost = Callable[[Sequence[Tensor]], Arriving]


@dataclass(frozen=True)
class _Copied:
    """Tensors that were copied, and waited for, at once."""

    tensors: tuple[Tensor, ...]

    def wait(self) -> tuple[Tensor, ...]:
        return self.tensors


def _copy_now(tensors: Sequence[Tensor]) -> _Copied:
    return _Copied(tuple(tensor.cpu() for tensor in tensors))


class _Hits(NamedTuple):
    """Candidates above the threshold on the host: by image, then by view, prior and class.

    Attributes:
        images: (R,) int64.
        labels: (R,) int64.
        boxes: (R, 4) float32, original pixels.
        scores: (R,) float32.
        bounds: (N,) float32, above which every candidate of an image is here; -1 where all are.
        counts: (N, K) int64, candidates above the threshold, here or not.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    bounds: NDArray[np.float32]
    counts: NDArray[np.int64]


class View:
    """Candidates of one view of a batch of images, of which some are asked to the host.

    Making one gives a device its work and begins the copy; nothing is waited for.

    Args:
        candidates: boxes (N, A, 4) or (N, A, K, 4) and scores (N, A, K), on any device.
        config: the recipe.
        frames: where the boxes lie in the original images; None where they are in their pixels.
        to_host: begins copies; None copies at once.
        shortlist: candidates of an image that come to the host; None for all on a CPU and
            :data:`SHORTLIST` elsewhere.

    Attributes:
        images: N.
    """

    def __init__(
        self,
        candidates: Candidates,
        config: PostprocessConfig,
        *,
        frames: Frames | None = None,
        to_host: ToHost | None = None,
        shortlist: int | None = None,
    ) -> None:
        self._candidates = candidates
        self._config = config
        self._frames = frames
        if shortlist is None and candidates.scores.device.type != "cpu":
            shortlist = SHORTLIST
        self._limit = shortlist
        self.images, priors, self._classes = candidates.scores.shape
        self._pairs = priors * self._classes
        self._arriving = (
            _Copied(_everything(candidates, config.score_threshold))
            if shortlist is None
            else (to_host or _copy_now)(_shortlist(candidates, config.score_threshold, shortlist))
        )

    def longer(self, images: Sequence[int]) -> View:
        """The same view of some of the images with a longer list."""
        assert self._limit is not None, "only a view with a list has a longer one"
        boxes, scores = self._candidates
        rows = torch.tensor(images, device=scores.device)
        frames = self._frames
        if frames is not None:
            frames = Frames(*(column[torch.tensor(images)] for column in frames))
        return View(
            Candidates(boxes[rows], scores[rows]),
            self._config,
            frames=frames,
            shortlist=min(self._limit * _LONGER, self._pairs),
        )

    def hits(self) -> _Hits:
        """What came to the host, waiting for it."""
        arrived = self._arriving.wait()
        if self._limit is None:
            places, boxes, scores = (tensor.numpy() for tensor in arrived)
            images, places = np.divmod(places, max(1, self._pairs))
            bounds = np.full(self.images, -1.0, np.float32)
            # Nobody asks how many there are where all are here.
            counts = np.zeros((0, self._classes), np.int64)
        else:
            images, places, boxes, scores, bounds, counts = _sorted(arrived)
        rows = torch.from_numpy(boxes)
        if self._frames is not None:
            rows = self._frames.to_original(rows, torch.from_numpy(images))
        # Those of a diverged network are none: not finite, or larger than suppression reckons with.
        sound = (rows.abs() <= LARGEST_COORDINATE).all(1).numpy() & np.isfinite(scores)
        return _Hits(
            images[sound],
            places[sound] % max(1, self._classes),
            rows.numpy()[sound],
            scores[sound],
            bounds,
            counts,
        )


def _everything(candidates: Candidates, threshold: float) -> tuple[Tensor, ...]:
    """Places in the flat scores (R,) int64, boxes (R, 4) and scores (R,) of all hits, on a CPU."""
    boxes, scores = (column.detach().float() for column in candidates)
    # NumPy finds few hits among many 2 to 6 times as fast as torch does on one thread.
    places = torch.from_numpy(np.flatnonzero(scores.numpy() > threshold))
    owners = places // scores.shape[2] if boxes.dim() == 3 else places
    return places, boxes.reshape(-1, 4)[owners], scores.reshape(-1)[places]


@torch.no_grad()
def _shortlist(candidates: Candidates, threshold: float, limit: int) -> list[Tensor]:
    """The best candidates of every image, in no order, on the device: of fixed shape.

    Returns:
        (N, C) float32 scores, -1 where an image has no more above the threshold; (N, C) int32
        places among the pairs of a prior and a class; (N, C, 4) float32 boxes; and (N, K) int32
        candidates above the threshold.
    """
    boxes, scores = candidates
    images, priors, classes = scores.shape
    flat = scores.flatten(1).float()
    above = flat > threshold
    counts = above.view(images, priors, classes).sum(1)
    best = torch.where(above, flat, -1.0).topk(min(limit, priors * classes), dim=1, sorted=False)
    owners = best.indices // classes if boxes.dim() == 3 else best.indices
    rows = boxes.reshape(images, -1, 4).gather(1, owners.unsqueeze(-1).expand(-1, -1, 4))
    return [best.values, best.indices.int(), rows.float(), counts.int()]


def _sorted(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Images, places, boxes and scores in the order of places; bounds; and counts."""
    scores, places, boxes, counts = (tensor.numpy() for tensor in tensors)
    total = counts.sum(1, dtype=np.int64)
    # Of those that share the last score on the list, others may have been left out.
    last = scores.min(1, initial=np.float32(np.inf))
    bounds = np.where(total > scores.shape[1], last, np.float32(-1.0)).astype(np.float32)
    kept = scores > bounds[:, None]
    order = np.argsort(np.where(kept, places, np.iinfo(np.int32).max), axis=1, kind="stable")
    images, columns = np.nonzero(np.take_along_axis(kept, order, axis=1))
    at = (images, order[images, columns])
    return (
        images.astype(np.int64),
        places[at].astype(np.int64),
        boxes[at],
        scores[at],
        bounds,
        counts.astype(np.int64),
    )


def detections_of(views: Sequence[View], config: PostprocessConfig) -> list[ImageDetections]:
    """Detections of every image of a batch, from all its views together.

    Args:
        views: at least one; all of the same images. A score or box that is not finite, as a
            diverged network gives them, is no detection.
        config: the recipe.

    Returns:
        N items.
    """
    hits = _joined([view.hits() for view in views])
    images = views[0].images
    found = _suppress(hits, images, config)
    unsettled = [
        image
        for image in np.flatnonzero(hits.bounds >= 0).tolist()
        if not _settled(found[image], hits, image, config)
    ]
    if unsettled:
        again = detections_of([view.longer(unsettled) for view in views], config)
        for image, better in zip(unsettled, again, strict=True):
            found[image] = better
    return found


def postprocess(candidates: Candidates, config: PostprocessConfig) -> list[ImageDetections]:
    """Detections of every image of a batch of candidates in original pixels.

    Args:
        candidates: boxes (N, A, 4) or (N, A, K, 4) and scores (N, A, K).
        config: the recipe.
    """
    return detections_of([View(candidates, config)], config)


def _joined(parts: Sequence[_Hits]) -> _Hits:
    """Hits of several views, by image and then by view."""
    if len(parts) == 1:
        return parts[0]
    bounds = np.max([part.bounds for part in parts], axis=0)
    images = np.concatenate([part.images for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    # What one view left out, another may have: below all bounds nothing is missing.
    kept = scores > bounds[images]
    order = np.flatnonzero(kept)[np.argsort(images[kept], kind="stable")]
    return _Hits(
        images[order],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.boxes for part in parts])[order],
        scores[order],
        bounds,
        sum((part.counts for part in parts[1:]), parts[0].counts),
    )


def _suppress(hits: _Hits, images: int, config: PostprocessConfig) -> list[ImageDetections]:
    counts = np.bincount(hits.images, minlength=images)
    kept, decayed, offsets = native.soft_nms_batch(
        hits.boxes,
        hits.scores,
        np.zeros_like(hits.labels) if config.class_agnostic else hits.labels,
        np.concatenate([[0], counts.cumsum()]).astype(np.int64),
        method=_METHODS[config.nms],
        iou_threshold=config.iou_threshold,
        sigma=config.sigma,
        score_threshold=0.0 if config.nms == "hard" else config.soft_score_threshold,
        plus_one=config.plus_one,
        top_k_per_class=config.top_k_per_class,
        max_per_class=config.max_per_class,
        max_total=config.max_per_image,
    )
    sizes = np.diff(offsets).tolist()
    parts = zip(
        torch.split(torch.from_numpy(hits.boxes[kept]), sizes),
        torch.split(torch.from_numpy(decayed), sizes),
        torch.split(torch.from_numpy(hits.labels[kept]), sizes),
        strict=True,
    )
    return [ImageDetections(*part) for part in parts]


def _settled(found: ImageDetections, hits: _Hits, image: int, config: PostprocessConfig) -> bool:
    """Whether candidates that are not here could change nothing about an image's detections."""
    bound = float(hits.bounds[image])
    if config.nms != "hard" and bound < np.float32(config.soft_score_threshold):
        return True
    scores, labels = found.scores.numpy(), found.labels.numpy()
    limit = config.max_per_image
    if limit is not None and len(scores) >= limit and scores.min() > bound:
        return True
    here = np.bincount(hits.labels[hits.images == image], minlength=hits.counts.shape[1])
    kept = np.bincount(labels, minlength=hits.counts.shape[1])
    least = np.full(hits.counts.shape[1], np.inf)
    np.minimum.at(least, labels, scores)
    wanted = hits.counts[image]
    if config.class_agnostic:
        here, kept, wanted = (column.sum(keepdims=True) for column in (here, kept, wanted))
        least = least.min(keepdims=True)
    # Of a class, all that take part are here, or as many are kept as may be and beat the rest.
    settled = here >= np.minimum(wanted, config.top_k_per_class or np.inf)
    if config.max_per_class is not None:
        settled |= (kept >= config.max_per_class) & (least > bound)
    return bool(settled.all())
