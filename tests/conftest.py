"""What several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny detector, two commits, averaged weights; only to be read."""
    from tests.inference.small_run import make_run

    return make_run(tmp_path_factory.mktemp("small"))
