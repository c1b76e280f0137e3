"""A run small enough to be killed hundreds of times, and the books that are kept about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor, nn

from detectors.base import Detector
from detectors.structures import Candidates, LossTerm, Targets
from orchestrator.accelerators import Accelerator
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.resolve import load_experiment
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs import plan as planning
from orchestrator.runs import processes
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.runs.processes import LocalRanks, RankTask, rank_main
from orchestrator.storage.local import LocalStorage
from orchestrator.tracking.events import read_events
from orchestrator.training import session
from tests.support.child_processes import CHILDREN, start_server
from tests.support.faulty_storage import FaultyStorage, Moment, QuickStorage

CPU = Accelerator("cpu")
_KIND: Any = os.environ.get("ORCHESTRATOR_TEST_DEVICE", "cpu")
#: What the small run computes on, where a test does not ask for a CPU: see
#: ``tests/devices/test_promises_on_the_simulated_npu.py``.
DEVICE = Accelerator(_KIND)
STEPS = 12
#: Seconds after which a start that should have ended hangs; long, for machines with other work.
HANGS = 600.0
EXPERIMENT = """
name: chaos
detector: {name: ssd, variant: ssd300_mobilenet_v2}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 2
  batch_size: 4
  optimizer: {name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 0.001}
  schedule: {name: cosine, warmup_steps: 3}
  clip_norm: 1.0
  ema: {decay: 0.9, warmup_steps: 4}
  checkpoint: {every_steps: 1, keep_last: 20}
  log_every_steps: 1
tracking: {mlflow: null}
"""


class SmallDetector(Detector):
    """All kinds of state that a step changes, at a millisecond a step."""

    def __init__(self) -> None:
        super().__init__(
            title="small",
            input_size=(16, 16),
            num_classes=10,
            pixel_mean=(0, 0, 0),
            pixel_std=(255, 255, 255),
        )
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.drop(self.norm(self.conv(self.normalize(images))).relu())
        return {"boxes": self.head(features.mean((2, 3)))}

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        wanted = (targets.boxes * targets.valid.unsqueeze(-1)).sum(1) / 64
        error = (self(images)["boxes"] - wanted).square()
        count = error.new_full((), 2 * len(images))
        return {
            "near": LossTerm(error[:, :2].sum(), count),
            "far": LossTerm(error[:, 2:].sum(), count),
        }

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        boxes = raw["boxes"][:, None] + raw["boxes"].new_tensor([0.0, 0.0, 8.0, 8.0])
        return Candidates(boxes, boxes.new_full((len(boxes), 1, 10), 0.5))


def small_detector(*_: Any, **__: Any) -> SmallDetector:
    return SmallDetector()


def small_plan(folder: Path, data: Path, *overrides: str) -> Plan:
    """A plan of ``STEPS`` steps in the run folder ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(EXPERIMENT % json.dumps(str(data)))
    with mock.patch.object(planning, "skeleton", small_detector):
        return make_plan(load_experiment(file, overrides), folder, threads=1)


@dataclass(frozen=True)
class Strike:
    """SIGKILL at one call of the storage that rank 0 writes its commits to.

    Attributes:
        number: of the call, from 0; None for none.
        moment: of that call.
        list_in: file that an unbroken start leaves its calls in, one a line.
    """

    number: int | None
    moment: Moment = "before"
    list_in: str | None = None


class RecordingStream(LocalStream):
    """Writes down which samples each step was trained on, in a file for every process."""

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        book = Path(os.environ["CHAOS_BOOKS"]) / f"{os.getpid()}-rank{self.rank}.jsonl"
        with book.open("a") as file:
            for batch in super().train_batches(start_step, stop_step):
                # Unbuffered by the flush: what the kernel has survives the process.
                file.write(json.dumps([batch.step, batch.sample_ids.tolist()]) + "\n")
                file.flush()
                yield batch


def chaotic_rank(task: RankTask, books: str, strike: Strike) -> None:
    """Target of a rank: the product's own, with its samples recorded and perhaps doomed."""
    os.environ["CHAOS_BOOKS"] = books
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    storage = LocalStorage
    made: list[FaultyStorage] = []

    def doomed(path: Path) -> FaultyStorage:
        made.append(
            FaultyStorage(
                QuickStorage(path), strike_at=strike.number, moment=strike.moment, kill=True
            )
        )
        return made[-1]

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(session, "build_detector", small_detector))
        patches.enter_context(mock.patch.object(processes, "LocalStream", RecordingStream))
        chosen: Any = doomed if task.rank == 0 else storage
        patches.enter_context(mock.patch.object(session, "LocalStorage", chosen))
        try:
            rank_main(task)
        finally:
            if strike.list_in is not None and task.rank == 0:
                Path(strike.list_in).write_text("\n".join(made[0].calls))


def digests(run_dir: Path) -> dict[int, dict[str, str]]:
    """SHA-256 of weights, optimizer and average of every commit, verified against their bytes."""
    store = CommitStore(LocalStorage(run_dir))
    found = {}
    for commit in store.commits():
        files = {n: f for n, f in commit.manifest.files.items() if n.endswith(".safetensors")}
        assert sorted(files) == [
            "ema.safetensors", "optimizer.safetensors", "weights.safetensors",
        ]  # fmt: skip
        store.read_files(commit.step)
        found[commit.step] = {name: record.sha256 for name, record in files.items()}
    return found


def newest_step(run_dir: Path) -> int:
    """Step of the commit that the next start will go on from."""
    commit = CommitStore(LocalStorage(run_dir)).latest().commit
    return 0 if commit is None else commit.step


def finished_step(run_dir: Path) -> int:
    """Newest step that anybody has been told about."""
    return max((event.step for event in read_events(run_dir / "events.jsonl")), default=0)


@dataclass
class Books:
    """Which samples were trained on, over all starts of a run.

    Attributes:
        folder: where its processes write.
        starts: of each start: the step it had to begin at, and the processes' books.
    """

    folder: Path
    starts: list[tuple[int, list[Path]]]

    @classmethod
    def in_folder(cls, folder: Path) -> Books:
        folder.mkdir()
        return cls(folder, [])

    def close_start(self, begun_at: int) -> None:
        """Take in what the processes of one start left."""
        known = {book for _, books in self.starts for book in books}
        self.starts.append((begun_at, [b for b in self.folder.iterdir() if b not in known]))

    def check(self, plan: Plan, *, until: int) -> int:
        """Nothing lost, nothing repeated in the line of steps that led to the weights.

        Returns:
            The most steps that one start had to repeat.
        """
        world = plan.job.experiment.cluster.workers
        ends = [begin for begin, _ in self.starts[1:]] + [until]
        trained: dict[int, list[int]] = {}
        repeated = 0
        for (begin, books), end in zip(self.starts, ends, strict=True):
            for book in books:
                rank = int(book.stem.rpartition("rank")[2])
                lines = [json.loads(line) for line in book.read_text().splitlines()]
                assert [step for step, _ in lines] == list(range(begin, begin + len(lines)))
                for step, samples in lines:
                    # Also of the steps that a kill undid: whoever redoes one sees the same.
                    assert samples == plan.job.schedule.rank_samples(step, rank, world).tolist()
                    if step < end:
                        trained.setdefault(step, []).extend(samples)
                repeated = max(repeated, begin + len(lines) - 1 - end)
        assert sorted(trained) == list(range(until))
        length = plan.job.schedule.steps_per_epoch
        for first in range(0, until, length):
            epoch = np.concatenate([trained[s] for s in range(first, min(first + length, until))])
            assert len(np.unique(epoch)) == len(epoch) == min(length, until - first) * 4
        return repeated


class Chaos:
    """Starts of one run and what has become of it.

    Attributes:
        plan: what is trained.
        books: its samples.
    """

    def __init__(self, folder: Path, data: Path, *overrides: str) -> None:
        start_server()
        self.plan: Plan = small_plan(folder / "run", data, *overrides)
        self.books = Books.in_folder(folder / "books")

    @property
    def run_dir(self) -> Path:
        return self.plan.job.path

    def ranks(self, strike: Strike | None = None) -> LocalRanks:
        """The processes of one more start."""
        arguments: Any = (str(self.books.folder), strike or Strike(None))
        return LocalRanks(
            self.plan,
            accelerator=DEVICE,
            target=chaotic_rank,
            arguments=arguments,
            context=CHILDREN,
        )

    def run(self, strike: Strike | None = None) -> list[int]:
        """Start and wait; returns the exit codes."""
        with self.ranks(strike) as ranks:
            codes = ranks.join(HANGS)
        assert codes is not None, "hangs"
        return codes
