"""What tests of prediction share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def images(small_run):
    """Folder of the images that the small run has trained on."""
    return small_run.parent / "squares" / "images"
