"""What is kept of a step whose loss, gradient or weights were not finite, so that it can be redone.

``<run>/nonfinite/<step>/`` holds for each rank its images as PNG files and the rest of its batch
as ``rank<r>.npz``; the files of the state that the step met, which a row of bad steps shares; and
``report.json``, written last, with what was seen, the experiment and the classes. Nothing else is
needed to repeat the step, on this machine or another.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detectors.weights.archives import look_through
from orchestrator.accelerators import Precision
from orchestrator.checkpoints.codec import STATE_NAME, TENSOR_FILES, TrainState, decode, encode
from orchestrator.checkpoints.source import weights_errors
from orchestrator.config.schema import Experiment
from orchestrator.data.batch import Batch
from orchestrator.data.decode import read_image
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError, StorageError
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import NONFINITE
from orchestrator.training.job import TrainingJob
from orchestrator.training.shards import Shards
from orchestrator.training.stepper import StepReport

REPORT_NAME = "report.json"
#: Steps kept of one run: the first ones tell the story, and a state may be large.
MOST_STEPS = 8

_ARRAYS = [f.name for f in fields(Batch) if f.name not in ("step", "images", "replaced")]


@dataclass(frozen=True)
class Evidence:
    """A kept step, read back.

    Attributes:
        path: its folder.
        report: content of ``report.json``.
        experiment: that was running.
        classes: its label map.
        state: what the step met; as it was after it, because such a step changes nothing.
        batches: by rank.
    """

    path: Path
    report: dict[str, Any]
    experiment: Experiment
    classes: LabelMap
    state: TrainState
    batches: list[Batch]


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir / NONFINITE / f"{step:09d}"


def has_room(run_dir: Path, step: int) -> bool:
    """Whether one more step may be kept."""
    return kept_steps(run_dir).count(step) > 0 or len(kept_steps(run_dir)) < MOST_STEPS


def kept_steps(run_dir: Path) -> list[int]:
    """Steps whose evidence is complete, in order."""
    reports = (run_dir / NONFINITE).glob(f"*/{REPORT_NAME}")
    return sorted(int(path.parent.name) for path in reports if path.parent.name.isdecimal())


def keep_batch(run_dir: Path, batch: Batch, *, rank: int) -> str | None:
    """Write one rank's batch; returns what went wrong, if anything did."""
    folder = _folder(run_dir, batch.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / f"rank{rank}.npz",
            allow_pickle=False,
            **{name: getattr(batch, name) for name in _ARRAYS},
        )
        for slot, image in enumerate(batch.images):
            _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            _image_file(folder, rank, slot).write_bytes(data.tobytes())
    except OSError as error:
        return str(error)
    return None


def _image_file(folder: Path, rank: int, slot: int) -> Path:
    return folder / f"rank{rank}-slot{slot:03d}.png"


def keep_report(
    job: TrainingJob,
    report: StepReport,
    *,
    step: int,
    learning_rate: float,
    precision: Precision,
    world: int,
    state: TrainState | None,
    state_of: int | None,
    shards: Shards,
) -> str | None:
    """Write state and report, which completes the evidence.

    Args:
        job: the run.
        report: of the step.
        step: its number, from 0.
        learning_rate: it would have been made with.
        precision: of forward and backward.
        world: number of ranks.
        state: what the step met; None when the step ``state_of`` met the same.
        state_of: step whose folder holds the state.
        shards: how its batch was cut.

    Returns:
        What went wrong, if anything did.
    """
    folder = _folder(job.path, step)
    tree = {
        "step": step,
        "state_of": state_of,
        # Text, because JSON has no NaN and no infinities.
        "losses": {name: str(value) for name, value in report.losses.items()},
        "gradient_norm": str(report.gradient_norm),
        "weights_finite": report.sound,
        "learning_rate": learning_rate,
        "precision": precision,
        "threads": job.threads,
        "world": world,
        "virtual_shards": shards.count,
        "experiment": json.loads(job.experiment.model_dump_json(by_alias=True)),
        "label_map": json.loads(job.label_map.to_json()),
    }
    try:
        if state is not None:
            for name, chunks in encode(state).items():
                with (folder / name).open("wb") as file:
                    file.writelines(chunks)
        write_atomic(folder / REPORT_NAME, json.dumps(tree, indent=1, allow_nan=False).encode())
    except OSError as error:
        return str(error)
    return None


def read(run_dir: Path, step: int | None = None) -> Evidence:
    """Read a kept step back.

    Args:
        run_dir: the run folder.
        step: None for the newest.

    Raises:
        StorageError: there is no such evidence, or it is incomplete.
        SecurityError: a file of it holds pickled code.
    """
    steps = kept_steps(run_dir)
    if not steps:
        raise StorageError(
            f"{run_dir / NONFINITE}: holds no complete step. Next: name the folder of a run whose "
            "log says `nonfinite`"
        )
    if step is not None and step not in steps:
        raise StorageError(
            f"{run_dir / NONFINITE}: step {step} is not kept; there are "
            f"{', '.join(map(str, steps))}"
        )
    folder = _folder(run_dir, steps[-1] if step is None else step)
    try:
        report = read_json(folder / REPORT_NAME)
        states = _folder(run_dir, report["state_of"])
        names = [n for n in (STATE_NAME, *TENSOR_FILES.values()) if (states / n).exists()]
        return Evidence(
            path=folder,
            report=report,
            experiment=Experiment.model_validate_json(json.dumps(report["experiment"])),
            classes=LabelMap.from_json(json.dumps(report["label_map"])),
            state=decode({name: (states / name).read_bytes() for name in names}),
            batches=[_read_batch(folder, report["step"], r) for r in range(report["world"])],
        )
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        DataError,
    ) as error:
        raise StorageError(
            f"{folder}: the evidence cannot be read back ({error}). Next: replay another step of "
            f"{', '.join(map(str, steps))}"
        ) from error


def _read_batch(folder: Path, step: int, rank: int) -> Batch:
    path = folder / f"rank{rank}.npz"
    with weights_errors(path):
        look_through(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in _ARRAYS}
    slots = range(len(arrays["sample_ids"]))
    images = np.stack([read_image(_image_file(folder, rank, slot)) for slot in slots])
    return Batch(step=step, images=images, **arrays)
