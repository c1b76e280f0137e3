"""A detector of another package trains, goes on, is scored, and is exported like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from tests.support.small_run import make_data, make_run

DETECTOR = (
    "detector={name: tiny_fcos, postprocess: {score_threshold: 0.001}}",
    "train.epochs=2",
    "train.evaluate_every_epochs=1",
    "train.checkpoint={every_steps: 1, keep_last: 9}",
)


def result(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((run / "result.json").read_text())
    return tree


def test_a_detector_from_outside_is_a_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "squares"
    make_data(data)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = make_run(tmp_path / "whole", *DETECTOR, data=data)
    make_run(tmp_path / "parts", *DETECTOR, "train.max_steps=4", data=data)
    parts = make_run(tmp_path / "parts", *DETECTOR, data=data)
    assert result(whole)["weights_sha256"] == result(parts)["weights_sha256"]

    assert main(["evaluate", str(whole), "--output", str(tmp_path / "scores")]) == 0
    exported = tmp_path / "fcos.pt2"
    assert main(["export", str(whole), "--format", "pt2", "--output", str(exported)]) == 0
    assert exported.stat().st_size > 100_000

    capsys.readouterr()
    assert main(["models", "tiny_fcos"]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split()[:4] == ["tiny_fcos", "128", "x", "128"]
    assert row.split()[-1] == "0"  # no priors
