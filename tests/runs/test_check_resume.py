"""``orchestrator check-resume`` on an experiment of its own, and on one that cheats."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.runs import check_resume as module
from orchestrator.runs.processes import RankTask, rank_main
from tests.support.chaos_run import EXPERIMENT


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    build_digits(tmp_path / "digits", Recipe(train=13, val=4, seed=3))
    file = tmp_path / "tiny.yaml"
    text = EXPERIMENT % json.dumps(str(tmp_path / "digits"))
    file.write_text(text.replace("ssd300_mobilenet_v2", "ssd300_mobilenet_v2, width: 0.1"))
    return file


def test_the_bits_are_the_same(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-resume", str(experiment), "--steps", "4", "--kills", "1"]) == 0
    output = capsys.readouterr().out
    assert "kill 1 of 1" in output
    assert "the same bits after 4 steps and 1 kills" in output
    digests = [line.split()[-1] for line in output.splitlines() if " unbroken " in line]
    assert len(digests) == 3
    assert all(len(digest) == 64 and output.count(digest) == 2 for digest in digests)


def whimsical_rank(task: RankTask) -> None:
    """A run that depends on more than its file: each start draws a learning rate."""
    from orchestrator.training.schedules import LearningRate

    factor = random.SystemRandom().uniform(0.5, 1.5)
    real = LearningRate.__call__

    def whim(self: Any, step: int) -> float:
        return factor * real(self, step)

    LearningRate.__call__ = whim  # type: ignore[method-assign]
    rank_main(task)


@pytest.mark.slow
def test_a_difference_is_found(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LocalRanks", partial(module.LocalRanks, target=whimsical_rank))
    assert main(["check-resume", str(experiment), "--steps", "3", "--kills", "1"]) == 70
    error = capsys.readouterr().err
    assert "not the same after 3 steps" in error
    assert "weights.safetensors" in error


def stopped_rank(task: RankTask) -> None:
    """Stands still after a few steps, as one whose disk or device does not answer."""
    from orchestrator.tracking.events import EventLog

    real = EventLog.metrics

    def metrics(self: Any, values: Any, *, step: int) -> None:
        real(self, values, step=step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGSTOP)

    EventLog.metrics = metrics  # type: ignore[method-assign]
    rank_main(task)


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_it(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LocalRanks", partial(module.LocalRanks, target=stopped_rank))
    words = ["check-resume", str(experiment), "cluster.hang_timeout=5", "--steps", "4"]
    assert main(words) == 70
    error = capsys.readouterr().err
    assert "stood still: rank0 (process " in error
    assert "gave no sign of life for " in error
    assert "Next: raise cluster.hang_timeout if that was only slow" in error


@pytest.mark.parametrize(("ends_at", "code"), [(4, 64), (3, 0)])
def test_only_what_was_killed_counts_as_a_kill(
    ends_at: int,
    code: int,
    experiment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ranks that are over at once, as those of a run that has all of its steps."""
    steps = iter([ends_at, 4, 4, 4])
    monkeypatch.setattr(module, "_finish", lambda *_: None)
    monkeypatch.setattr(module, "_kill", lambda *_: None if (at := next(steps)) == 4 else at)
    monkeypatch.setattr(module, "_newest", lambda _: 3)
    monkeypatch.setattr(module, "_digests", lambda _: {})
    made: list[str] = []
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: made.append(prefix) or str(own))
    own = experiment.parent / "own"
    own.mkdir()
    assert main(["check-resume", str(experiment), "--steps", "4", "--kills", "3"]) == code
    said = capsys.readouterr()
    assert "kill 2 of 3: too late, the run had ended" in said.out
    if code:
        assert "was over before any of 3 kills" in said.err
    else:
        assert "the same bits after 4 steps and 1 kills" in said.out
    assert not own.exists()


def test_what_its_ranks_were_refused_for_is_no_bug_of_the_check() -> None:
    plan: Any = SimpleNamespace(job=SimpleNamespace(run_dir="runs/whole"))
    with pytest.raises(StorageError, match="failed by itself"):
        # One met a full disk, and the other one lost it.
        module._require_success([70, 71, -9], plan)
    module._require_success([0, 0, 0], plan)
    with pytest.raises(OrchestratorError) as failed:
        module._require_success([0, 70], plan)
    assert failed.value.exit_code == 70


def test_too_little_to_check_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-resume", "x.yaml", "--kills", "0"]) == 64
    assert "--kills: found 0, allowed is a whole number >= 1" in capsys.readouterr().err
