"""Benchmarks that got slower are told, against runs on the same kind of processor alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.fixture
def results(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("kept_results", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FILE = tmp_path / "results.jsonl"
    return module


def line(processor: str, **ratios: float):
    return {"benchmark": "nms", "processor": processor, "load": 0.1, "ratios": ratios}


def test_a_lower_ratio_is_told(results):
    before = [line("A", soft=4.0, hard=2.0), line("A", soft=5.0, hard=2.0), line("B", soft=1.0)]
    slower, summary = results.compared([*before, line("A", soft=3.9, hard=1.9, new=1.0)], "A")
    assert slower == "nms: slower: soft: 3.9, usual 4.5"
    assert summary == (
        "nms: 1 of 2 ratios lower than usual, in 2 earlier runs on this processor; load 0.1"
    )


def test_a_first_run_has_nothing_to_be_compared_with(results):
    (summary,) = results.compared([line("B", soft=9.0), line("A", soft=1.0)], "A")
    assert summary.startswith("nms: 0 of 0 ratios")


def test_what_is_kept_can_be_compared(results, capsys):
    results.keep("nms", {"soft": 4.00001})
    results.keep("nms", {"soft": 2.0})
    kept = [json.loads(text) for text in results.FILE.read_text().splitlines()]
    assert kept[0]["ratios"] == {"soft": 4.0}
    assert kept[0]["commit"]
    results.main()
    assert "nms: slower: soft: 2, usual 4\n" in capsys.readouterr().out
