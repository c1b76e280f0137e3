"""A package with a reader: CSV files of one box a line, ``image,class,x1,y1,x2,y2`` in pixels."""

import csv

from orchestrator.data.findings import Problems, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.build import build_dataset, missing_files
from orchestrator.data.readers.text_files import BoxList, header_sizes, images_of


def read_csv(images, annotations, classes, rules):
    with annotations.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if classes is None:
        names = tuple(sorted({row["class"] for row in rows}))
        classes = LabelMap(names, tuple(range(1, len(names) + 1)))
    files = sorted({row["image"] for row in rows})
    missing_files(images, files, annotations, rules)
    sizes, findings = header_sizes(images, files, rules.orientation)
    position = {file: index for index, file in enumerate(files)}
    boxes, problems = BoxList(), Problems(str(annotations))
    for line, row in enumerate(rows, start=2):
        if row["class"] not in classes.names:
            problems.add(f"line {line}", f"class {row['class']!r} is none of {classes.names}")
            continue
        x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
        label = classes.names.index(row["class"])
        boxes.add(position[row["image"]], (x1, y1, x2 - x1, y2 - y1), label, False, line)
    problems.raise_any()
    result = build_dataset(
        images,
        classes,
        images_of(files, sizes),
        boxes.columns(),
        source=annotations,
        place=lambda box: f"{annotations.name}:{boxes.lines[box]}",
        rules=rules,
    )
    return ReadResult(result.dataset, (*findings, *result.findings))
