"""Which layout a folder has: those of Ultralytics, Roboflow, CVAT, Label Studio, labelImg, FiftyOne
and VOC, and what this program writes.

Names of files and folders decide; of annotations no more is read than tells one format from
another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from orchestrator.errors import DataError, did_you_mean
from orchestrator.layouts.data_yaml import is_data_yaml, read_data_yaml
from orchestrator.layouts.files import (
    IMAGE_SUFFIXES,
    first_image,
    first_lines,
    has,
    is_file,
    is_folder,
    marks_one_class,
    names_in,
    visible,
)
from orchestrator.layouts.layout import ALL, SPLITS, Kind, Layout, Place, usual_names
from orchestrator.layouts.other_forms import found_instead, no_folder, refuse_own_forms

#: Usual file of classes, one name a line.
CLASSES_FILE = "classes.txt"
#: Of Roboflow's COCO export, one in the folder of each split.
ROBOFLOW_COCO = "_annotations.coco.json"
#: Files of classes, one name a line: of labelImg, of CVAT and of Roboflow.
_CLASS_LISTS = (CLASSES_FILE, "obj.names", "_darknet.labels")
#: A line of a label file: a class, and four numbers or more.
_BOX = re.compile(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,}$", re.IGNORECASE)
_YAMLS = (".yaml", ".yml")
_MOST_CLASSES = 1 << 20
#: Folders of images beside an annotation file.
_IMAGE_FOLDERS = ("images", "data", "JPEGImages")

Recogniser = Callable[[Path], "Layout | None"]


def find_layout(path: Path, kind: str | None = None, wanted: Iterable[str] = ()) -> Layout:
    """The layout of a data set.

    Args:
        path: its folder, its ``data.yaml``, or one COCO file.
        kind: format of the annotations, where it is known: coco, voc, txt or yolo.
        wanted: names of splits that must be there; none given takes all.

    Raises:
        DataError: there is no such folder, its layout is not known, or a wanted split is missing.
    """
    if path.suffix in _YAMLS and is_file(path):
        layout: Layout | None = _of_yaml(path)
    elif path.suffix == ".json" and is_file(path):
        layout = _of_json(path)
    elif is_folder(path):
        refuse_own_forms(path)
        layout = _recognise(path, kind)
    else:
        raise DataError(no_folder(path))
    if layout is None:
        raise DataError(_unknown(path, kind))
    wanted = tuple(wanted)
    for name in wanted:
        if name not in layout.splits:
            hint = did_you_mean(name, layout.splits)
            raise DataError(
                f"{path}: {layout.title}, no split {name!r}; found: "
                f"{', '.join(layout.splits)}{hint}"
            )
    splits = {name: layout.splits[name] for name in wanted or layout.splits}
    return Layout(layout.title, layout.kind, layout.root, splits, layout.classes, layout.notes)


def _recognise(root: Path, kind: str | None) -> Layout | None:
    found = (look(root) for of, look in _RECOGNISERS if kind in (None, of))
    return next((layout for layout in found if layout is not None), None)


def _unknown(root: Path, kind: str | None) -> str:
    below = [path for path in visible(root, "*") if is_folder(path)]
    for folder in below[:50]:
        if layout := _recognise(folder, kind):
            next_step = f"did you mean {folder}, which is {layout.title}?"
            break
    else:
        found = found_instead(root) if is_folder(root) else None
        if found is not None:
            return f"{root}: no data set that is read; {found}"
        next_step = "name other places in an experiment file and give that instead of the folder"
    lines = [f"{root}: no {kind or 'known'} layout of a data set; looked for"]
    lines += [f"  {text}" for of, text in _LOOKED_FOR if kind in (None, of)]
    return "\n".join((*lines, next_step))


_LOOKED_FOR: tuple[tuple[Kind, str], ...] = (
    ("yolo", "data.yaml with names and train (Ultralytics, Roboflow), or obj.data (CVAT)"),
    ("yolo", "images/train with labels/train, train/images with train/labels, images with labels"),
    ("yolo", "train.txt, a list of images, with images and labels"),
    ("yolo", "label files beside their images, in train and val or in one folder (labelImg)"),
    ("coco", f"train/{ROBOFLOW_COCO} (Roboflow), train/labels.json with train/data (FiftyOne)"),
    ("coco", "annotations/instances_train.json (COCO, CVAT), result.json (Label Studio), *.json"),
    ("voc", "Annotations/*.xml with JPEGImages and ImageSets/Main/train.txt, or without these"),
    ("txt", "train.txt, a line of path and boxes for each image, with images"),
)


# YOLO


def _yaml(root: Path) -> Layout | None:
    usual = [root / name for name in ("data.yaml", "dataset.yaml") if is_file(root / name)]
    others = [path for path in visible(root, "*") if path.suffix in _YAMLS and is_file(path)]
    found = [path for path in usual or others if is_data_yaml(path)]
    return _of_yaml(found[0]) if len(found) == 1 else None


def _of_yaml(path: Path) -> Layout | None:
    described = read_data_yaml(path)
    splits, notes = described.splits, described.notes
    root = described.root
    if not splits and (there := _yolo_splits(path.absolute().parent)):
        root, splits = path.absolute().parent, there
        notes += _folders_of_no_split(root, splits)
    own = any("train/images" in str(folder).lower() for folder in _images(splits))
    title = ("Roboflow's YOLO" if own else "YOLO") + f" with {path.name}"
    return Layout(title, "yolo", root, splits, path.absolute(), notes) if splits else None


def _images(splits: dict[str, Place]) -> Iterator[Path]:
    return (place.images for place in splits.values())


def _darknet(root: Path) -> Layout | None:
    """``obj.data``, which names lists of images and the file of classes."""
    if not is_file(root / "obj.data"):
        return None
    lines = (line.partition("=") for line in first_lines(root / "obj.data"))
    entries = {key.strip().lower(): value.strip() for key, _, value in lines}
    splits = {}
    for split in SPLITS:
        # CVAT writes data/train.txt for the train.txt beside the file, as Darknet's folder has it.
        name = entries.get(split, "").removeprefix("data/")
        folder = root / f"obj_{PurePath(name).stem}_data"
        if name and is_folder(folder):
            splits[split] = Place(folder, folder)
        elif name and is_file(root / name):
            image = (root / name).parent / next(iter(first_lines(root / name)), "")
            splits[split] = Place(image.parent, root / name)
    names = root / entries.get("names", "obj.names").removeprefix("data/")
    count, listed = entries.get("classes"), len(first_lines(names, _MOST_CLASSES))
    if count and listed and count != str(listed):
        raise DataError(
            f"{root / 'obj.data'}: classes is {count}, but {names.name} has {listed}; correct one"
        )
    return Layout("CVAT's YOLO 1.1", "yolo", root, splits, names) if splits else None


def _yolo(root: Path) -> Layout | None:
    splits = _yolo_splits(root)
    title = "YOLO"
    if not splits and is_folder(root / "labels") and has(root / "labels", ".txt", below=True):
        images = [root / name for name in _IMAGE_FOLDERS if is_folder(root / name)]
        if images:
            splits = {ALL: Place(images[0], root / "labels")}
            title = "Label Studio's YOLO" if is_file(root / "notes.json") else title
    if not splits:
        return None
    notes = _folders_of_no_split(root, splits)
    return Layout(title, "yolo", root, splits, classes_beside(root), notes)


def _yolo_splits(root: Path) -> dict[str, Place]:
    images = root / "images"
    lists, own = _by_split(root, ".txt"), _by_split(root)
    pictures, labels = _by_split(images), _by_split(root / "labels")
    splits = {}
    for split in SPLITS:
        if split in lists and not _has_boxes(lists[split]) and is_folder(images):
            splits[split] = Place(pictures.get(split, images), lists[split])
        elif split in pictures and split in labels:
            splits[split] = Place(pictures[split], labels[split])
        elif split in own and is_folder(own[split] / "images") and is_folder(own[split] / "labels"):
            splits[split] = Place(own[split] / "images", own[split] / "labels")
    return splits


def _by_split(folder: Path, suffix: str = "") -> dict[str, Path]:
    """The folders that a folder has for splits or, with a suffix, the files."""
    names = (name.removesuffix(suffix) for name in names_in(folder) if name.endswith(suffix))
    paths = {split: folder / f"{name}{suffix}" for split, name in usual_names(names).items()}
    is_one = is_file if suffix else is_folder
    return {split: path for split, path in paths.items() if is_one(path)}


def _folders_of_no_split(root: Path, splits: dict[str, Place]) -> tuple[str, ...]:
    """A note on folders that images and labels both have, as splits do, by names of none."""
    if not all(is_folder(place.annotations) for place in splits.values()):
        return ()  # Lists say which images there are.
    both = set(names_in(root / "images")) & set(names_in(root / "labels"))
    taken = {place.images for place in splits.values()}
    folders = [root / "images" / name for name in sorted(both)]
    left = [path.name for path in folders if is_folder(path) and path not in taken]
    if not left:
        return ()
    shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
    what = "read as one" if ALL in splits else "not read"
    return (f"images and labels both have {shown}: {what}, being no usual names of splits",)


def _yolo_beside(root: Path) -> Layout | None:
    """Label files beside their images, in one folder or one for each split.

    So labelImg writes them, and Roboflow's "YOLO Darknet".
    """
    found = {split: _label_files(folder) for split, folder in _by_split(root).items()}
    own = {split: files[0].parent for split, files in found.items() if files}
    if any(map(_hold_boxes, found.values())):
        splits = {split: Place(folder, folder) for split, folder in own.items()}
    elif _hold_boxes(_label_files(root)):
        splits = {ALL: Place(root, root)}
    else:
        return None
    return Layout("YOLO, labels beside the images", "yolo", root, splits, classes_beside(root))


def _label_files(folder: Path) -> list[Path]:
    """The text files that are called as an image beside them."""
    names = set(names_in(folder))
    images = [PurePath(name) for name in names]
    stems = sorted(path.stem for path in images if path.suffix.lower() in IMAGE_SUFFIXES)
    return [folder / f"{stem}.txt" for stem in stems if f"{stem}.txt" in names]


def _hold_boxes(label_files: Iterable[Path]) -> bool:
    """Whether the first of their lines is one of numbers: a caption of an image is none."""
    lines = (line for path in label_files for line in first_lines(path))
    return _BOX.match(next(lines, "")) is not None


def classes_beside(root: Path) -> Path:
    """The file of classes, or where it would be expected.

    labelImg writes one among the label files, and Roboflow one for each split.

    Raises:
        DataError: none lies in ``root``, and those elsewhere name different classes.
    """
    usual = [root / name for name in (CLASSES_FILE, "data.yaml", *_CLASS_LISTS[1:])]
    if path := next((path for path in usual if is_file(path)), None):
        return path
    own, labels = _by_split(root).values(), root / "labels"
    folders = [labels, *_by_split(labels).values(), *own, *(folder / "labels" for folder in own)]
    paths = [folder / name for folder in folders for name in _CLASS_LISTS]
    found = {path: first_lines(path, _MOST_CLASSES) for path in paths if is_file(path)}
    # labelImg adds classes at the end, so that a longer list may be the same one, later.
    longest = max(found, key=lambda path: len(found[path]), default=usual[0])
    for path, names in found.items():
        if names != found[longest][: len(names)]:
            raise DataError(
                f"{longest} and {path.relative_to(root)} name different classes, and label files "
                "count by one list\n"
                f"Next: number the classes alike, and put their list into {root} as {CLASSES_FILE}"
            )
    return longest


def _has_boxes(listed: Path) -> bool:
    """Whether the lines of a list have boxes after the path."""
    return any(field.count(",") >= 4 for line in first_lines(listed) for field in line.split()[1:])


def _txt(root: Path) -> Layout | None:
    images = root / "images"
    pictures, lists = _by_split(images), _by_split(root, ".txt")
    splits = {}
    if is_folder(images):
        splits = {
            split: Place(pictures.get(split, images), listed) for split, listed in lists.items()
        }
    return Layout("TXT", "txt", root, splits, root / CLASSES_FILE) if splits else None


# COCO


def _roboflow_coco(root: Path) -> Layout | None:
    found = visible(root, f"*/{ROBOFLOW_COCO}")
    splits = {path.parent.name: Place(path.parent, path) for path in found}
    if not splits and is_file(root / ROBOFLOW_COCO):
        splits = {ALL: Place(root, root / ROBOFLOW_COCO)}
    return Layout("Roboflow's COCO", "coco", root, splits) if splits else None


def _fiftyone(root: Path) -> Layout | None:
    folders = [path.parent for path in visible(root, "*/labels.json")]
    splits = {
        folder.name: Place(folder / "data", folder / "labels.json")
        for folder in folders
        if is_folder(folder / "data")
    }
    if not splits and is_file(root / "labels.json") and is_folder(root / "data"):
        splits = {ALL: Place(root / "data", root / "labels.json")}
    return Layout("FiftyOne's COCO", "coco", root, splits) if splits else None


def _coco(root: Path) -> Layout | None:
    """Files of instances, in ``annotations`` or beside the images."""
    folder = root / "annotations"
    files = {
        path.stem.removeprefix("instances_"): path for path in visible(folder, "instances_*.json")
    }
    if not files:
        files = {path.stem: path for at in (folder, root) for path in _instances(at)}
        usual = usual_names(files)
        files = {name: files[name] for name in usual.values()} if "train" in usual else files
    splits = {}
    for split, path in sorted(files.items(), key=lambda item: _usual_first(item[0])):
        images = _images_of(root, path, split)
        if images is not None:
            splits[split] = Place(images, path)
    if len(splits) == 1 and not next(iter(splits)).lower().startswith(("train", "val", "test")):
        splits = {ALL: next(iter(splits.values()))}
    names = {place.annotations.name for place in splits.values()}
    title = {"result.json": "Label Studio's COCO", "instances_default.json": "CVAT's COCO"}
    known = next((title[name] for name in names if name in title), "COCO")
    return Layout(known, "coco", root, splits) if splits else None


def _of_json(path: Path) -> Layout:
    """One COCO file, without splits; its images lie beside it or in a usual folder."""
    name = first_image(path)
    if name is None:
        raise DataError(f"{path}: no COCO file, for it names no images by file_name")
    for root in (path.parent, path.parent.parent):
        images = _images_of(root, path, path.stem.removeprefix("instances_"))
        if images is not None and is_file(images / name):
            return Layout("COCO", "coco", root, {ALL: Place(images, path)})
    raise DataError(
        f"{path}: its first image, {name}, is neither beside it nor in "
        f"{', '.join(_IMAGE_FOLDERS)} beside it or one folder up"
    )


def _usual_first(split: str) -> tuple[int, str]:
    usual = split.lower()
    return (SPLITS.index(usual) if usual in SPLITS else len(SPLITS), split)


def _instances(folder: Path) -> list[Path]:
    """COCO files of a folder; nothing else names ``file_name`` entries."""
    return [path for path in visible(folder, "*.json") if first_image(path) is not None]


def _images_of(root: Path, annotations: Path, split: str) -> Path | None:
    """The folder in which the images of an annotation file are; None if there is no folder."""
    places = [root / "images" / split, root / split, *(root / name for name in _IMAGE_FOLDERS)]
    folders = [place for place in places if is_folder(place)]
    name = first_image(annotations)
    if name is not None:
        for place in [*folders, annotations.parent, root]:
            if is_file(place / name):
                return place
    return next(iter(folders), None)


# Pascal VOC


def _voc(root: Path) -> Layout | None:
    """XML files: VOC as published, or in ``labels``, or beside their images."""
    classes = root / CLASSES_FILE if is_file(root / CLASSES_FILE) else None
    splits: dict[str, Place] = {}
    for name in ("Annotations", "annotations", "labels"):
        if not splits and has(root / name, ".xml", below=True):
            splits = _voc_splits(root, root / name)
    title = "Pascal VOC"
    if not splits:
        own = _by_split(root)
        splits = {split: Place(path, path) for split, path in own.items() if has(path, ".xml")}
        title = "Pascal VOC, XML beside the images"
    if not splits and has(root, ".xml"):
        splits = {ALL: Place(root, root)}
    return Layout(title, "voc", root, splits, classes) if splits else None


def _voc_splits(root: Path, annotations: Path) -> dict[str, Place]:
    folders = [root / name for name in ("JPEGImages", *_IMAGE_FOLDERS) if is_folder(root / name)]
    images = next(iter(folders), root)
    sets = {
        path.stem: path
        for path in visible(root / "ImageSets" / "Main", "*.txt")
        if (lines := first_lines(path))
        and not any(marks_one_class(line, annotations) for line in lines)
    }
    usual = {split: sets[name] for split, name in usual_names(sets).items()}
    if "train" in usual:
        usual.pop("trainval", None)
    pictures = _by_split(images)
    splits = {}
    for split, path in (usual or sets).items():
        own = pictures.get(split, images / split)
        splits[split] = Place(own if is_folder(own) else images, path)
    return splits or {ALL: Place(images, annotations)}


#: In the order in which they are tried.
_RECOGNISERS: tuple[tuple[Kind, Recogniser], ...] = (
    ("yolo", _yaml),
    ("yolo", _darknet),
    ("coco", _roboflow_coco),
    ("coco", _fiftyone),
    ("coco", _coco),
    ("voc", _voc),
    ("yolo", _yolo),
    ("yolo", _yolo_beside),
    ("txt", _txt),
)
