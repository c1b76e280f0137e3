"""The check of a bare machine runs to its end, with nothing but what such a machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import simulated_npu

ROOT = Path(__file__).parents[2]

#: What a bare machine has, and what is brought along, by the names it is imported by.
THERE = ("torch", "torchvision", "numpy", "cv2", "pydantic", "yaml", "safetensors")
OWN = {"detectors", "native", "orchestrator", "tests"}


def lacking() -> list[str]:
    """Packages of this environment that a bare machine lacks."""
    owners = metadata.packages_distributions()
    there: set[str] = set()
    pending = [owners[name][0] for name in THERE]
    while pending:
        name = canonicalize_name(pending.pop())
        if name in there:
            continue
        there.add(name)
        needed = [Requirement(line) for line in metadata.requires(name) or ()]
        pending += [n.name for n in needed if n.marker is None or n.marker.evaluate({"extra": ""})]
    names = {name for name, by in owners.items() if not there & set(map(canonicalize_name, by))}
    return sorted(names - OWN - sys.stdlib_module_names)


#: A process in which they cannot be imported.
BARE = """
import json, os, sys
device, lacking, *rest = sys.argv[1:]
sys.modules.update(dict.fromkeys(json.loads(lacking)))
if device == "npu":
    from tests.support import simulated_npu
    simulated_npu.install()
from orchestrator.benchmark.check_device import main
sys.exit(main(["--quick", "--device", device, *rest]))
"""


def check(folder: Path, device: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-c", BARE, device, json.dumps(lacking())),
            *("--output", str(folder), *arguments),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {
        path.stem.partition("_")[2]: json.loads(path.read_text())
        for path in sorted(folder.glob("*.json"))
    }


def test_a_part_of_it_needs_nothing_that_a_bare_machine_lacks(tmp_path: Path) -> None:
    assert {"ray", "mlflow", "pyarrow", "pycocotools", "pandas"} < set(lacking())
    assert not {"torch", "cv2", "pydantic_core", "yaml"} & set(lacking())
    found = check(tmp_path, "cpu", "--parts", "feeding", "checkpoint")
    assert list(found) == ["machine", "feeding", "checkpoint"]
    assert found["feeding"]["512 one core"] > 0
    assert found["checkpoint"]["bytes"] > 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_all_of_it(device: str, tmp_path: Path) -> None:
    if device == "npu" and simulated_npu.missing():
        pytest.skip(str(simulated_npu.missing()))
    # So that a machine with other work to do leaves nothing out.
    found = check(tmp_path, device, "--seconds", "5400")
    assert len(found) == 9
    assert not any("error" in part for part in found.values())
    for detector, result in found["correctness"].items():
        if detector != "seconds":
            assert result["same_bits_twice"], detector
            assert not result["bad_step_applied"], detector
            assert result["bad_step_changed"] == [], detector
            # In another layout sums have another order, and fresh networks make much of it.
            assert result["apart_from_cpu"] <= (0 if device == "cpu" else 0.05), detector
    assert found["evaluation"]["bytes_an_image"] <= 100_000
