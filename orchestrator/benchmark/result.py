"""The result of a benchmark: a json file, tables, and the comparison with an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.benchmark.inference import Latency
from orchestrator.benchmark.training import EvaluationSpeed, TrainingSpeed
from orchestrator.errors import DataError, StorageError
from orchestrator.storage.plain_files import read_json

_VERSION = 2


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything measured, and on what.

    Attributes:
        detector: title.
        config_digest: of the resolved experiment.
        code, hardware: where it ran, as a run card has it.
        versions: of packages.
        precision, threads: of the computation; CPU threads.
        training, evaluation, inference: the figures.
        peak_process_bytes, peak_device_bytes: of this process's memory; 0 without a device.
    """

    detector: str
    config_digest: str
    code: str
    hardware: str
    versions: dict[str, str]
    precision: str
    threads: int
    training: TrainingSpeed
    evaluation: EvaluationSpeed
    inference: list[Latency]
    peak_process_bytes: int
    peak_device_bytes: int

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> BenchmarkResult:
        """Inverse of :meth:`to_json`.

        Raises:
            StorageError: no such file.
            DataError: none of ours.
        """
        try:
            tree: dict[str, Any] = read_json(path)
            version = tree.pop("version")
            if version != _VERSION:
                raise ValueError(f"version {version}, this program reads {_VERSION}")
            return cls(
                **{
                    **tree,
                    "training": TrainingSpeed(**tree["training"]),
                    "evaluation": EvaluationSpeed(**tree["evaluation"]),
                    "inference": [Latency(**one) for one in tree["inference"]],
                }
            )
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: is no result of `orchestrator benchmark` ({error}). Next: name the file "
                "that its --output wrote"
            ) from error

    def figures(self) -> dict[str, tuple[float, str]]:
        """Value and unit by name, in the order of the table."""
        training = self.training
        named = {
            f"training, batches of {training.batch_size}": (training.images_per_s, "images/s"),
            "  step": (training.batch_size / training.images_per_s * 1e3, "ms/step"),
            **{f"  {name}": (s * 1e3, "ms/step") for name, s in training.parts.items()},
            "evaluation, detect": (self.evaluation.detect_s * 1e3, "ms/image"),
            "evaluation, score": (self.evaluation.score_s * 1e3, "ms"),
        }
        for one in self.inference:
            named |= {
                f"detect {one.batch}": (one.images_per_s, "images/s"),
                f"  median of {one.batch}": (one.median_ms, "ms"),
                f"  90 % of {one.batch}": (one.p90_ms, "ms"),
                f"  network of {one.batch}": (one.network_ms, "ms"),
            }
        named["memory of the process"] = (self.peak_process_bytes / 2**20, "MiB")
        if self.peak_device_bytes:
            named["memory of the device"] = (self.peak_device_bytes / 2**20, "MiB")
        return named


def rows(result: BenchmarkResult, against: BenchmarkResult | None) -> Iterator[tuple[str, ...]]:
    """Rows of the table: name, value, unit and, with an earlier result, its value and the ratio."""
    earlier = {} if against is None else against.figures()
    for name, (value, unit) in result.figures().items():
        row = (name, f"{value:.4g}", unit)
        if against is None:
            yield row
        elif name in earlier and earlier[name][0] > 0:
            before = earlier[name][0]
            yield (*row, f"{before:.4g}", f"{value / before:.2f}x")
        else:
            yield (*row, "-", "-")


def differences(result: BenchmarkResult, against: BenchmarkResult) -> list[str]:
    """What makes two results hard to compare: other machines, versions or experiments."""
    lines = [
        f"{name}: {getattr(against, name)} then, {getattr(result, name)} now"
        for name in ("detector", "config_digest", "hardware", "precision", "threads")
        if getattr(against, name) != getattr(result, name)
    ]
    packages = sorted(against.versions.keys() | result.versions.keys())
    lines += [
        f"{name}: {against.versions.get(name)} then, {result.versions.get(name)} now"
        for name in packages
        if against.versions.get(name) != result.versions.get(name)
    ]
    return lines
