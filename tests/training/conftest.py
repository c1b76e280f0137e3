"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_storage import BucketStorage, QuickStorage

from orchestrator.training.storage import Storage


@pytest.fixture(params=[QuickStorage, BucketStorage], ids=["local", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path / "run")
