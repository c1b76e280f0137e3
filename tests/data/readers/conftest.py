"""What tests of annotation readers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.findings import ReadResult
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.paths import ReadRules
from tests.support.odd_annotations import Read, tree_of


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read_tree(entries: list[dict[str, Any]], **more: Any) -> ReadResult:
        path = tmp_path / "a.json"
        path.write_text(json.dumps(tree_of(entries, **more)))
        return read_coco(tmp_path, path, ReadRules(need_images=False))

    return read_tree
