"""What tests of the stream share."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.stream.assemble import BatchPlan
from tests.support.data_cases import make_plan


@pytest.fixture
def plan(coco_folder: Path) -> BatchPlan:
    """Of the small COCO data set, as it is."""
    return make_plan(coco_folder)
