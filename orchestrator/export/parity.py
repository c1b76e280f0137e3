"""The gate of an export: is the file the detector, from an image to its AP?

What the file says of itself has to be true of the detector, from its classes to its digests. Then
three comparisons with PyTorch. The raw outputs for the same network input show whether the graph is
the network. The detections, where each side prepares the image in its own way, show whether what
the file says about its input is true. The AP of both on the same images shows what any difference
costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.boxes import map_to_original, pairwise_iou
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.structures import Candidates, ImageDetections
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.export.artifact import RAW, ExportedDetector
from orchestrator.export.differences import Differences
from orchestrator.predict.loading import LoadedDetector, NamedDetector
from orchestrator.predict.predictor import to_detections
from orchestrator.predict.tta import prepared

#: Outputs of a graph that suppresses: image, class and row of each detection, box and score.
SELECTED: Final = ("selected", "selected_boxes", "selected_scores")

_BATCH = 4
_DETECTIONS_PER_CLASS = 100
#: The same box, for a comparison of two detectors that should be one.
_SAME_BOX = 0.99
#: Scores this close to a threshold may fall on either side of it.
_EDGE = 1e-3

_Pair: TypeAlias = tuple[ImageDetections, ImageDetections]


@dataclass(frozen=True)
class Tolerance:
    """What may differ.

    Attributes:
        raw: of network outputs and scores, absolute; of boxes, as a part of the input's size; of
            the images that enter the network, as a part of 255.
        score: of a detection.
        unmatched: part of the detections that have no partner with IoU 0.99; likewise of the rows
            that the network ranks, and of the scores, that one side alone has.
        ap: of the AP.
    """

    raw: float = 1e-3
    score: float = 1e-3
    unmatched: float = 0.01
    ap: float = 5e-4


@dataclass(frozen=True)
class Parity:
    """What does differ.

    Attributes:
        images: compared.
        raw: largest difference of each output, boxes as a part of the input's size, and of
            ``images``, what each side makes of a file's pixels, as a part of 255.
        where: image id at which that is.
        lone: part of the rows that the network ranks, and of the scores, that one side alone has;
            see :mod:`orchestrator.export.differences`.
        detections: of PyTorch, over all images.
        unmatched: detections of either side without a partner.
        score: largest difference between partners.
        ap_torch, ap_exported: COCO AP of both sides.
        failures: what the file states wrongly, and a line for each tolerance exceeded.
        note: of which images the AP is, where that has to be said.
    """

    images: int
    raw: dict[str, float]
    where: dict[str, int]
    lone: dict[str, float]
    detections: int
    unmatched: int
    score: float
    ap_torch: float
    ap_exported: float
    failures: tuple[str, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    loaded: LoadedDetector, exported: ExportedDetector, dataset: Dataset, limits: Tolerance
) -> Parity:
    """Run both on the images of a data set.

    Raises:
        DataError: other classes, or no image that can be read.
    """
    loaded.label_map.require_equal(
        dataset.label_map, here=str(loaded.source), there="the annotations"
    )
    stated = tuple(_stated_wrongly(loaded, exported, dataset))
    unusable = tuple(_unusable(loaded, exported))
    if unusable:
        return Parity(0, {}, {}, {}, 0, 0, 0.0, -1.0, -1.0, (*unusable, *stated))
    config = loaded.resolved.experiment.detector.postprocess
    recipes = (config, PostprocessConfig.model_validate(exported.metadata.postprocess))
    model = loaded.model
    known = Differences(max(model.input_size), limits.raw, model.ranked)
    sides: tuple[list[Detections], list[Detections]] = ([], [])
    unmatched = total = images = 0
    score = 0.0
    with torch.no_grad():
        for ids, pixels in _batches(dataset):
            images += len(ids)
            inputs = [_of_torch(loaded, pixels), _of_file(exported, pixels)]
            shades = [torch.from_numpy(side.images) / 255 for side in inputs]
            known.note("images", ids, *shades)
            ours, selected = _compare_raw(loaded, exported, ids, inputs[0].images, known)
            theirs = exported(inputs[1].images)
            found = [
                _detect(candidates, side, pixels, recipe)
                for candidates, side, recipe in zip((ours, theirs), inputs, recipes, strict=True)
            ]
            for side, detections in zip(sides, found, strict=True):
                side.append(to_detections(ids, detections))
            for left, right in [*zip(*found, strict=True), *selected]:
                apart, difference = _partners(left, right, config.score_threshold)
                total += len(left.scores)
                unmatched += apart
                score = max(score, difference)
    if not images:
        raise DataError("none of the images to compare on can be read; check data.root")
    ap = [evaluate(dataset, Detections.merge(side)).numbers["AP"] for side in sides]
    lone = {name: share.value for name, share in known.lone.items()}
    parity = Parity(
        images, known.largest, known.where, lone, total, unmatched, score, ap[0], ap[1], ()
    )
    failures = (*stated, *_failures(parity, limits))
    return replace(parity, failures=failures, note=ap_note(loaded))


def stated_tiles(loaded: NamedDetector) -> dict[str, Any] | None:
    """The tiles that a detector was trained on, as metadata have them; None for whole images."""
    tiles = loaded.tiles
    return None if tiles is None else {"size": list(tiles.size), "overlap": tiles.overlap}


def ap_note(loaded: NamedDetector) -> str:
    """Of which images the AP is, where the detector was trained on others than the file takes."""
    tiles = loaded.tiles
    if tiles is None:
        return ""
    return (
        f"AP is of whole images, which the file takes; the detector was trained on tiles of "
        f"{tiles.size[0]} x {tiles.size[1]} pixels (height x width) with an overlap of "
        f"{tiles.overlap}, and `orchestrator evaluate` gives its AP in these"
    )


def _stated_wrongly(
    loaded: LoadedDetector, exported: ExportedDetector, dataset: Dataset
) -> Iterator[str]:
    """A line for everything that the file states of itself and that no image would show."""
    try:
        loaded.label_map.require_equal(
            exported.label_map, here=str(loaded.source), there="the file"
        )
    except DataError as error:
        yield str(error)
    stated, experiment, model = exported.metadata, loaded.resolved.experiment, loaded.model
    recipe = PostprocessConfig.model_validate(stated.postprocess)
    for what, found, true in (
        ("detector", stated.detector, experiment.detector.title),
        ("mean", stated.mean, tuple(model.pixel_mean.flatten().tolist())),
        ("std", stated.std, tuple(model.pixel_std.flatten().tolist())),
        *(
            (f"postprocess.{name}", value, getattr(experiment.detector.postprocess, name))
            for name, value in recipe
        ),
        ("weights_sha256", stated.weights_sha256, loaded.weights_sha256),
        ("config_digest", stated.config_digest, loaded.resolved.digest),
        ("data_digest", stated.data_digest, dataset.digest),
        ("opset", stated.opset, exported.opset),
        ("orientation", stated.orientation, experiment.data.orientation),
        ("levels", stated.levels, experiment.data.levels),
        ("tiles", stated.tiles, stated_tiles(loaded)),
        ("note", stated.note, ap_note(loaded)),
    ):
        if found != true:
            yield f"the file states {what} {found!r}, it is {true!r}"


def _unusable(loaded: LoadedDetector, exported: ExportedDetector) -> Iterator[str]:
    """A line for what the file states of its input and outputs so that it cannot be run."""
    stated, size = exported.metadata.input_size, loaded.model.input_size
    if stated != size:
        yield (
            f"the file states an input of {stated[0]}x{stated[1]}, the detector takes "
            f"{size[0]}x{size[1]}"
        )
    with torch.no_grad():
        raw = loaded.model(torch.zeros((1, 3, *size), dtype=torch.uint8))
    names = ["boxes", "scores", *(RAW + name for name in sorted(raw))]
    found = list(exported.metadata.outputs)
    if found not in (names, [*names, *SELECTED]):
        yield f"the file states outputs {', '.join(found)}, the detector has {', '.join(names)}"


def _failures(parity: Parity, limits: Tolerance) -> Iterator[str]:
    for name, value in parity.raw.items():
        if not value <= limits.raw:
            what = "the prepared image" if name == "images" else f"output {name}"
            place = f"in image {parity.where[name]}"
            yield f"{what} differs by {value:.3g} {place}, allowed is {limits.raw:g}"
    for name, part in parity.lone.items():
        if part > limits.unmatched:
            yield (
                f"{part:.2%} of output {name} is on one side only, allowed are "
                f"{limits.unmatched:.2%}"
            )
    allowed = limits.unmatched * max(parity.detections, 1)
    if parity.unmatched > allowed:
        yield (
            f"{parity.unmatched} of {parity.detections} detections have no partner, allowed are "
            f"{allowed:.1f}"
        )
    if not parity.score <= limits.score:
        yield f"scores of detections differ by {parity.score:.3g}, allowed is {limits.score:g}"
    if not abs(parity.ap_torch - parity.ap_exported) <= limits.ap:
        yield (
            f"AP is {parity.ap_exported:.5f} instead of {parity.ap_torch:.5f} on {parity.images} "
            f"images, allowed is a difference of {limits.ap:g}"
        )


def _batches(dataset: Dataset) -> Iterator[tuple[list[int], list[NDArray[np.uint8]]]]:
    """Ids and pixels of the images that can be read."""
    for start in range(0, len(dataset), _BATCH):
        ids, pixels = [], []
        for position in range(start, min(start + _BATCH, len(dataset))):
            try:
                pixels.append(image_pixels(dataset, position, declared=False))
            except BadImageError:
                continue
            ids.append(int(dataset.image_ids[position]))
        if ids:
            yield ids, pixels


class _Input(NamedTuple):
    """A batch at the network's size, (N, H, W, 3), and (N, 4) how it came there."""

    images: NDArray[np.uint8]
    transforms: torch.Tensor


def _of_torch(loaded: LoadedDetector, pixels: list[NDArray[np.uint8]]) -> _Input:
    samples = [prepared(image, loaded.prepare) for image in pixels]
    transforms = torch.tensor([sample.transform for sample in samples], dtype=torch.float64)
    return _Input(np.stack([sample.image for sample in samples]), transforms)


def _of_file(exported: ExportedDetector, pixels: list[NDArray[np.uint8]]) -> _Input:
    images, transforms = zip(*(exported.prepare(image) for image in pixels), strict=True)
    return _Input(np.stack(images), torch.tensor(transforms, dtype=torch.float64))


def _compare_raw(
    loaded: LoadedDetector,
    exported: ExportedDetector,
    ids: list[int],
    images: NDArray[np.uint8],
    known: Differences,
) -> tuple[Candidates, list[_Pair]]:
    """PyTorch's candidates; adds to ``known`` how far the file is from them for the same input.

    That input is what PyTorch gets. Where the file suppresses, the second are detections of both
    sides in network pixels.
    """
    raw = loaded.model(torch.from_numpy(images).permute(0, 3, 1, 2))
    ours = loaded.model.decode(raw)
    expected = {"boxes": ours.boxes, "scores": ours.scores}
    theirs = exported.outputs(images)
    known.add(ids, expected | {RAW + name: value for name, value in raw.items()}, theirs)
    if "selected" not in theirs:
        return ours, []
    config = loaded.resolved.experiment.detector.postprocess
    found = postprocess(ours, graph_suppression(config))
    return ours, list(zip(found, _selected(theirs, len(images)), strict=True))


def graph_suppression(config: PostprocessConfig) -> PostprocessConfig:
    """The part of a recipe that ONNX's NonMaxSuppression does: it knows one limit, per class."""
    per_class = config.max_per_class or config.max_per_image or _DETECTIONS_PER_CLASS
    limits = {"max_per_class": per_class, "max_per_image": None, "top_k_per_class": None}
    return config.model_copy(update=limits)


def _selected(outputs: dict[str, NDArray[Any]], images: int) -> list[ImageDetections]:
    """What the graph suppressed, image by image and best first."""
    where = torch.from_numpy(outputs["selected"])
    boxes = torch.from_numpy(outputs["selected_boxes"])
    scores = torch.from_numpy(outputs["selected_scores"])
    found = []
    for image in range(images):
        rows = (where[:, 0] == image).nonzero().squeeze(1)
        rows = rows[scores[rows].argsort(descending=True, stable=True)]
        found.append(ImageDetections(boxes[rows], scores[rows], where[rows, 1]))
    return found


def _detect(
    candidates: Candidates,
    side: _Input,
    pixels: list[NDArray[np.uint8]],
    config: PostprocessConfig,
) -> list[ImageDetections]:
    sizes = torch.tensor([image.shape[:2] for image in pixels])
    boxes = map_to_original(candidates.boxes, side.transforms, sizes)
    return postprocess(Candidates(boxes, candidates.scores), config)


def _partners(left: ImageDetections, right: ImageDetections, threshold: float) -> tuple[int, float]:
    """Detections without a partner on the other side, and the largest difference of scores.

    Detections at the edge of the threshold, or of the last rank, are not missed.
    """
    apart, score = 0, 0.0
    for one, other in ((left, right), (right, left)):
        if not len(one.scores):
            continue
        least = threshold if not len(other.scores) else max(threshold, float(other.scores.min()))
        clear = one.scores > least + _EDGE
        same = one.labels[:, None] == other.labels[None]
        iou = pairwise_iou(one.boxes, other.boxes) * same
        # A box without area overlaps nothing, not even itself.
        equal = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=2) < _EDGE
        close = (iou >= _SAME_BOX) | (equal & same)
        gap = torch.where(close, (one.scores[:, None] - other.scores[None]).abs(), torch.inf)
        best = gap.amin(dim=1) if gap.shape[1] else torch.full((len(gap),), torch.inf)
        paired = best.isfinite()
        apart += int((clear & ~paired).sum())
        if paired.any():
            score = max(score, float(best[paired].max()))
    return apart, score
