"""The tracker that the documents give as an example follows a log and sends nothing twice."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

from orchestrator.tracking.events import EventLog

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


class Writer:
    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []

    def add_scalar(self, name: str, value: float, step: int, walltime: float) -> None:
        self.sent.append((name, value, step, walltime))

    def add_text(self, name: str, text: str, step: int, walltime: float) -> None:
        self.sent.append((name, text, step, walltime))

    def flush(self) -> None:
        pass


def test_it_brings_every_value_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    (source,) = re.findall(r"^```python\n(# follow\.py.*?)^```", PAGE.read_text(), re.S | re.M)
    example: dict[str, object] = {"__name__": "follow"}
    exec(compile(source, str(PAGE), "exec"), example)
    bring_up_to_date, writer = example["bring_up_to_date"], Writer()

    bring_up_to_date(tmp_path, tmp_path, writer)  # There is no log yet.
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: 2.5)
    log.metrics({"train/loss": 1.5, "train/lr": 0.1}, step=4)
    bring_up_to_date(tmp_path, tmp_path, writer)
    log.close()
    # A run that was killed repeats step 4.
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: 3.5)
    log.note("resume", "from commit 2", step=2)
    log.metrics({"train/loss": 1.5, "train/lr": 0.1}, step=4)
    log.metrics({"train/loss": math.inf}, step=6)
    bring_up_to_date(tmp_path, tmp_path, writer)
    bring_up_to_date(tmp_path, tmp_path, writer)
    log.close()
    assert writer.sent == [
        ("train/loss", 1.5, 4, 2.5),
        ("train/lr", 0.1, 4, 2.5),
        ("resume", "from commit 2", 2, 3.5),
        ("train/loss", math.inf, 6, 3.5),
    ]
