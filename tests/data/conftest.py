from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.findings import ReadResult
from orchestrator.data.readers.coco import read_coco
from tests.support.data_cases import write_coco


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 images with three boxes each; read only."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, 22)
    return folder


@pytest.fixture
def read_tree(tmp_path: Path) -> Callable[[Any], ReadResult]:
    """Reads a COCO tree, or text in its place, with the image files it names present."""

    def read(tree: Any) -> ReadResult:
        (tmp_path / "images").mkdir(exist_ok=True)
        if isinstance(tree, dict) and isinstance(tree.get("images"), list):
            for image in tree["images"]:
                if isinstance(image, dict) and isinstance(image.get("file_name"), str):
                    (tmp_path / "images" / (image["file_name"] or "empty")).touch()
        path = tmp_path / "instances.json"
        if isinstance(tree, bytes):
            path.write_bytes(tree)
        else:
            path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
        return read_coco(tmp_path / "images", path)

    return read
