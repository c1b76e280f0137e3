"""Spoils boxes of a COCO data set in four ways and scores what `check --with` suggests.

    python benchmarks/study_label_errors.py spoil FILE.json SPOILT.json [--share 0.05] [--seed 1]
    orchestrator run EXPERIMENT.yaml data.train.annotations=SPOILT.json ...
    orchestrator check EXPERIMENT.yaml data.train.annotations=SPOILT.json --with RUN \
        --suspects FOLDER
    python benchmarks/study_label_errors.py score SPOILT.json [SPOILT.json ...] FOLDER/suspects.json

A quarter of the share each is left out, gets another class, is moved by 0.5 to 0.8 of its sides, or
is added where no box is. What was done is written beside the file, as SPOILT.json.answers.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("missed", "wrong_class", "wrong_place", "spurious")
#: Overlap from which a suggestion that names no annotation is taken to mean a box left out.
SAME_PLACE = 0.5


def spoil(tree: dict[str, Any], share: float, seed: int) -> list[dict[str, Any]]:
    """Spoil ``tree`` in place and return what was done."""
    rng = np.random.default_rng(seed)
    annotations = tree["annotations"]
    count = round(share * len(annotations))
    chosen = rng.permutation(len(annotations))[:count].tolist()
    size_of = {image["id"]: (image["width"], image["height"]) for image in tree["images"]}
    classes = [category["id"] for category in tree["categories"]]
    answers, gone, added = [], set(), []
    for number, row in enumerate(chosen):
        one = annotations[row]
        kind = KINDS[number % len(KINDS)]
        about = {"kind": kind, "image_id": one["image_id"], "annotation_id": one["id"]}
        if kind == "missed":
            gone.add(row)
            about |= {"bbox": one["bbox"], "annotation_id": None}
        elif kind == "wrong_class":
            others = [category for category in classes if category != one["category_id"]]
            one["category_id"] = int(rng.choice(others))
        elif kind == "wrong_place":
            x, y, w, h = one["bbox"]
            width, height = size_of[one["image_id"]]
            for _ in range(1000):
                way = rng.uniform(0, 2 * np.pi)
                far = rng.uniform(0.5, 0.8)
                moved = [x + far * w * np.cos(way), y + far * h * np.sin(way), w, h]
                if inside(moved, width, height):
                    one["bbox"] = moved
                    break
            else:
                continue
        else:
            image = int(rng.choice(list(size_of)))
            like = annotations[int(rng.integers(len(annotations)))]
            box = free_place(rng, annotations, image, like["bbox"], size_of[image])
            if box is None:
                continue
            fresh = max(a["id"] for a in annotations) + 1 + len(added)
            entry = {"id": fresh, "image_id": image, "category_id": like["category_id"]}
            added.append(entry | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
            about |= {"image_id": image, "annotation_id": fresh}
        answers.append(about)
    tree["annotations"] = [a for row, a in enumerate(annotations) if row not in gone] + added
    return answers


def inside(box: Sequence[float], width: float, height: float) -> bool:
    x, y, w, h = box
    return x >= 0 and y >= 0 and x + w <= width and y + h <= height


def free_place(
    rng: np.random.Generator,
    annotations: Sequence[dict[str, Any]],
    image: int,
    like: Sequence[float],
    size: tuple[float, float],
) -> list[float] | None:
    """A box as large as ``like`` that overlaps none of an image by more than 0.1."""
    w, h = like[2:]
    others = [a["bbox"] for a in annotations if a["image_id"] == image]
    for _ in range(1000):
        if w >= size[0] or h >= size[1]:
            return None
        box = [float(rng.uniform(0, size[0] - w)), float(rng.uniform(0, size[1] - h)), w, h]
        if all(overlap(box, other) <= 0.1 for other in others):
            return box
    return None


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / (a[2] * a[3] + b[2] * b[3] - inter)


def right(suspect: dict[str, Any], answers: Sequence[dict[str, Any]]) -> str | None:
    """Kind of the spoilt box that a suggestion points at; None if at none."""
    for answer in answers:
        if answer["image_id"] != suspect["image_id"]:
            continue
        if suspect["annotation_id"] is not None:
            if suspect["annotation_id"] == answer["annotation_id"]:
                return str(answer["kind"])
        elif answer["kind"] == "missed" and overlap(suspect["bbox"], answer["bbox"]) >= SAME_PLACE:
            return "missed"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("spoil")
    one.add_argument("source", type=Path)
    one.add_argument("target", type=Path)
    one.add_argument("--share", type=float, default=0.05)
    one.add_argument("--seed", type=int, default=1)
    two = verbs.add_parser("score")
    two.add_argument("spoilt", type=Path, nargs="+", help="splits whose ids are all different")
    two.add_argument("suspects", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "spoil":
        tree = json.loads(arguments.source.read_text())
        answers = spoil(tree, arguments.share, arguments.seed)
        arguments.target.write_text(json.dumps(tree))
        Path(f"{arguments.target}.answers.json").write_text(json.dumps(answers, indent=1))
        print(Counter(answer["kind"] for answer in answers))
        return
    files = [Path(f"{spoilt}.answers.json") for spoilt in arguments.spoilt]
    answers = [answer for file in files for answer in json.loads(file.read_text())]
    suspects = json.loads(arguments.suspects.read_text())["suspects"]
    hits = [right(suspect, answers) for suspect in suspects]
    for first in (10, 20, 50, 100):
        some = hits[:first]
        found = Counter(kind for kind in some if kind)
        print(f"first {first}: {sum(found.values()) / max(1, len(some)):.2f} right {dict(found)}")


if __name__ == "__main__":
    main()
