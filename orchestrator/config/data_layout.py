"""``data.root`` alone: the splits are looked for there and written into the experiment.

So a resolved experiment always names its splits, and a folder that changes later does not change
what it says.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.problems import Place
from orchestrator.config.scalars import Json
from orchestrator.config.yaml_loader import Document
from orchestrator.errors import DataError
from orchestrator.layouts.layout import Layout
from orchestrator.layouts.recognise import find_layout


def fill_in(document: Document) -> DataError | None:
    """Name the splits of ``data.root`` where the experiment names none.

    Args:
        document: changed in place.

    Returns:
        Why they were not found. Then something else stands in for them, so that all the rest of
        the experiment can be examined.
    """
    data = document.tree.get("data") if isinstance(document.tree, dict) else None
    if not isinstance(data, dict) or "train" in data or "val" in data:
        return None
    root, kind = data.get("root"), data.get("format")
    if not isinstance(root, str) or root.startswith("~") or not isinstance(kind, str | None):
        return None  # Each of them is said when the experiment is validated.
    try:
        layout = find_layout(Path(root), kind)
        sections = _sections(layout, root, own_classes="classes" in data)
    except DataError as error:
        unknown: Json = {"images": ".", "annotations": "."}
        data |= {"train": unknown, "val": unknown}
        return error
    place = Place(f"found in {root}")
    for key, value in sections.items():
        data[key] = value
        document.places["data", key] = place
        if isinstance(value, dict):
            document.places.update(dict.fromkeys((("data", key, part) for part in value), place))
    return None


def _sections(layout: Layout, root: str, *, own_classes: bool) -> dict[str, Json]:
    """Keys of ``data`` and their values."""
    names = layout.require_pair()
    sections: dict[str, Json] = {"format": layout.kind}
    # A data.yaml stands for the folder it speaks of.
    if layout.root.resolve() != Path(root).resolve():
        sections["root"] = str(layout.root)
    if layout.classes is not None and not own_classes:
        sections["classes"] = layout.relative(layout.classes)
    for key, name in zip(("train", "val"), names, strict=True):
        split = layout.splits[name]
        sections[key] = {
            "images": layout.relative(split.images),
            "annotations": layout.relative(split.annotations),
        }
    return sections
