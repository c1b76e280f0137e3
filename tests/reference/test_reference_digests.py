"""Nobody changes this program's numbers without a new numerics version and a word about it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from reference_run import ROOT, STEPS, STORED, kind_of_processor, run_portably

from orchestrator.runs.numerics import CHANGES, NUMERICS_VERSION

#: Relative, of three steps, for processors without stored digests. Kernels for AVX-512
#: in place of those for SSE4 move them by up to 7e-5, 3e-3 and 1.3e-2.
TOLERANCES = (5e-4, 1e-2, 5e-2)
RECORD = (
    "If the change of results was meant, raise the version in orchestrator/runs/numerics.py, say "
    "what changed there and in CHANGELOG.md, and run: "
    "python tests/reference/reference_run.py --record"
)


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(STORED.read_text())
    return tree


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return run_portably()


def test_the_stored_digests_are_of_this_numerics_version(stored: dict[str, Any]) -> None:
    assert stored["numerics_version"] == NUMERICS_VERSION, RECORD


def test_every_numerics_version_stands_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = [change.version for change in CHANGES]
    assert versions == list(range(2, NUMERICS_VERSION + 1))
    for version in versions:
        assert re.search(rf"\bnumerics version {version}\b", changelog, re.IGNORECASE), version


def test_every_recipe_gives_the_losses_it_gave(stored: dict[str, Any], now: dict[str, Any]) -> None:
    for name, run in now["runs"].items():
        assert len(run["losses"]) == len(stored["losses"][name]) == STEPS
        for loss, then, tolerance in zip(
            run["losses"], stored["losses"][name], TOLERANCES, strict=True
        ):
            assert loss == pytest.approx(then, rel=tolerance), (name, RECORD)


def test_every_recipe_gives_the_bits_it_gave(stored: dict[str, Any], now: dict[str, Any]) -> None:
    kind = kind_of_processor()
    if now["torch"] != stored["torch"]:
        pytest.skip(f"digests are of torch {stored['torch']}, this is {now['torch']}")
    if kind not in stored["digests"]:
        pytest.skip(f"no digests of {kind}; python tests/reference/reference_run.py --record adds")
    found = {
        name: {what: run[what] for what in ("batches", "weights")}
        for name, run in now["runs"].items()
    }
    assert found == stored["digests"][kind], RECORD
