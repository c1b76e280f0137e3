"""COCO files: text that is no JSON, values of the wrong kind, ids that do not fit together."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cases_images import PNG
from catalogue_case import Case, Verdict

from orchestrator.data.readers.coco import read_coco

FILE = "instances.json"

#: Two images, three boxes, two classes.
TREE: dict[str, Any] = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 6, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 3, "bbox": [5, 5, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 3, "image_id": 6, "category_id": 7, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 1},
    ],
    "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
}
TEXT = json.dumps(TREE, indent=1)

_GONE = object()
_NULL: dict[str, Any] = {"null": None}
_NO_INTEGER = {
    "missing": _GONE,
    "null": None,
    "text": "5",
    "fraction": 1.5,
    "true": True,
    "list": [5],
    "object": {"id": 5},
    "beyond 64 bits": 1 << 63,
}
_NO_SIZE = {
    "missing": _GONE,
    "null": None,
    "text": "40",
    "zero": 0,
    "negative": -40,
    "fraction": 40.5,
    "beyond 32 bits": 1 << 31,
}
_NO_NAME = {"missing": _GONE, "null": None, "number": 7, "empty": "", "list": ["a.png"]}
_NOT_UNICODE = {"half a surrogate pair": "a\ud800"}
_NO_BOX = {
    "missing": _GONE,
    "null": None,
    "text": "1 2 10 8",
    "object": {"x": 1, "y": 2},
    "empty": [],
    "three values": [1, 2, 10],
    "five values": [1, 2, 10, 8, 0.9],
    "text inside": [1, "2", 10, 8],
    "null inside": [1, 2, None, 8],
    "true inside": [1, 2, True, 8],
    "list inside": [[1], 2, 10, 8],
    "nan": [1, 2, float("nan"), 8],
    "infinite": [float("-inf"), 2, 10, 8],
    "beyond a float": [1, 2, 10**400, 8],
    "so large that its area overflows": [1, 2, 1e200, 8],
}
_NO_AREA = {
    "null": None,
    "text": "80",
    "negative": -1,
    "nan": float("nan"),
    "infinite": float("inf"),
    "list": [80],
    "true": True,
}
_NO_FLAG = {"null": None, "two": 2, "negative": -1, "text": "0", "fraction": 0.5}

#: Pointer of a value, and what may not stand there.
WRONG = {
    "/images/1/id": _NO_INTEGER,
    "/images/1/file_name": {**_NO_NAME, **_NOT_UNICODE},
    "/images/1/width": _NO_SIZE,
    "/images/0/height": _NO_SIZE,
    "/annotations/2/id": _NO_INTEGER,
    "/annotations/1/image_id": {**_NO_INTEGER, "of no image": 99},
    "/annotations/1/category_id": {**_NO_INTEGER, "of no category": 99, "background": 0},
    "/annotations/2/bbox": _NO_BOX,
    "/annotations/0/area": _NO_AREA,
    "/annotations/2/iscrowd": _NO_FLAG,
    "/categories/1/id": _NO_INTEGER,
    "/categories/0/name": {**_NO_NAME, **_NOT_UNICODE},
    "/images": {"missing": _GONE, "null": None, "object": {}, "text": "all", "empty": []},
    "/annotations": {"missing": _GONE, "null": None, "object": {"1": []}, "number": 3},
    "/categories": {"missing": _GONE, "null": None, "object": {"7": "seven"}, "empty": []},
    "/images/0": {"null": None, "name alone": "a.png", "list": [5, "a.png"]},
    "/annotations/2": {"null": None, "number": 3, "list": [1, 2, 10, 8]},
    "/categories/1": {"null": None, "name alone": "three"},
}
#: Values that stand elsewhere already.
TWICE = {"/images/1/id": 5, "/annotations/2/id": 1, "/categories/1/id": 7}
#: What is put right beside the boxes: the pointer, the value, and as what it is listed.
ODD = {
    "area of nothing": ("/annotations/0/area", 0, "zero_area"),
    "area above its box": ("/annotations/0/area", 800, "area_above_box"),
    "ignored": ("/annotations/0/ignore", 1, "ignored_region"),
    "turned": ("/annotations/0/attributes", {"rotation": 30}, "rotated_box"),
}

#: Boxes that are put right, and as what they are listed.
UNTIDY = {
    "without width": ([1, 2, 0, 8], "zero_size_box"),
    "without height": ([1, 2, 10, 0], "zero_size_box"),
    "of negative width": ([11, 2, -10, 8], "negative_size_box"),
    "too thin for its place": ([1e9, 2, 1e-9, 8], "zero_size_box"),
    "right of the image": ([40, 2, 10, 8], "outside_box"),
    "above the image": ([1, -8, 10, 8], "outside_box"),
    "over the edge": ([35, 2, 10, 8], "over_edge_box"),
}


def put(pointer: str, value: object) -> dict[str, Any]:
    """The tree with another value at a JSON pointer."""
    tree = copy.deepcopy(TREE)
    *way, last = pointer.split("/")[1:]
    section: Any = tree
    for part in way:
        section = section[int(part) if isinstance(section, list) else part]
    if value is _GONE:
        del section[last]
    else:
        section[int(last) if isinstance(section, list) else last] = value
    return tree


#: Where a comma before the end of a list is found: from Python 3.13 on its own place.
COMMA = "1:14" if sys.version_info >= (3, 13) else "2:1"

#: Text that is no JSON object: bytes, and what is said of them, the line where there is one.
NO_JSON: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", f"{FILE}:1:1", "the file ends too early"),
    "blanks": (b" \n\n ", f"{FILE}:", "not valid JSON"),
    "trailing comma": (b'{"images": [1,\n]}', f"{FILE}:{COMMA}", "not valid JSON"),
    "single quotes": (b"{'images': []}", f"{FILE}:1:2", "not valid JSON"),
    "comment": (b'{\n// made by hand\n"images": []}', f"{FILE}:2:1", "not valid JSON"),
    "two documents": (b'{"images": []}\n{"images": []}', f"{FILE}:2:1", "not valid JSON"),
    "lines of objects": (b'{"id": 1}\n{"id": 2}\n', f"{FILE}:2:1", "not valid JSON"),
    "missing colon": (b'{"images" []}', f"{FILE}:1:11", "not valid JSON"),
    "leading zero": (b'{"images": 01}', f"{FILE}:1:13", "not valid JSON"),
    "unknown escape": (b'{"images": "\\x"}', f"{FILE}:1:13", "not valid JSON"),
    "line break in text": (b'{"images": "a\nb"}', f"{FILE}:1:14", "not valid JSON"),
    "null byte": (b'{"images": \0}', f"{FILE}:1:12", "not valid JSON"),
    "javascript": (b"var data = {};", f"{FILE}:1:1", "not valid JSON"),
    "xml": (b"<annotation/>", f"{FILE}:1:1", "not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", FILE, "byte order mark"),
    "utf-16": (TEXT.encode("utf-16"), FILE, "byte 0 is not UTF-8"),
    "latin-1": ('{"name": "Stra\xdfe"}'.encode("latin-1"), FILE, "byte 14 is not UTF-8"),
    "detection results": (b'[{"image_id": 5, "score": 0.5}]', FILE, "detection results?"),
    "text alone": (b'"instances"', FILE, "the top level is a string"),
    "number alone": (b"5", FILE, "the top level is an integer"),
    "null alone": (b"null", FILE, "the top level is null"),
    "true alone": (b"true", FILE, "the top level is a boolean"),
    "nan alone": (b"NaN", FILE, "the top level is a number"),
    "lists 100,000 deep": (b"[" * 100_000, FILE, "cannot be read as JSON"),
    "objects 100,000 deep": (b'{"a":' * 100_000, FILE, "cannot be read as JSON"),
    "number of 5,000 digits": (b'{"images": ' + b"9" * 5000 + b"}", FILE, "cannot be read as JSON"),
}


#: Objects in which a key stands twice, and where; parsers of JSON take the last in silence.
DOUBLED = {
    "/": TEXT[:-2] + ',\n "annotations": []\n}',
    "/images/1": TEXT.replace('"file_name": "b.png"', '"width": 9, "file_name": "b.png"'),
    "/annotations/2": TEXT.replace('"iscrowd": 1', '"bbox": [0, 0, 1, 1]'),
    "/categories/0": TEXT.replace('"name": "seven"', '"name": "eight", "name": "seven"'),
}


def build_coco(data: bytes | dict[str, Any], folder: Path) -> partial[Any]:
    """A data set of two images with this annotation file."""
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        (folder / "images" / name).write_bytes(PNG)
    (folder / FILE).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return partial(read_coco, folder / "images", folder / FILE)


def cases() -> Iterator[Case]:
    """All entries of this kind."""

    def case(name: str, data: Any, where: str, says: str, verdict: Verdict = Verdict.DATA) -> Case:
        return Case("coco", name, partial(build_coco, data), verdict, where, says)

    for name, (data, where, says) in NO_JSON.items():
        yield case(name, data, where, says)
    for name, kept in (("a quarter", 0.25), ("half", 0.5), ("all but a byte", 1)):
        cut = TEXT.encode()[: int(len(TEXT) * kept) - 1]
        line = cut.count(b"\n") + 1
        yield case(f"{name} of the file", cut, f"{FILE}:{line}", "not valid JSON")
    for pointer, values in WRONG.items():
        for name, value in values.items():
            yield case(f"{pointer} {name}", put(pointer, value), f"  {pointer}: ", FILE)
    for pointer, value in TWICE.items():
        yield case(f"{pointer} twice", put(pointer, value), f"{pointer}: ", "is already the id of")
    for pointer, text in DOUBLED.items():
        yield case(f"{pointer} key twice", text.encode(), f"  {pointer}: ", "holds the key")
    yield case(
        "/categories/1/name twice",
        put("/categories/1/name", "seven"),
        "/categories/1/name",
        "already the name of /categories/0",
    )
    for name, (box, kind) in UNTIDY.items():
        tree = put("/annotations/2/bbox", box)
        yield case(f"box {name}", tree, "/annotations/2/bbox", kind, Verdict.FINDING)
    for name, (pointer, value, kind) in ODD.items():
        yield case(name, put(pointer, value), "/annotations/0", kind, Verdict.FINDING)
    twin = put("/images/1/file_name", "./a.png")
    yield case("image listed twice", twin, "/images/1/file_name", "already the image of /images/0")
    fractions = [{**entry, "bbox": [0.1, 0.2, 0.3, 0.4]} for entry in TREE["annotations"]]
    yield case(
        "fractions", put("/annotations", fractions), "/annotations/0/bbox", "as fractions of"
    )
    red = put("/categories/0/name", "\x1b[31mred")
    yield case("name that commands terminals", red, "/categories/0/name", "a control character")
    gone = put("/images/1/file_name", "gone.png")
    yield case("image missing", gone, "gone.png", "missing_image", Verdict.FINDING)
    nothing = {**TREE, "images": [{**TREE["images"][0], "file_name": "gone.png"}]}
    nothing["annotations"] = TREE["annotations"][:2]
    yield case("every image missing", nothing, "gone.png", "none of the 1 images")
