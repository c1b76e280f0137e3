"""Annotations in lines of text: the TXT format, YOLO's label files and lists, lists of classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cases_images import PNG
from catalogue_case import Case, Verdict

from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.txt import read_txt
from orchestrator.data.readers.yolo import read_yolo

CLASSES = LabelMap(("cat", "dog"), (0, 1))
_DATA, _SECURITY, _FINDING = Verdict.DATA, Verdict.SECURITY, Verdict.FINDING

#: Not text, whatever the format: bytes in front of a second line, its number, and what is said.
NO_TEXT: dict[str, tuple[bytes, int, str]] = {
    "latin-1": (b"Stra\xdfe\n", 1, "not UTF-8"),
    "utf-16": ("a.png\n".encode("utf-16"), 1, "not UTF-8"),
    "half a character": (b"\n\xe2\x82\n", 2, "not UTF-8"),
    "surrogates": (b"\xed\xa0\x80\n", 1, "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf\n", 1, "byte order mark"),
    "null byte": (b"\n\n\0\n", 3, "null byte"),
    "old line ends": (b"0\r1\n", 1, "carriage return"),
    "line of 2 megabytes": (b"\n" + b"0" * (2 << 20) + b"\n", 2, "2097152 characters"),
}
#: A field of a TXT line in place of a box, and what is said of it.
FIELDS = {
    "three values": ("1,2,11", "has 3 values"),
    "seven values": ("1,2,11,10,1,0,0", "has 7 values"),
    "values split by blanks": ("1 2 11 10 1", "has 1 values"),
    "semicolons": ("1;2;11;10;1", "has 1 values"),
    "empty value": ("1,,11,10,1", "ymin is ''"),
    "text": ("left,2,11,10,1", "xmin is 'left'"),
    "nan": ("1,2,nan,10,1", "xmax is 'nan', expected a finite number"),
    "infinite": ("1,2,inf,10,1", "expected a finite number"),
    "too large": ("1,2,1e200,10,1", "of at most"),
    "exponent without end": ("1,2,1e99999,10,1", "xmax is '1e99999'"),
    "500 digits": (f"1,2,{'9' * 500},10,1", "has 500 characters"),
    "hexadecimal": ("0x1,2,11,10,1", "xmin is '0x1'"),
    "other digits": ("\u0661,2,11,10,1", "expected a number"),
    "underscore": ("1_0,2,11,10,1", "expected a number"),
    "from right to left": ("11,2,1,10,1", "xmin 11 is greater than xmax 1"),
    "from bottom to top": ("1,10,11,2,1", "ymin 10 is greater than ymax 2"),
    "class of no number": ("1,2,11,10,dog", "class is 'dog', expected a whole number"),
    "class with a fraction": ("1,2,11,10,1.0", "class is '1.0'"),
    "class unknown": ("1,2,11,10,2", "class is 2, allowed is 0..1"),
    "class negative": ("1,2,11,10,-1", "class is -1, allowed is 0..1"),
    "class of 30 digits": (f"1,2,11,10,{'9' * 30}", "expected a whole number"),
    "crowd of two": ("1,2,11,10,1,2", "iscrowd is 2, allowed is 0..1"),
    "crowd in words": ("1,2,11,10,1,true", "iscrowd is 'true'"),
    "bracketed": ("[1,2,11,10,1]", "xmin is '[1'"),
}
#: Whole TXT lines.
TXT: dict[str, tuple[str, Verdict, str, str]] = {
    "empty": ("", _DATA, "train.txt:1", "is empty"),
    "blank lines": ("\n  \n\r\n", _DATA, "train.txt:1", "is empty"),
    "quote left open": ('a.png\n"b.png 1,2,11,10,1', _DATA, "train.txt:2", "quote is not closed"),
    "quote closed early": ('"a"b.png 1,2,11,10,1', _DATA, "train.txt:1", "must follow the closing"),
    "blank in a name": ("my a.png 1,2,11,10,1", _DATA, "train.txt:1", "'a.png' has 1 values"),
    "image twice": ("a.png\nb.png\na.png", _DATA, "train.txt:3", "the image of train.txt:1"),
    "image twice, spelt apart": ("a.png\n./a.png", _DATA, "train.txt:2", "already the image of"),
    "every image missing": ("gone.png 1,2,3,4,0", _DATA, "gone.png", "none of the 1 images"),
    "parent": ("../a.png", _SECURITY, "../a.png", "leads to"),
    "parent, later": ("b/../../a.png", _SECURITY, "b/../../a.png", "lead out of"),
    "absolute": ("/etc/passwd", _SECURITY, "/etc/passwd", "is absolute"),
    "no name": ('"" 1,2,11,10,1', _SECURITY, "image 0: ''", "is no file name"),
    "folder": ("b/", _SECURITY, "'b/'", "is no file name"),
    "this folder": (".", _SECURITY, "'.'", "is no file name"),
    "name of 300 letters": ("a" * 300, _DATA, "aaa", "none of the 1 images"),
    "folder of 300 letters": ("b" * 300 + "/a.png", _DATA, "bbb/a.png", "none of the 1 images"),
    "one image missing": ("a.png\ngone.png", _FINDING, "gone.png", "unreadable_image"),
    "one image of no kind": ("a.png\ntext.png", _FINDING, "text.png", "unreadable_image"),
    "no image of a kind": ("text.png", _DATA, "text.png", "none of the 1 images"),
    "box without area": ("a.png 1,2,1,10,1", _FINDING, "train.txt:1", "zero_size_box"),
    "box outside": ("a.png\nb.png 40,2,50,10,1", _FINDING, "train.txt:2", "outside_box"),
    "box over the edge": ("a.png 1,2,41,10,1", _FINDING, "train.txt:1", "over_edge_box"),
}
#: A line of a YOLO label file.
LABELS: dict[str, tuple[str, str]] = {
    "four values": ("1 0.5 0.5 0.25", "has 4 values"),
    "six values": ("1 0.5 0.5 0.25 0.25 0.9", "a sixth is the score of a prediction"),
    "outline": ("1 0.1 0.1 0.2 0.1 0.2 0.2", "outlines of segments are not boxes"),
    "commas": ("1,0.5,0.5,0.25,0.25", "has 1 values"),
    "decimal commas": ("1 0,5 0,5 0,25 0,25", "x_centre is '0,5'"),
    "pixels": ("1 20 15 10 8", "expected a fraction of the image"),
    "far left": ("1 -1.5 0.5 0.25 0.25", "x_centre is '-1.5'"),
    "nan": ("1 0.5 nan 0.25 0.25", "y_centre is 'nan'"),
    "infinite": ("1 0.5 0.5 inf 0.25", "width is 'inf'"),
    "text": ("1 0.5 0.5 0.25 high", "height is 'high'"),
    "500 digits": (f"1 0.{'3' * 500} 0.5 0.25 0.25", "has 502 characters"),
    "class by name": ("dog 0.5 0.5 0.25 0.25", "class is 'dog'"),
    "class unknown": ("3 0.5 0.5 0.25 0.25", "class is 3, allowed is 0..1"),
    "class counted from 1": ("2 0.5 0.5 0.25 0.25", "the first of the 2 classes is 0"),
    "class negative": ("-1 0.5 0.5 0.25 0.25", "class is -1"),
    "class with a fraction": ("1.0 0.5 0.5 0.25 0.25", "class is '1.0'"),
    "header": ("class x y w h", "class is 'class'"),
    "json": ('{"class": 1}', "has 2 values"),
}
UNTIDY = {
    "without width": ("1 0.5 0.5 0 0.25", "zero_size_box"),
    "of negative width": ("1 0.5 0.5 -0.25 0.25", "negative_size_box"),
    "outside": ("1 1.5 0.5 0.25 0.25", "outside_box"),
    "over the edge": ("1 1 0.5 0.25 0.25", "over_edge_box"),
}
#: A YOLO list of images.
LISTS: dict[str, tuple[str, Verdict, str, str]] = {
    "empty": ("\n", _DATA, "train.txt:1", "is empty"),
    "image twice": ("images/a.png\nimages/a.png", _DATA, "train.txt:2", "already the image of"),
    "parent": ("images/a.png\n../a.png", _SECURITY, "train.txt:2", "lead out of"),
    "absolute": ("/etc/passwd", _SECURITY, "train.txt:1", "lead out of"),
    "the folder": ("images", _SECURITY, "train.txt:1", "lead out of"),
    "every image missing": ("images/gone.png", _DATA, "gone.png", "none of the 1 images"),
    "one image missing": (
        "images/a.png\nimages/gone.png",
        _FINDING,
        "gone.png",
        "unreadable_image",
    ),
    "name of 5,000 letters": (f"images/{'a' * 5000}", _DATA, "aaa", "none of the 1 images"),
}
CLASS_LISTS: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 1, "holds no class"),
    "blank lines": (b"\n \n", 1, "holds no class"),
    "background alone": (b"background\n", 1, "holds no class"),
    "name twice": (b"cat\ndog\n\ncat\n", 4, "already the class of line 1"),
    "background twice": (b"background\ncat\nbackground\n", 3, "already the class of line 1"),
    "a data.yaml": (b"path: .\nnames:\n  0: cat\n", 1, "looks like a key of a data.yaml"),
    "a darknet data file": (b"cat\nnames = obj.names\n", 2, "looks like a key of a data.yaml"),
    "a map in yaml": (b"0: cat\n1: dog\n", 1, "looks like an entry of a map"),
    "a list in yaml": (b"- cat\n- dog\n", 1, "looks like a list in YAML"),
    "a list in json": (b'["cat", "dog"]\n', 1, "looks like JSON"),
    "a list in json, by line": (b'[\n"cat",\n"dog"\n]\n', 2, "looks like JSON"),
    "a table": (b"id,name\n0,cat\n", 1, "looks like a row of a table"),
    "names between commas": (b"cat,dog,bird\n", 1, "looks like a row of a table"),
    "a comment": (b"cat\n# wild ones\nwolf\n", 2, "looks like a comment"),
    "a count": (b"80\n", 1, "looks like a number"),
    "a number among names": (b"cat\n17\n", 2, "looks like a number"),
    "numbers from one": (b"1\n2\n3\n", 1, "looks like a number"),
    "names with their numbers": (b"0 cat\n1 dog\n", 1, "looks like a name with its number"),
    "labels of an image": (b"0 0.5 0.5 0.25 0.25\n", 1, "looks like boxes"),
    "marks of labelme": (b"__ignore__\n_background_\ncat\n", 2, "a labelling tool's mark"),
    "a web page": (b"<html>\n", 1, "looks like XML or HTML"),
    "a heading": (b"class_name\ncat\ndog\n", 1, "looks like the heading of a column"),
    "names in quotes": (b'"cat"\n"dog"\n', 1, "looks like a name in quotes"),
    "names with colours": (b"cat 255 0 0\ndog 0 255 0\n", 1, "such as a colour"),
    "bullets": (b"* cat\n* dog\n", 1, "looks like a list in YAML or Markdown"),
    "a merge not resolved": (b"<<<<<<< HEAD\ncat\n=======\ndog\n>>>>>>> b\n", 3, "a merge in Git"),
    "a pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\n", 1, "git lfs pull"),
    "a name that commands terminals": (b"cat\n\x1b[2Jdog\n", 2, "holds a control character"),
}


def build_txt(data: bytes, folder: Path) -> partial[Any]:
    """A TXT data set of two images and a file that is none."""
    _images(folder)
    (folder / "train.txt").write_bytes(data)
    return partial(read_txt, folder / "images", folder / "train.txt", CLASSES)


def build_labels(data: bytes, folder: Path) -> partial[Any]:
    """A YOLO data set of two images, of which ``a`` has this label file."""
    _images(folder, also=())
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_bytes(data)
    return partial(read_yolo, folder / "images", folder / "labels", CLASSES)


def build_list(data: bytes, folder: Path) -> partial[Any]:
    """A YOLO data set of the images of this list."""
    _images(folder)
    (folder / "train.txt").write_bytes(data)
    return partial(read_yolo, folder / "images", folder / "train.txt", CLASSES)


def build_classes(data: bytes, folder: Path) -> partial[Any]:
    """A list of class names."""
    (folder / "classes.txt").write_bytes(data)
    return partial(read_classes, folder / "classes.txt")


def _images(folder: Path, also: tuple[str, ...] = ("text.png",)) -> None:
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(PNG)
    for name in also:
        (folder / "images" / name).write_text("no image")


def cases() -> Iterator[Case]:
    """All entries of these kinds."""
    for kind, build, file in (
        ("txt", build_txt, "train.txt"),
        ("yolo", build_labels, "a.txt"),
        ("yolo list", build_list, "train.txt"),
        ("classes", build_classes, "classes.txt"),
    ):
        for name, (data, line, says) in NO_TEXT.items():
            yield Case(kind, name, partial(build, data), _DATA, f"{file}:{line}: ", says)
    for name, (field, says) in FIELDS.items():
        data = f"a.png 1,2,11,10,1\nb.png 1,2,11,10,0 {field}\n".encode()
        yield Case(
            "txt", f"field: {name}", partial(build_txt, data), _DATA, "train.txt:2: field 3", says
        )
    for name, (text, verdict, where, says) in TXT.items():
        yield Case("txt", name, partial(build_txt, text.encode()), verdict, where, says)
    for name, (line_text, says) in LABELS.items():
        data = f"1 0.5 0.5 0.25 0.25\n{line_text}\n".encode()
        yield Case("yolo", name, partial(build_labels, data), _DATA, "labels/a.txt:2: ", says)
    for name, (line_text, says) in UNTIDY.items():
        build = partial(build_labels, f"\n{line_text}\n".encode())
        yield Case("yolo", f"box {name}", build, _FINDING, "labels/a.txt:2", says)
    for name, (text, verdict, where, says) in LISTS.items():
        yield Case("yolo list", name, partial(build_list, text.encode()), verdict, where, says)
    for name, (data, line, says) in CLASS_LISTS.items():
        where = f"classes.txt:{line}: "
        yield Case("classes", name, partial(build_classes, data), _DATA, where, says)
