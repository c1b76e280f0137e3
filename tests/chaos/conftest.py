from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos_run import STEPS, Chaos, digests


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[int, Path]:
    """Folders of runs that nothing happened to, by number of ranks."""
    found: dict[int, Path] = {}
    for world in (1, 2):
        chaos = Chaos(tmp_path_factory.mktemp("unbroken"), digits, f"cluster.workers={world}")
        assert chaos.run() == [0] * world
        found[world] = chaos.run_dir
    return found


@pytest.fixture(scope="session")
def unbroken(whole: dict[int, Path]) -> dict[int, Any]:
    """Digests of every step of these runs."""
    found: dict[int, Any] = {}
    for world, run_dir in whole.items():
        found[world] = digests(run_dir)
        assert sorted(found[world]) == list(range(1, STEPS + 1))
        assert len({one["weights.safetensors"] for one in found[world].values()}) == STEPS
    return found
