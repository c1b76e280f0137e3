"""The examination of a data set: everything that can be said before a run, said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.boxes import PRIOR_IOU, View, describe, prior_recall
from orchestrator.data.doctor.diagnosis import Report, Verdict
from orchestrator.data.doctor.image_notes import (
    WRONG_ORIENTATION,
    alike_classes,
    crowded,
    few_levels,
    tagged,
)
from orchestrator.data.doctor.images import ImageFacts, alike, equal_files, scan
from orchestrator.data.findings import Finding
from orchestrator.data.images import image_name
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.split import read_split, read_training, require_places
from orchestrator.data.stream.assemble import usable_boxes
from orchestrator.data.tiling import boxes_in_no_tile, tiled, tiles_of
from orchestrator.errors import DataError, OrchestratorError

if TYPE_CHECKING:
    from orchestrator.config.schema import Augmentation, DataConfig

#: Images of a split whose headers are read before a run; of more, this many at equal distances.
QUICK_IMAGES = 2000
#: Images of more than 8 bits that are decoded before a run, to see what is left of them.
QUICK_DEEP_IMAGES = 8
#: Below it, a detector's priors leave too many boxes of a size without a good one.
_LOW_RECALL = 0.8
#: The commonest class may have this many times the boxes of the rarest before it is said.
_IMBALANCE = 100


class PriorSource(Protocol):
    """Gives the priors of a detector once the number of classes is known."""

    def __call__(self, label_map: LabelMap) -> tuple[NDArray[np.float32] | None, tuple[int, int]]:
        """(A, 4) xyxy pixels of the input, None without any; and (H, W) of the input."""
        ...


class Watch(Protocol):
    """Is told how far the examination is."""

    def __call__(self, split: str, seen: int, total: int) -> None:
        """``seen`` of ``total`` images of ``split`` have been looked at."""
        ...


@dataclass
class Examination:
    """Result of :func:`examine`.

    Attributes:
        report: everything found.
        splits: the data sets that could be read.
    """

    report: Report = field(default_factory=Report)
    splits: dict[str, Dataset] = field(default_factory=dict)


def examine(
    config: DataConfig,
    *,
    priors: PriorSource | None = None,
    watch: Watch = lambda split, seen, total: None,
    keep: bool = False,
) -> Examination:
    """Examine the data set of an experiment; whatever is wrong with it is in the report.

    Args:
        config: its ``data`` section.
        priors: of the detector; without, nothing is said about them.
        watch: told the progress.
        keep: keep what the annotations say as manifests, which runs use instead of parsing them.
    """
    result = Examination()
    report = result.report
    try:
        require_places(config)
    except DataError as error:
        report.add_error("train, val", error)
        return result
    for name, split in (("train", config.train), ("val", config.val)):
        try:
            read = (
                read_training(config, keep=keep)
                if name == "train"
                else read_split(config, split, keep=keep)
            )
        except OrchestratorError as error:
            report.add_error(name, error)
            continue
        result.splits[name] = read.dataset
        report.add_read(name, read.findings)
        report.splits[name] = describe(read.dataset)
        if read.manifest is not None:
            report.splits[name]["manifest"] = str(read.manifest)
        elif keep and read.unkept is not None:
            report.add(Verdict.NOTE, name, Finding("no_manifest", 1, read.unkept))
    _label_maps(result)
    for name, data in result.splits.items():
        _classes(report, name, data)
    if train := result.splits.get("train"):
        _training_images(report, config, train)
        if priors is not None:
            _priors(report, config, train, priors)
    val = result.splits.get("val")
    # Crowds are neither right nor wrong.
    if val is not None and val.crowd.all():
        report.add(Verdict.REFUSE, "val", Finding("no_boxes", 1, "nothing to score against"))
    seen: dict[str, list[ImageFacts]] = {}
    for name, data in result.splits.items():
        progress = partial(_tell, watch, name, len(data))
        facts = scan(data, range(len(data)), whole=True, progress=progress)
        seen[name] = facts
        _bad_images(report, name, data, facts, config.max_bad_fraction)
        _image_notes(report, name, data, facts, kind=config.format)
    _duplicates(report, result.splits, seen)
    return result


def require_usable(
    data: Dataset, name: str, max_bad_fraction: float, *, kind: str = "coco"
) -> list[Finding]:
    """The quick part, before hardware is claimed: headers of up to 2,000 images.

    Of shards nothing is read: what could not be used when they were written is known.

    Args:
        data: the split.
        name: of it.
        max_bad_fraction: ``data.max_bad_fraction``.
        kind: format of its annotations.

    Returns:
        What should be said before it is used.

    Raises:
        DataError: more of them are bad than ``data.max_bad_fraction`` allows; of a sample, more
            than can be chance. Or images of more than 8 bits would become one grey.
    """
    n = len(data)
    found = crowded(data) if name == "val" else alike_classes(data)
    notes = [] if found is None else [found]
    if data.shards is not None:
        unsound = np.flatnonzero(~data.shards.sound)
        if len(unsound) > max_bad_fraction * n:
            places = [image_name(data, int(index)) for index in unsound]
            raise DataError(_too_many_bad(name, len(unsound), f"{n}", max_bad_fraction, places))
        return notes
    facts = quick_scan(data)
    bad = [one for one in facts if one.kind is not None]
    expected = max_bad_fraction * len(facts)
    allowed = expected if len(facts) == n else expected + 3 * sqrt(expected)
    if len(bad) > allowed:
        looked = f"{n}" if len(facts) == n else f"{len(facts)} looked at"
        places = [one.problem for one in bad]
        raise DataError(_too_many_bad(name, len(bad), looked, max_bad_fraction, places))
    turned = tagged(data, facts, kind=kind)
    deep = [one.index for one in facts if one.deep]
    few = few_levels(data, scan(data, deep[:QUICK_DEEP_IMAGES], whole=True))
    if few is not None and few[1]:
        raise DataError(f"data.{name}: {few[0]}\nchoose one of the three")
    return [*notes, *([turned] if turned else []), *([few[0]] if few else [])]


def quick_scan(data: Dataset) -> list[ImageFacts]:
    """The headers of images, of many some at equal distances."""
    n = len(data)
    indices = np.unique(np.linspace(0, n - 1, min(n, QUICK_IMAGES)).astype(np.int64)).tolist()
    return scan(data, indices, whole=False)


def _image_notes(
    report: Report, name: str, data: Dataset, facts: Sequence[ImageFacts], *, kind: str
) -> None:
    for note in (tagged(data, facts, kind=kind), crowded(data), alike_classes(data)):
        # What cannot be counted matters where it is scored.
        if note is not None and (name == "val" or note.kind != "crowded_image"):
            wrong = note.kind == WRONG_ORIENTATION
            report.add(Verdict.WARNING if wrong else Verdict.NOTE, name, note)
    few = few_levels(data, facts)
    if few is not None:
        report.add(Verdict.REFUSE if few[1] else Verdict.NOTE, name, few[0])


def _too_many_bad(name: str, count: int, looked: str, allowed: float, places: Sequence[str]) -> str:
    examples = "\n".join(f"  {place}" for place in places[:5])
    return (
        f"data.{name}: {count} of {looked} images cannot be used, allowed is the fraction "
        f"data.max_bad_fraction = {allowed}\n{examples}\n"
        "orchestrator check EXPERIMENT.yaml lists them all"
    )


def _tell(watch: Watch, name: str, total: int, seen: int) -> None:
    watch(name, seen, total)


def _label_maps(result: Examination) -> None:
    if len(result.splits) == 2:
        train, val = result.splits["train"], result.splits["val"]
        try:
            train.label_map.require_equal(val.label_map, here="data.train", there="data.val")
        except DataError as error:
            result.report.add_error("train, val", error)


def _classes(report: Report, name: str, data: Dataset) -> None:
    real = data.labels[~data.crowd]
    counts = np.bincount(real, minlength=len(data.label_map))
    names = np.array(data.label_map.names, dtype=object)
    if len(unused := names[counts == 0].tolist()):
        report.add(
            Verdict.NOTE,
            name,
            Finding.at("class_without_boxes", "kept, though no box here is of it", unused),
        )
    used = counts[counts > 0]
    if len(used) and used.max() > _IMBALANCE * used.min():
        rare, common = int(np.argmin(np.where(counts > 0, counts, counts.max()))), counts.argmax()
        examples = (f"{names[common]}: {counts[common]}", f"{names[rare]}: {counts[rare]}")
        action = f"class with less than 1/{_IMBALANCE} of the boxes of another"
        count = int((used * _IMBALANCE < used.max()).sum())
        report.add(Verdict.NOTE, name, Finding("class_imbalance", count, action, examples))


def _training_images(report: Report, config: DataConfig, train: Dataset) -> None:
    usable = usable_boxes(train, with_crowd=config.crowd == "include")
    empty = np.flatnonzero(usable == 0)
    if len(empty):
        action = "learnt from as negatives" if config.keep_empty else "not learnt from"
        places = [train.files[i] for i in empty.tolist()]
        report.add(Verdict.NOTE, "train", Finding.at("image_without_boxes", action, places))
    nothing = len(empty) == len(train)
    if config.tiles is not None and not nothing:
        nothing = _larger_than_tiles(report, config, train)
    if nothing and not config.keep_empty:
        report.add(Verdict.REFUSE, "train", Finding("no_boxes", 1, "nothing to learn from"))
    if count := int(train.crowd.sum()):
        action = "learnt from" if config.crowd == "include" else "not learnt from"
        report.add(Verdict.NOTE, "train", Finding("crowd_box", count, action))


def _larger_than_tiles(report: Report, config: DataConfig, train: Dataset) -> bool:
    """Note boxes that are learnt in no tile; whether that are all of them."""
    assert config.tiles is not None
    rows = boxes_in_no_tile(train, tiles_of(config.tiles))
    if config.crowd != "include":
        rows = rows[~train.crowd[rows]]
    if not len(rows):
        return False
    images = np.searchsorted(train.offsets, rows, side="right") - 1
    places = [
        f"{train.files[image]}: {train.boxes_xywh[row, 2]:g}x{train.boxes_xywh[row, 3]:g} pixels"
        for image, row in zip(images.tolist(), rows.tolist(), strict=True)
    ]
    height, width = config.tiles.size
    action = (
        f"not learnt, since no tile of {width}x{height} pixels shows the share "
        f"{config.tiles.inside:g} of it; larger tiles or a smaller data.tiles.inside would"
    )
    report.add(Verdict.NOTE, "train", Finding.at("box_in_no_tile", action, places))
    seen = usable_boxes(in_tiles(train, config), with_crowd=config.crowd == "include")
    return not seen.any()


def _priors(report: Report, config: DataConfig, train: Dataset, source: PriorSource) -> None:
    boxes, input_size = source(train.label_map)
    if boxes is None:
        return
    seen = in_tiles(train, config)
    recall = prior_recall(seen, boxes, view_of(config.augmentation, input_size))
    report.splits["train"]["prior_recall"] = recall
    poor = [
        f"{size}: {of['recall']:.2f} of {of['boxes']} boxes have a prior of IoU {PRIOR_IOU}"
        for size, of in recall.items()
        if size != "all" and of["recall"] < _LOW_RECALL
    ]
    if poor:
        action = "sizes of boxes with few priors; a larger input or other ones would find more"
        report.add(Verdict.NOTE, "train", Finding.at("poor_priors", action, poor))


def in_tiles(data: Dataset, config: DataConfig) -> Dataset:
    """The images that the network sees: those of a split, or their tiles."""
    return data if config.tiles is None else tiled(data, tiles_of(config.tiles))


def view_of(augmentation: Augmentation, input_size: tuple[int, int]) -> View:
    """Where evaluation, which resizes as an augmentation does, puts the pixels of an image."""
    plain = build_augment(augmentation, input_size).plain()

    def view(height: int, width: int) -> tuple[float, float, float, float]:
        image = np.zeros((height, width, 3), dtype=np.uint8)
        none, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return plain(image, none, no_labels, SampleKey(0, 0, 0)).transform

    return view


def _bad_images(
    report: Report, name: str, data: Dataset, facts: Sequence[ImageFacts], allowed: float
) -> None:
    bad = [one for one in facts if one.kind is not None]
    # Of missing ones the reader has spoken already.
    for kind in ("unreadable_image", "wrong_size_image"):
        problems = [one.problem for one in bad if one.kind == kind]
        if problems:
            action = "will be replaced by another image"
            report.add(Verdict.QUARANTINE, name, Finding.at(kind, action, problems))
    if len(bad) > allowed * len(facts):
        action = f"of {len(facts)}, allowed is the fraction data.max_bad_fraction = {allowed}"
        report.add(Verdict.REFUSE, name, Finding("too_many_bad_images", len(bad), action))


def _duplicates(
    report: Report, splits: Mapping[str, Dataset], seen: Mapping[str, Sequence[ImageFacts]]
) -> None:
    """Images that are there twice: by their bytes, then by their look."""
    everywhere = [(name, one) for name, facts in seen.items() for one in facts]
    facts = [one for _, one in everywhere]

    def place(position: int) -> str:
        name, one = everywhere[position]
        return f"{name} {splits[name].files[one.index]}"

    equal = equal_files(facts)
    pairs = {"equal_images": [(group[0], other) for group in equal for other in group[1:]]}
    pairs["similar_images"] = alike(facts)
    for kind, found in pairs.items():
        for across in (False, True):
            places = [
                f"{place(a)} = {place(b)}"
                for a, b in found
                if (everywhere[a][0] != everywhere[b][0]) is across
            ]
            if not places:
                continue
            where = "train, val" if across else "one split"
            action = "pairs, used as they are"
            if across:
                action += "; val is no test of what was learnt by heart"
            name = f"{kind}_across_splits" if across else kind
            certain = across and kind == "equal_images"
            verdict = Verdict.WARNING if certain else Verdict.NOTE
            report.add(verdict, where, Finding.at(name, action, places))
