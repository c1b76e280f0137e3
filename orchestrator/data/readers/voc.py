"""Reader of Pascal VOC annotations: one XML file an image.

Source: the development kit of VOC2012 (Everingham and Winn, 2012, section 3). A pixel is counted
from 1 and both ends of a box belong to it, so ``xmin`` 1 and ``xmax`` W span an image of width W;
here that is the box from 0 to W. Objects marked ``difficult`` take the place of COCO's crowds: not
learnt from unless asked for, and neither right nor wrong in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path, PurePosixPath

from orchestrator.data.files import read_text_bytes, reason
from orchestrator.data.findings import Finding, Problems, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.build import build_dataset
from orchestrator.data.readers.coco_oddities import (
    IGNORED_ACTION,
    IGNORED_REGION,
    ROTATED_ACTION,
    ROTATED_BOX,
    hull,
)
from orchestrator.data.readers.numbers import EXACT, integer, number, shown
from orchestrator.data.readers.paths import (
    USUAL,
    ReadRules,
    files_in_order,
    relative_names,
    require_folder,
    split_key,
    stays_below,
)
from orchestrator.data.readers.text_files import BoxList, images_of, read_lines, report_duplicates
from orchestrator.data.readers.xml_tree import MAX_BYTES, Element, XmlError, parse_xml
from orchestrator.errors import DataError, SecurityError, nearest
from orchestrator.layouts.files import is_file, is_folder, marks_one_class

#: Folder of the XML files, beside ``ImageSets``.
ANNOTATIONS = "Annotations"
_LARGEST_SIDE = (1 << 31) - 1
_FROM_ZERO = (
    "that begins at 0, where VOC counts pixels from 1: if the tool counts from 0, all boxes lie a "
    "pixel too far left and up"
)


def read_voc(
    images_dir: str | Path, annotations: str | Path, classes: LabelMap, rules: ReadRules = USUAL
) -> ReadResult:
    """Read one split of a Pascal VOC data set.

    Args:
        images_dir: folder that ``<filename>`` is relative to, usually ``JPEGImages``.
        annotations: an image set, ``ImageSets/Main/train.txt``, whose lines name the files in
            ``Annotations``; or a folder of XML files, all of which are read in the order of their
            names.
        classes: by name.
        rules: what the files are read by.

    Raises:
        DataError: something is missing or cannot be understood; the first hundred are listed.
        SecurityError: a name leads out of its folder.
    """
    root = require_folder(Path(images_dir), what="image folder", key=split_key("images"))
    source = Path(annotations)
    problems = Problems(str(source))
    folder, stems = voc_files(source, problems, rules)
    reader = _Reader(classes, problems, rules)
    for stem, place in stems:
        reader.read(folder, stem, place)
    files = relative_names(root, reader.files)
    report_duplicates(files, reader.places, problems)
    problems.raise_any()
    boxes = reader.boxes
    result = build_dataset(
        root,
        classes,
        images_of(files, reader.sizes),
        boxes.columns(),
        source=source,
        place=lambda row: f"{reader.names[boxes.image(row)]}:{boxes.lines[row]}",
        rules=rules,
        stems=[PurePosixPath(name).stem for name in reader.names],
    )
    return ReadResult(result.dataset, (*reader.findings(), *result.findings))


def voc_files(
    source: Path, problems: Problems, rules: ReadRules
) -> tuple[Path, list[tuple[str, str]]]:
    """The folder of the XML files, and stem and place of mention of each.

    Raises:
        DataError: there is no such folder or image set.
        SecurityError: a linked folder leads out of the folder.
    """
    if is_folder(source):
        folder = source.resolve()
        stems = [
            (name.removesuffix(".xml"), str(folder / name)) for name in _xml_files(folder, rules)
        ]
        if not stems:
            raise DataError(f"{source}: holds no .xml file; is this the folder of annotations?")
        return folder, stems
    if not is_file(source):
        require_folder(source, what="image set", key=split_key("annotations"))
    folder = _annotation_folder(source)
    stems = []
    seen: dict[str, int] = {}
    for line, text in read_lines(source):
        place = f"{source.name}:{line}"
        if marks_one_class(text, folder):
            problems.add(place, "marks images of one class; take the set of all, such as train.txt")
            continue
        first = seen.setdefault(text, line)
        if first != line:
            problems.add(place, f"{shown(text)} is already named in line {first}")
            continue
        stems.append((text, place))
    if not stems and not problems.count:
        problems.add(f"{source.name}:1", "is empty, expected one image name a line")
    return folder, stems


def _xml_files(folder: Path, rules: ReadRules) -> list[str]:
    return [name for name in files_in_order(folder, rules) if name.endswith(".xml")]


def all_voc_files(sources: Iterable[Path], rules: ReadRules) -> list[Path]:
    """The XML files that together say what classes there are: all in the folders of annotations.

    Raises:
        DataError: there is no folder of annotations.
        SecurityError: a linked folder leads out of it.
    """
    folders = {one if is_folder(one) else _annotation_folder(one) for one in sources}
    return sorted({folder / name for folder in folders for name in _xml_files(folder, rules)})


def voc_classes(sources: Sequence[Path], rules: ReadRules = USUAL) -> LabelMap:
    """The names of all objects in the folders of annotations, in the order of the alphabet.

    So all splits have the same classes, even where one of them lacks a rare one. What cannot be
    read is passed by, since its reader will say so.

    Args:
        sources: image sets, or folders of XML files, of all splits.
        rules: what the files are read by.

    Raises:
        DataError: there are no objects.
        SecurityError: a linked folder leads out of the folder of annotations.
    """
    names = set()
    for path in all_voc_files(sources, rules):
        try:
            root = parse_xml(read_text_bytes(path, limit=MAX_BYTES))
            names |= {name.text for item in root.all("object") for name in item.all("name")}
        except (OSError, XmlError):  # noqa: PERF203 - one bad file is not all
            continue
    names.discard("")
    if not names:
        raise DataError(
            f"{sources[0]}: no object has a <name>, so no class is known\n"
            "name a file with one class a line in data.classes"
        )
    return LabelMap(tuple(sorted(names)), tuple(range(len(names))))


def _annotation_folder(source: Path) -> Path:
    for parent in source.absolute().parents:
        if (parent / ANNOTATIONS).is_dir():
            return (parent / ANNOTATIONS).resolve()
    raise DataError(
        f"{source}: no folder {ANNOTATIONS} beside it or above it\n"
        f"put the XML files there, or name their folder in {split_key('annotations')}"
    )


class _Reader:
    """Collects the images and boxes of one XML file after the other.

    Attributes:
        names: XML file of each image, as messages show it.
        files: image file of each.
        places: where each image file is named.
        sizes: (height, width) of each.
    """

    def __init__(self, classes: LabelMap, problems: Problems, rules: ReadRules) -> None:
        self.boxes = BoxList()
        self.names: list[str] = []
        self.files: list[str] = []
        self.places: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._labels = {name: label for label, name in enumerate(classes.names)}
        self._problems = problems
        self._rules = rules
        self._rotated: list[str] = []
        self._ignored: list[str] = []
        self._deleted: list[str] = []
        self._zero: list[str] = []

    def findings(self) -> list[Finding]:
        """What was put right."""
        return [
            Finding.at(kind, action, places)
            for kind, action, places in (
                (ROTATED_BOX, ROTATED_ACTION, self._rotated),
                (IGNORED_REGION, IGNORED_ACTION, self._ignored),
                ("deleted_object", "left out, being marked as deleted", self._deleted),
                ("counts_from_zero", _FROM_ZERO, self._zero),
            )
            if places
        ]

    def read(self, folder: Path, stem: str, place: str) -> None:
        """Read the file of ``stem``, which is mentioned at ``place``."""
        path = folder / f"{stem}.xml"
        below = stays_below(folder, path, follow_links=self._rules.follow_links)
        if "\0" in stem or not below:
            raise SecurityError(f"{place}: {shown(stem)} leads out of {folder}")
        name = f"{folder.name}/{stem}.xml"
        try:
            root = parse_xml(read_text_bytes(path, limit=MAX_BYTES))
            self._image(name, root)
        except OSError as error:
            self._problems.add(place, f"{name} cannot be read ({reason(error)})")
        except XmlError as error:
            self._problems.add(f"{name}:{error.line}", str(error))

    def _image(self, name: str, root: Element) -> None:
        if root.tag != "annotation":
            raise XmlError(root.line, f"the root is <{root.tag}>, expected <annotation>")
        file = root.one("filename")
        if not file.text:
            raise XmlError(file.line, "<filename> is empty")
        size = root.one("size")
        height, width = (_whole(size.one(tag)) for tag in ("height", "width"))
        position = len(self.files)
        self.names.append(name)
        self.files.append(file.text)
        self.places.append(f"{name}:{file.line}")
        self.sizes.append((height, width))
        for item in root.all("object"):
            self._add(position, item)

    def _add(self, position: int, item: Element) -> None:
        """The object as a box, or as a problem."""
        try:
            self._object(position, item)
        except XmlError as error:
            self._problems.add(f"{self.names[position]}:{error.line}", str(error))

    def _object(self, position: int, item: Element) -> None:
        name = item.one("name")
        label = self._labels.get(name.text)
        if label is None:
            guess = nearest(name.text, self._labels)
            hint = f"; did you mean {shown(guess)}?" if guess else ""
            known = ", ".join(
                [*list(self._labels)[:10], *(["..."] if len(self._labels) > 10 else [])]
            )
            raise XmlError(
                name.line, f"<name> is {shown(name.text)}, but the classes are {known}{hint}"
            )
        if _flag(item, "deleted"):
            self._deleted.append(f"{self.names[position]}:{item.line}")
            return
        difficult = _flag(item, "difficult")
        if _flag(item, "ignore"):
            difficult = True
            self._ignored.append(f"{self.names[position]}:{item.line}")
        box = item.one("bndbox")
        left, top = (EXACT.subtract(_number(box.one(tag)), Decimal(1)) for tag in ("xmin", "ymin"))
        right, bottom = (_number(box.one(tag)) for tag in ("xmax", "ymax"))
        width, height = EXACT.subtract(right, left), EXACT.subtract(bottom, top)
        if -1 in (left, top):
            self._zero.append(f"{self.names[position]}:{box.line}")
        xywh = (float(left), float(top), float(width), float(height))
        degrees = _rotation(item)
        if degrees % 180:
            xywh = hull(xywh, degrees)
            self._rotated.append(f"{self.names[position]}:{box.line}")
        self.boxes.add(
            position,
            xywh,
            label,
            difficult,
            box.line,
        )


def _flag(item: Element, tag: str) -> bool:
    """Whether one of 0 and 1 is 1; where there is none, it is 0."""
    return sum(_whole(flag, low=0, high=1) for flag in item.all(tag)) > 0


def _rotation(item: Element) -> float:
    """Degrees that a box is turned by: an attribute called so, as CVAT writes it."""
    for attributes in item.all("attributes"):
        for one in attributes.all("attribute"):
            names = [name.text for name in one.all("name")]
            if names == ["rotation"]:
                return float(_number(one.one("value")))
    return 0.0


def _whole(element: Element, *, low: int = 1, high: int = _LARGEST_SIDE) -> int:
    try:
        return integer(f"<{element.tag}>", element.text, low=low, high=high)
    except ValueError as error:
        raise XmlError(element.line, str(error)) from None


def _number(element: Element) -> Decimal:
    try:
        return number(f"<{element.tag}>", element.text)
    except ValueError as error:
        raise XmlError(element.line, str(error)) from None
