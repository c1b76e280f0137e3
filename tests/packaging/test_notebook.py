"""The notebook of the documents runs from top to bottom, without Jupyter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "python.ipynb"


def sources() -> list[str]:
    tree = json.loads(NOTEBOOK.read_text("utf-8"))
    assert tree["nbformat"] == 4
    cells = [cell for cell in tree["cells"] if cell["cell_type"] == "code"]
    # What a cell printed belongs to whoever ran it.
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    return ["".join(cell["source"]) for cell in cells]


def test_every_cell_can_be_compiled() -> None:
    for source in sources():
        compile(source, "cell", "exec")
    assert len(sources()) >= 6


@pytest.mark.ray
@pytest.mark.slow
def test_the_cells_run_in_their_order(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(sources())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean 'epochs'?" in done.stdout
    assert "done 4 toy" in done.stdout
    assert (tmp_path / "runs" / "toy" / "report.html").is_file()
