"""What a run says of its progress, to a file and to a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.runs.progress import Narrator, duration, shown_progress
from orchestrator.tracking.events import Event, EventLog


def test_the_narrator_tells_where_training_is() -> None:
    narrator = Narrator(total_steps=100, epochs=10, batch_size=8)
    values = {"train/loss": 1.5, "train/images_per_s": 16.0, "train/epoch": 2.0}
    assert narrator.tell(Event(0, "metrics", 20, 0, values, "", 0)) is None
    assert narrator.line == ("epoch 2.00/10  step 20/100  loss 1.5000  16.0 images/s  0:40 left")
    scores = {"val/AP": 0.25, "val/AP50": 0.5, "val/AP75": 0.125}
    told = narrator.tell(Event(1, "metrics", 20, 0, scores, "", 0))
    assert told == "step 20: val AP 0.2500, AP50 0.5000, AP75 0.1250"
    assert narrator.step == 20
    assert narrator.tell(Event(2, "resume", 12, 0, {}, "from commit 12", 0)) == (
        "step 12: resume: from commit 12"
    )
    # The workers begin again, and nothing of the former ones is shown any more.
    assert narrator.step == 12
    assert narrator.waiting == "step 12/100  waiting for the first batch"
    narrator.tell(Event(3, "metrics", 13, 0, values, "", 0))
    assert narrator.waiting == ""
    assert duration(59.6) == "1:00"
    assert duration(3725) == "1:02:05"


@pytest.fixture
def job(tmp_path: Path) -> Any:
    return SimpleNamespace(
        path=tmp_path,
        total_steps=4,
        experiment=SimpleNamespace(train=SimpleNamespace(epochs=1)),
        schedule=SimpleNamespace(batch_size=2),
    )


def test_progress_is_plain_lines_where_nobody_watches(job: Any) -> None:
    log = EventLog(job.path / "events.jsonl")
    log.note("start", "long ago", step=0)
    offset = (job.path / "events.jsonl").stat().st_size
    output = io.StringIO()
    with shown_progress(job, Console(file=output, width=200), offset=offset):
        log.metrics({"train/loss": 2.0, "train/images_per_s": 4.0, "train/epoch": 0.5}, step=2)
        log.note("resume", "from [commit] 2", step=2)
    log.close()
    text = output.getvalue()
    assert "step 2/4  loss 2.0000" in text
    assert "from [commit] 2" in text
    assert "long ago" not in text
    assert "\x1b" not in text


def test_a_terminal_gets_a_bar(job: Any) -> None:
    log = EventLog(job.path / "events.jsonl")
    output = io.StringIO()
    terminal = Console(file=output, width=120, force_terminal=True)
    with shown_progress(job, terminal, offset=0):
        log.metrics({"train/loss": 2.0, "train/images_per_s": 4.0, "train/epoch": 0.5}, step=2)
        log.note("evaluation", "a line of its own", step=2)
    log.close()
    assert "\u2501" in output.getvalue()
    assert "step 2/4  loss 2.0000" in output.getvalue()
    assert "a line of its own" in output.getvalue()
