"""Where the splits of a data set usually lie, for whoever has a folder and no experiment yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from orchestrator.data.readers.writers import Place
from orchestrator.errors import DataError

SPLITS = ("train", "val", "validation", "test")


def find_splits(root: Path, kind: str, wanted: Iterable[str] = ()) -> dict[str, Place]:
    """The splits below ``root``, by name.

    Args:
        root: of the data set.
        kind: coco, voc, txt or yolo.
        wanted: names of splits that must be there; none given takes all with a usual name.

    Raises:
        DataError: there is no such folder, or a wanted split, or any, is not where it usually is.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a data set, or an experiment")
    wanted = tuple(wanted)
    found = {}
    for split in wanted or _candidates(root, kind):
        place = next(
            (at for at in _places(root, kind, split) if at.images.is_dir() and _exists(at)), None
        )
        if place is not None:
            found[split] = place
        elif wanted:
            raise DataError(_nothing(root, kind, split))
    if not found:
        raise DataError(_nothing(root, kind, "train"))
    return found


def _candidates(root: Path, kind: str) -> list[str]:
    names = list(SPLITS)
    if kind == "coco":
        files = sorted((root / "annotations").glob("instances_*.json"))
        names += [file.stem.removeprefix("instances_") for file in files]
    return list(dict.fromkeys(names))


def _places(root: Path, kind: str, split: str) -> list[Place]:
    """Where the split may lie, most specific first."""
    if kind == "coco":
        instances = root / "annotations" / f"instances_{split}.json"
        return [
            Place(root / split / "data", root / split / "labels.json"),
            Place(root / "images" / split, instances),
            Place(root / split, instances),
            Place(root / "images", instances),
        ]
    if kind == "voc":
        image_set = root / "ImageSets" / "Main" / f"{split}.txt"
        folders = [root / "JPEGImages" / split, root / "JPEGImages"]
        return [Place(folder, image_set) for folder in folders]
    listed = root / f"{split}.txt"
    places = [Place(root / "images" / split, listed), Place(root / "images", listed)]
    if kind == "yolo":
        places.append(Place(root / "images" / split, root / "labels" / split))
    return places


def _exists(place: Place) -> bool:
    return place.annotations.exists()


def _nothing(root: Path, kind: str, split: str) -> str:
    lines = [f"{root}: no {kind} split '{split}'; looked for"]
    for place in _places(root, kind, split):
        images, annotations = (path.relative_to(root) for path in (place.images, place.annotations))
        lines.append(f"  {annotations} with images in {images}")
    lines.append("name other places in an experiment file and give that instead of the folder")
    return "\n".join(lines)
