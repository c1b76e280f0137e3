"""The catalogue: every malformed input that has a documented verdict, kind by kind."""

from __future__ import annotations

import cases_archives
import cases_coco
import cases_images
import cases_layouts
import cases_lines
import cases_paths
import cases_voc
import cases_yaml

CASES = [
    case
    for kind in (
        cases_images,
        cases_coco,
        cases_voc,
        cases_lines,
        cases_layouts,
        cases_yaml,
        cases_paths,
        cases_archives,
    )
    for case in kind.cases()
]
