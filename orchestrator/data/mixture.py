"""Several sources of training images as one data set, their classes mapped by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError, did_you_mean


@dataclass(frozen=True)
class MixedSource:
    """A data set that is learnt from beside another.

    Attributes:
        data: its images and boxes.
        class_map: its classes to those of the other set, where their names differ; None drops the
            boxes of a class.
        name: of it, for messages.
    """

    data: Dataset
    class_map: Mapping[str, str | None]
    name: str


def mix_sources(main: Dataset, sources: list[MixedSource]) -> Dataset:
    """``main`` and the images of ``sources`` behind it, in their order.

    Images of the sources get ids above those of ``main``, if there is room. Where each source
    begins stands in :attr:`Dataset.parts`.

    Raises:
        DataError: a class that is none of ``main``'s, or a map that names none of the source's.
    """
    problems = [line for source in sources for line in _problems(main.label_map, source)]
    if problems:
        raise DataError("\n".join(problems))
    mixed, parts = main, []
    for source in sources:
        data = _with_labels_of(main.label_map, source)
        parts.append((len(mixed), data.root))
        mixed = replace(
            mixed,
            files=(*mixed.files, *data.files),
            image_ids=np.concatenate([mixed.image_ids, _free_ids(mixed.image_ids, len(data))]),
            widths=np.concatenate([mixed.widths, data.widths]),
            heights=np.concatenate([mixed.heights, data.heights]),
            offsets=np.concatenate([mixed.offsets, mixed.offsets[-1] + data.offsets[1:]]),
            boxes_xywh=np.concatenate([mixed.boxes_xywh, data.boxes_xywh]),
            labels=np.concatenate([mixed.labels, data.labels]),
            areas=np.concatenate([mixed.areas, data.areas]),
            crowd=np.concatenate([mixed.crowd, data.crowd]),
        )
    return replace(mixed, parts=tuple(parts))


def _free_ids(taken: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(count,) ids that are not among others: those above, where 64 bits hold them."""
    first = int(taken.max()) + 1
    if first + count <= 1 << 63:
        return first + np.arange(count, dtype=np.int64)
    return np.setdiff1d(np.arange(len(taken) + count, dtype=np.int64), taken)[:count]


def _problems(target: LabelMap, source: MixedSource) -> list[str]:
    lines = []
    names = source.data.label_map.names
    for name in source.class_map:
        if name not in names:
            hint = did_you_mean(name, names) or f"; it has {', '.join(names)}"
            lines.append(f"{source.name}.class_map: {name!r} is no class of this source{hint}")
    for name in names:
        mapped = source.class_map.get(name, name)
        if mapped is not None and mapped not in target.names:
            hint = did_you_mean(mapped, target.names)
            lines.append(
                f"{source.name}: {mapped!r} is no class of data.train, which has "
                f"{', '.join(target.names[:20])}{hint}\nmap it by {source.name}.class_map: "
                f"{{{name!r}: one of those}}, or to null to drop its boxes"
            )
    return lines


def _with_labels_of(target: LabelMap, source: MixedSource) -> Dataset:
    """The data set of a source with the labels of ``target``."""
    data = source.data
    label_of = {name: label for label, name in enumerate(target.names)}
    mapped = [source.class_map.get(name, name) for name in data.label_map.names]
    new_label = np.array([-1 if name is None else label_of[name] for name in mapped], np.int64)
    labels = new_label[data.labels]
    keep = np.flatnonzero(labels >= 0)
    image = np.arange(len(data)).repeat(np.diff(data.offsets))[keep]
    counts = np.bincount(image, minlength=len(data))
    return replace(
        data,
        label_map=target,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=data.boxes_xywh[keep],
        labels=labels[keep],
        areas=data.areas[keep],
        crowd=data.crowd[keep],
    )
