"""Two hundred starts of one run: no descriptor, no thread, no file and no memory is left over."""

from __future__ import annotations

import gc
from pathlib import Path
from unittest import mock

import psutil
import pytest

from orchestrator.data.stream.local import LocalStream
from orchestrator.storage.run_files import SAMPLES
from orchestrator.training import session
from orchestrator.training.session import run_rank
from tests.support.chaos_run import CPU, small_detector, small_plan

STARTS = 200
#: Starts after which caches are full.
WARM = 40
#: Of memory, for what allocators keep: a leak of one state a start would be 20 times as much.
SLACK_BYTES = 24 << 20


@pytest.mark.chaos
def test_two_hundred_starts_leave_nothing(tmp_path: Path, digits: Path) -> None:
    process = psutil.Process()
    run_dir = tmp_path / "run"
    counts: list[tuple[int, int, int]] = []
    memory: list[int] = []
    with mock.patch.object(session, "build_detector", small_detector):
        for start in range(1, STARTS + 1):
            plan = small_plan(
                run_dir,
                digits,
                "train.epochs=40",
                f"train.max_steps={start}",
                "train.checkpoint.keep_last=3",
                "train.checkpoint.keep_best=1",
            )
            # Evidence of a start that was killed in the middle of a commit.
            torn = run_dir / "ckpt" / f"{start:09d}.tmp-{start:032x}"
            torn.mkdir(parents=True)
            (torn / "weights.safetensors").write_bytes(b"torn")
            outcome = run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
            assert (outcome.resumed_from, outcome.steps) == (start - 1, start)
            gc.collect()
            # A picture of every evaluation is kept.
            kept = {path for path in run_dir.rglob("*") if path.is_file()}
            files = len(kept - set((run_dir / SAMPLES).iterdir()))
            counts.append((files, process.num_fds(), process.num_threads()))
            memory.append(process.memory_info().rss)
    assert max(counts[WARM:]) == counts[WARM], (counts[WARM], max(counts))
    assert {count[1:] for count in counts[WARM:]} == {counts[WARM][1:]}
    assert memory[-1] - memory[WARM] < SLACK_BYTES
