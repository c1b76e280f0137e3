"""Fitting the tensors of a file to a network, with an account of every one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detectors.config import DetectorConfig
from detectors.skeleton import skeleton
from detectors.weights.archives import WeightsError
from detectors.weights.layouts import LAYOUTS, Classes, Layout, Piece, recognise, unwrap
from detectors.weights.report import Entry, Report

# Class names behind published weights that say nothing but their number of channels. Sources: the
# COCO 2017 instance annotations (80 categories, ids 1 to 90 with gaps) and the Pascal VOC
# development kit (20 classes, alphabetical).

#: COCO names in the order of their ids.
COCO_NAMES = tuple(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant
    |stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe
    |backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat
    |baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl
    |banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant
    |bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink
    |refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush""".replace(
        "\n    ", ""
    ).split("|")
)

#: Ids 1 to 90 that COCO does not use.
_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

#: COCO's id of each of :data:`COCO_NAMES`.
COCO_IDS = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)

#: One name for each id 1 to 90, as heads that are laid out by COCO id have a channel for each.
COCO_NAMES_BY_ID = tuple(
    f"unused {number}" if number in _COCO_GAPS else COCO_NAMES[COCO_IDS.index(number)]
    for number in range(1, 91)
)

#: Pascal VOC names.
VOC_NAMES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

#: Names by number of foreground classes, for published layouts that count them without gaps.
_BY_COUNT = {80: COCO_NAMES, 90: COCO_NAMES_BY_ID, 20: VOC_NAMES}


def published_names(count: int) -> tuple[str, ...] | None:
    """Names of the classes of published weights with ``count`` foreground classes, if known."""
    return _BY_COUNT.get(count)


#: Layout name of files that use this program's own names.
NATIVE = "native"

#: Foreground classes of a network that gets no class-dependent tensors and no number of classes.
_ANY_COUNT = 80


@dataclass(frozen=True)
class Fitted:
    """Tensors under the names of a network.

    Attributes:
        tensors: those that were taken.
        report: what became of every tensor, taken or not.
        class_names: of the rows in class-dependent tensors; None if they are not known or no such
            tensor was taken.
        num_classes: foreground classes of those rows; None if no such tensor was taken.
    """

    tensors: dict[str, Tensor]
    report: Report
    class_names: tuple[str, ...] | None
    num_classes: int | None


def class_dependent(config: DetectorConfig) -> frozenset[str]:
    """Names of the tensors whose shape follows the number of classes."""
    few, more = (skeleton(config, num_classes=count).state_dict() for count in (3, 4))
    return frozenset(name for name, tensor in few.items() if tensor.shape != more[name].shape)


def convert(
    tensors: Mapping[str, Tensor],
    config: DetectorConfig,
    *,
    layout: str | None = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Fitted:
    """Tensors in a published layout to those of a detector.

    Args:
        tensors: of the file.
        config: of the detector.
        layout: name of one of :data:`~detectors.weights.layouts.LAYOUTS`; None recognises it.
        class_names: foreground classes wanted, in the order of their labels; their rows are picked
            out of the published ones by name. None takes all published classes.
        num_classes: foreground classes of the network where the file has no class-dependent
            tensors; only the shapes in the report follow it.

    Raises:
        WeightsError: unknown layout, one that does not belong to this detector, wanted classes that
            the file does not have, or not one tensor that fits.
    """
    tensors = unwrap(tensors)
    found = _layout_of(tensors, layout)
    if found is None:
        return fit_native(tensors, config, num_classes=_own_count(tensors, config))
    prefix = found.sites.get(config.name)
    if prefix is None:
        places = ", ".join(sorted(found.sites))
        raise WeightsError(
            f"the file is {found.title}, whose weights have a place in {places}, "
            f"not in {config.name}"
        )
    pieces = list(found.pieces(tensors))
    channels = found.channels(tensors)
    published: tuple[str, ...] | None = None
    count = num_classes or _ANY_COUNT
    if found.classes is not None and channels is not None:
        count = channels - found.classes.background
        published = published_names(count)
        if class_names is not None and tuple(class_names) != published:
            rows = _rows(tuple(class_names), published, count, found)
            pieces = [_pick(piece, found.classes, channels, rows) for piece in pieces]
            published, count = tuple(class_names), len(class_names)
    model = skeleton(config, num_classes=count)
    placed = [
        piece._replace(name=None if piece.name is None else prefix + piece.name) for piece in pieces
    ]
    fitted, report = _place(placed, model, found.name)
    _require_some(report, found.title, config)
    report = replace(report, advice=tuple(_advice(found, config)))
    has_classes = bool(class_dependent(config) & set(fitted))
    return Fitted(
        fitted, report, published if has_classes else None, count if has_classes else None
    )


def fit_native(
    tensors: Mapping[str, Tensor],
    config: DetectorConfig,
    *,
    num_classes: int,
    keep_classes: bool = True,
) -> Fitted:
    """Tensors under this program's own names to those of a detector.

    Args:
        tensors: of the file.
        config: of the detector.
        num_classes: foreground classes of the network.
        keep_classes: when false, class-dependent tensors are not taken even where they fit,
            because their rows stand for other classes.

    Raises:
        WeightsError: not one tensor fits.
    """
    depends = class_dependent(config)
    model = skeleton(config, num_classes=num_classes)
    pieces = [Piece(name, t, name, tuple(t.shape)) for name, t in tensors.items()]
    barred = frozenset() if keep_classes else depends
    fitted, report = _place(pieces, model, NATIVE, barred)
    _require_some(report, "native weights", config)
    has_classes = bool(depends & set(fitted))
    return Fitted(fitted, report, None, num_classes if has_classes else None)


def without_classes(fitted: Fitted, config: DetectorConfig, *, num_classes: int) -> Fitted:
    """The same without class-dependent tensors, for a network of ``num_classes``."""
    depends = class_dependent(config)
    shapes = skeleton(config, num_classes=num_classes).state_dict()
    entries: list[Entry] = []
    dropped: list[Entry] = []
    note = "belongs to other classes"
    for entry in fitted.report.entries:
        if entry.name not in depends:
            entries.append(entry)
            continue
        shape = tuple(shapes[entry.name].shape)
        entries.append(Entry("missing", entry.name, shape, None, None, note))
        if entry.source is not None:
            dropped.append(Entry("left over", None, None, entry.source, entry.source_shape, note))
    tensors = {name: tensor for name, tensor in fitted.tensors.items() if name not in depends}
    report = replace(fitted.report, entries=(*entries, *dropped))
    _require_some(report, report.layout, config)
    return Fitted(tensors, report, None, None)


def _advice(layout: Layout, config: DetectorConfig) -> Iterator[str]:
    """A line for each setting that the weights were trained with and the network does not have."""
    backbone = getattr(config, "backbone", None)
    for name, trained_with in layout.settings.items():
        place = "detector" if backbone is None else "detector.backbone"
        found = getattr(config if backbone is None else backbone, name, trained_with)
        if found != trained_with:
            yield f"{layout.title} was trained with {place}.{name}: {trained_with}; it is {found}"


def _layout_of(tensors: Mapping[str, Tensor], name: str | None) -> Layout | None:
    if name == NATIVE:
        return None
    names = {layout.name: layout for layout in LAYOUTS}
    if name is not None and name not in names:
        raise WeightsError(f"unknown layout '{name}'; allowed are {', '.join([NATIVE, *names])}")
    found = names[name] if name is not None else recognise(tensors)
    if found is not None and not found.fits(tensors):
        absent = next(mark for mark in found.landmarks if mark not in tensors)
        raise WeightsError(f"the file is not {found.title}: it has no tensor {absent}")
    return found


def _own_count(tensors: Mapping[str, Tensor], config: DetectorConfig) -> int:
    """Foreground classes of a file under native names, from a tensor that depends on them."""
    few, more = (skeleton(config, num_classes=count).state_dict() for count in (3, 4))
    for name in sorted(class_dependent(config)):
        rows, step = len(few[name]), len(more[name]) - len(few[name])
        found = tensors.get(name)
        # A tensor without numbers may have any number of rows.
        if step and found is not None and found.dim() and found.numel():
            extra, rest = divmod(len(found) - rows, step)
            if rest == 0 and 3 + extra >= 1:
                return 3 + extra
    return _ANY_COUNT


def _rows(
    wanted: tuple[str, ...], published: tuple[str, ...] | None, count: int, layout: Layout
) -> list[int]:
    """Published foreground class of each wanted one."""
    if published is None:
        if len(wanted) == count:
            return list(range(count))
        raise WeightsError(
            f"{layout.title} with {count} classes whose names are not known cannot be narrowed to "
            f"the {len(wanted)} wanted ones"
        )
    absent = [name for name in wanted if name not in published]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise WeightsError(
            f"{layout.title} has no class {', '.join(map(repr, absent[:5]))}{more} among its "
            f"{count}; leave the classes out to take all of them, and train.init_from will "
            "initialise their tensors anew"
        )
    return [published.index(name) for name in wanted]


def _pick(piece: Piece, classes: Classes, channels: int, rows: list[int]) -> Piece:
    """A class-dependent piece with the rows of the chosen classes, background first."""
    order = [pattern for pattern in classes.rows if re.fullmatch(pattern[0], piece.name or "")]
    if not order:
        return piece
    value = piece.value
    rows_found = len(value) if value.dim() else 0
    if not rows_found or rows_found % channels:
        raise WeightsError(
            f"{piece.source}: found {rows_found} rows, which is no multiple of {channels} classes"
        )
    chosen = [*range(classes.background), *(classes.background + row for row in rows)]
    if order[0][1] == "inner":
        grid = value.reshape(-1, channels, *value.shape[1:])[:, chosen]
    else:
        grid = value.reshape(channels, -1, *value.shape[1:])[chosen]
    change = f"{len(rows)} of {channels - classes.background} classes"
    return piece._replace(value=grid.flatten(0, 1), change=change)


def _place(
    pieces: Sequence[Piece],
    model: nn.Module,
    layout: str,
    barred: frozenset[str] = frozenset(),
) -> tuple[dict[str, Tensor], Report]:
    """Take what has a name, shape and type of the network; account for everything."""
    wanted = model.state_dict()
    taken: dict[str, Tensor] = {}
    filled: dict[str, Entry] = {}
    unfilled: dict[str, str] = {}
    spare: list[Entry] = []
    for piece in pieces:
        refusal = _refusal(piece, wanted, taken, barred)
        if refusal is not None:
            spare.append(Entry("left over", None, None, piece.source, piece.source_shape, refusal))
            if piece.name in wanted and piece.name not in taken:
                unfilled[piece.name] = refusal
            continue
        assert piece.name is not None
        like = wanted[piece.name]
        changes = [piece.change] if piece.change else []
        if piece.value.dtype != like.dtype:
            changes.append(f"{_kind(piece.value)} to {_kind(like)}")
        taken[piece.name] = piece.value.to(like.dtype)
        filled[piece.name] = Entry(
            "adapted" if changes else "loaded",
            piece.name,
            tuple(like.shape),
            piece.source,
            piece.source_shape,
            ", ".join(changes),
        )
    for name, twin in _twins(model):
        _agree(name, twin, taken, filled, wanted)
    entries = [
        filled.get(name)
        or Entry("missing", name, tuple(tensor.shape), None, None, unfilled.get(name, ""))
        for name, tensor in wanted.items()
    ]
    return taken, Report(layout, (*entries, *spare))


def _refusal(
    piece: Piece,
    wanted: Mapping[str, Tensor],
    taken: Mapping[str, Tensor],
    barred: frozenset[str],
) -> str | None:
    """Why a piece is not taken; None if it is."""
    if piece.name is None or piece.name not in wanted:
        return "no such tensor in the network"
    if piece.name in taken:
        return f"{piece.name} has been filled already"
    if piece.name in barred:
        return "belongs to other classes"
    found, needed = tuple(piece.value.shape), tuple(wanted[piece.name].shape)
    if found != needed:
        return f"found shape {found}, {piece.name} needs {needed}"
    if piece.value.is_floating_point() != wanted[piece.name].is_floating_point():
        return f"found {_kind(piece.value)}, {piece.name} needs {_kind(wanted[piece.name])}"
    if not bool(torch.isfinite(piece.value).all()):
        return "holds NaN or infinity"
    return None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _twins(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of tensors that several modules share, each with the first name of the same tensor."""
    first: dict[int, str] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        original = first.setdefault(id(tensor), name)
        if original != name:
            yield name, original


def _agree(
    name: str,
    twin: str,
    taken: dict[str, Tensor],
    filled: dict[str, Entry],
    wanted: Mapping[str, Tensor],
) -> None:
    """See that one tensor under two names got one value, from either of them."""
    if name not in wanted or twin not in wanted:
        return
    if name in taken and twin in taken:
        if not torch.equal(taken[name], taken[twin]):
            raise WeightsError(
                f"{filled[name].source} and {filled[twin].source} differ, but the network has one "
                f"tensor for both, {twin}; a checkpoint with a layer for each is not this network's"
            )
        return
    given, lacking = (name, twin) if name in taken else (twin, name)
    if given in taken:
        taken[lacking] = taken[given]
        source = filled[given]
        filled[lacking] = Entry(
            "adapted",
            lacking,
            source.shape,
            source.source,
            source.source_shape,
            f"the same tensor as {given}",
        )


def _require_some(report: Report, title: str, config: DetectorConfig) -> None:
    # Counters of batches have no shape, and fit anywhere.
    if any(entry.shape for entry in report.of("loaded", "adapted")):
        return
    reasons = "\n".join(f"  {entry}" for entry in report.entries[-5:])
    known = ", ".join(layout.name for layout in LAYOUTS if config.name in layout.sites)
    variant = getattr(config, "variant", config.name)
    raise WeightsError(
        f"not one tensor of the file, read as {title}, fits {variant}; the last of them:\n"
        f"{reasons}\n{config.name} takes these layouts: {known or 'none'}"
    )
