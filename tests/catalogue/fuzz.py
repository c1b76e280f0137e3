"""Random damage to sound input, for as long as asked: only documented errors may come of it.

``make fuzz SECONDS=3600`` runs this file; ``test_fuzz.py`` tries a few examples of each target.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from cases_coco import TEXT, TREE, build_coco
from cases_images import SOUND, build_image
from cases_layouts import DATA_YAML, build_folder
from cases_lines import build_classes, build_labels, build_list, build_txt
from cases_voc import XML, build_voc
from cases_yaml import YAML, build_yaml
from catalogue_case import HangError, outcome
from fuzz_readers import (
    CLASS_MAP,
    INPUTS,
    MIXTURES,
    OBJ_DATA,
    OUTLINES,
    PREDICTIONS,
    RESULTS,
    TILED,
    build_bucket,
    build_class_map,
    build_inputs,
    build_predictions,
    build_results,
    build_task,
    read_mixture,
    read_tiles,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.data.findings import ReadResult

#: What parsers trip over, wherever it is put.
TOKENS = [
    *(bytes([value]) for value in b"\0\n\r\t \"'\\,:;<>&[]{}-+.%#!*|?@`~/0189"),
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\\ud800",
    b"../",
    b"/etc/passwd",
    b"1e999",
    b"-1",
    b"NaN",
    b"inf",
    b"99999999999999999999",
    b"null",
    b"true",
    b"<!DOCTYPE a>",
    b"<![CDATA[",
    b"&#0;",
    b"&a ",
    b"*a",
    b"!!int ",
    b"<<: ",
    b"---\n",
    b"a" * 300,
]
_ROUND = 200
_EDIT = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat", "cut", "flip"]),
    st.integers(0, 1 << 16),
    st.integers(1, 64),
    st.sampled_from(TOKENS) | st.binary(max_size=8),
)
_EDITS = st.lists(_EDIT, min_size=1, max_size=6)


def damaged(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """``data`` after the edits, one after the other."""
    for how, place, length, token in edits:
        at = place % (len(data) + 1)
        match how:
            case "insert":
                data = data[:at] + token + data[at:]
            case "replace":
                data = data[:at] + token + data[at + len(token) :]
            case "delete":
                data = data[:at] + data[at + length :]
            case "repeat":
                data = data[:at] + data[at : at + length] * 8 + data[at + length :]
            case "cut":
                data = data[:at]
            case _:
                data = (
                    data[:at] + bytes(255 - value for value in data[at : at + 1]) + data[at + 1 :]
                )
    return data


def check(build: Callable[[Path], partial[Any]]) -> None:
    """Read what ``build`` makes; whatever is no documented error is raised, a hang too."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = build(Path(folder))
        outcome(partial(_read, call))


def _read(call: partial[Any]) -> Any:
    """The result, used as a run uses it."""
    result = call()
    if isinstance(result, ReadResult):
        data = result.dataset
        assert len(data.digest) == len(data.content_digest) == 64
        for index in range(len(data)):
            data.training_boxes(index)
    return result


def images(drawn: tuple[str, list[Any]]) -> None:
    """A damaged image file."""
    kind, edits = drawn
    check(partial(build_image, damaged(SOUND[kind], edits), "a.jpg"))


def text(sound: str, build: Callable[[bytes, Path], partial[Any]], edits: list[Any]) -> None:
    """A damaged file of text."""
    check(partial(build, damaged(sound.encode(), edits)))


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([1e308, 10**400, -1, 1 << 63, "../a.png", "\ud800", "a\0"]),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
_TABLES = st.sampled_from(["images", "annotations", "categories"])


_VALUES = st.lists(
    st.tuples(_TABLES, st.integers(0, 5), st.integers(0, 9), _JSON), min_size=1, max_size=4
)


def coco_values(edits: list[Any]) -> None:
    """A sound COCO tree with other values in some places."""
    tree = copy.deepcopy(TREE)
    for table, row, column, value in edits:
        rows = tree[table]
        if not isinstance(rows, list) or column == 9:
            tree[table] = value
            continue
        if not rows or not isinstance(rows[row % len(rows)], dict):
            rows.append(value)
            continue
        entry = rows[row % len(rows)]
        entry[sorted(entry)[column % len(entry)] if entry else "id"] = value
    check(partial(build_coco, tree))


_SLOTS = st.lists(st.tuples(st.integers(0, 1 << 16), _JSON), min_size=1, max_size=3)


def tree_values(
    sound: Any, build: Callable[[bytes, Path], partial[Any]], edits: list[tuple[int, Any]]
) -> None:
    """A sound tree with other values in some places, as JSON, which YAML also is."""
    tree = copy.deepcopy(sound)
    for place, value in edits:
        slots = list(_slots(tree))
        holder, key = slots[place % len(slots)] if slots else ({}, 0)
        holder[key] = value
    check(partial(build, json.dumps(tree).encode()))


def _slots(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in a tree, with what holds it."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(entries):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _slots(value)


_KEYS = st.sampled_from(
    ["seed", "name", "train", "train.epochs", "data.train.images", "detector", "data.augmentation"]
)


_OVERRIDES = st.tuples(
    st.lists(_KEYS | st.text(max_size=12), max_size=3), st.text(max_size=12), _EDITS
)


def overrides(drawn: tuple[list[str], str, list[Any]]) -> None:
    """Overrides of known and unknown keys with any text."""
    keys, other, edits = drawn
    value = damaged(b"[1, {a: b}]", edits).decode("utf-8", "replace")
    given_ones = (*(f"{key}={value}" for key in keys), other)
    check(partial(build_yaml, YAML.encode(), given_ones))


def drawn_values(read: Callable[[Any, Path], None], drawn: Any) -> None:
    """Sound files of any values."""
    check(lambda folder: partial(read, drawn, folder))


#: Name to what is drawn, and what is done with it.
TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "images": (st.tuples(st.sampled_from(sorted(SOUND)), _EDITS), images),
    "coco_values": (_VALUES, coco_values),
    "overrides": (_OVERRIDES, overrides),
    "mixture": (MIXTURES, partial(drawn_values, read_mixture)),
    "tiles": (TILED, partial(drawn_values, read_tiles)),
    **{
        f"{name}_values": (_SLOTS, partial(tree_values, sound, build))
        for name, sound, build in (
            ("data_yaml", yaml.safe_load(DATA_YAML), partial(build_folder, "data.yaml")),
            ("class_map", json.loads(CLASS_MAP), build_class_map),
            ("results", json.loads(RESULTS), build_results),
            ("predictions", json.loads(PREDICTIONS), build_predictions),
        )
    },
    **{
        name: (_EDITS, partial(text, sound, build))
        for name, sound, build in (
            ("coco_text", TEXT, build_coco),
            ("voc_xml", XML, lambda data, folder: build_voc(data, b"a\n", folder)),
            ("voc_set", "a\nb\n", lambda data, folder: build_voc(XML.encode(), data, folder)),
            ("txt", 'a.png 1,2,11,10,1 5,5,9,9,0,1\n"b.png" 0,0,4,4,1\n', build_txt),
            ("yolo_labels", "1 0.5 0.5 0.25 0.25\n0 0.1 0.1 0.1 0.1\n", build_labels),
            ("yolo_list", "images/a.png\n./images/b.png\n", build_list),
            ("classes", "background\ncat\ntraffic light\n", build_classes),
            ("yaml", YAML, lambda data, folder: build_yaml(data, (), folder)),
            ("data_yaml", DATA_YAML, partial(build_folder, "data.yaml")),
            ("obj_data", OBJ_DATA, partial(build_folder, "obj.data")),
            ("outlines", OUTLINES, partial(build_task, "segment")),
            ("turned", OUTLINES, partial(build_task, "obb")),
            ("key_points", OUTLINES, partial(build_task, "pose")),
            ("class_map", CLASS_MAP, build_class_map),
            ("results", RESULTS, build_results),
            ("predictions", PREDICTIONS, build_predictions),
            ("inputs", INPUTS, build_inputs),
            ("bucket", "s3://bucket/prefix?region=eu&endpoint_override=127.0.0.1:9", build_bucket),
        )
    },
}


def attempt(name: str, examples: int) -> None:
    """Try so many examples of a target, each without a limit on its time but ``PATIENCE``."""
    strategy, try_one = TARGETS[name]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def property_of_target(drawn: Any) -> None:
        try_one(drawn)

    property_of_target()


def main(seconds: float) -> int:
    """Try one target after the other until the time is up, and go on after a failure."""
    end = time.monotonic() + seconds
    rounds: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    while time.monotonic() < end:
        for name in TARGETS:
            if time.monotonic() >= end:
                break
            rounds[name] += 1
            try:
                attempt(name, _ROUND)
            except (Exception, HangError) as error:
                failed[name] += 1
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                print(*getattr(error, "__notes__", ()), sep="\n", flush=True)
    for name, count in rounds.items():
        print(f"{name:<18} {count:>5} rounds of {_ROUND} examples, {failed[name]} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
