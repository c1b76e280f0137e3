"""What several tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.storage.local import Storage
from tests.support.faulty_storage import BucketStorage, QuickStorage


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set; files that need another size make their own."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    build_digits(folder, Recipe(train=26, val=4, seed=3))
    return folder


@pytest.fixture(params=[QuickStorage, BucketStorage], ids=["local", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path / "run")
