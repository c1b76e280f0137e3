"""Every malformed input of the catalogue ends in its documented verdict, and says where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from catalogue import CASES
from catalogue_case import Case, identity, outcome

#: Above what the interpreter and the libraries take, in bytes.
_MEMORY = 200 << 20


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_malformed_input_ends_in_its_verdict(case: Case, tmp_path: Path) -> None:
    verdict, message = outcome(case.build(tmp_path))
    assert verdict is case.verdict, message
    assert case.where, "every entry names the place that the message must name"
    assert case.where in message
    assert case.says in message


def test_catalogue_has_three_hundred_distinct_inputs(tmp_path: Path) -> None:
    names = Counter(map(str, CASES))
    assert [name for name, times in names.items() if times > 1] == []
    seen: dict[str, str] = {}
    same = []
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = seen.setdefault(identity(folder, case.build(folder)), str(case))
        if name != str(case):
            same.append((name, str(case)))
    assert same == []
    assert len(seen) >= 300


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_no_malformed_input_takes_much_memory(tmp_path: Path) -> None:
    script = Path(__file__).with_name("measure_memory.py")
    root = script.parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    growth = json.loads(done.stdout)
    assert len(growth) == len(CASES)
    assert {name: extra for name, extra in growth.items() if extra > _MEMORY} == {}
