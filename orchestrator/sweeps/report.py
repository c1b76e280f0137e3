"""What a sweep says: ``sweep.json`` for programs, a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from orchestrator.config.schema import PARAMETERS, SweepConfig
from orchestrator.errors import OrchestratorError, say
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.run_files import SWEEP_RESULT
from orchestrator.sweeps.plan import Planner, Trial, describe, difference_rows


@dataclass(frozen=True)
class Row:
    """A trial and how it stands.

    Attributes:
        trial: what it is.
        state: ``done``, ``stopped``, ``failed``, ``preempted`` or ``waiting``.
        result: content of its ``result.json``; None before there is one.
        reason: why it failed.
        parameters: learnable values of its detector; None where nobody asked.
        exit_code: of the error that it failed with.
    """

    trial: Trial
    state: str
    result: dict[str, Any] | None
    reason: str | None = None
    parameters: int | None = None
    exit_code: int = OrchestratorError.exit_code

    def value(self, objective: str) -> float | None:
        """One objective, as of the last evaluation; None where it is not known."""
        if objective == PARAMETERS:
            return None if self.parameters is None else float(self.parameters)
        if self.result is None:
            return None
        value = self.result["metrics"].get(objective.removeprefix("val/"))
        return None if value is None else float(value)

    @property
    def best_checkpoint(self) -> str | None:
        """Folder of the trial's best checkpoint, as a path in the folder of the sweep."""
        inner = (self.result or {}).get("best_checkpoint")
        return None if inner is None else str(Path(self.trial.name) / inner)

    def to_json(self, sweep: SweepConfig) -> dict[str, Any]:
        """Entry of ``sweep.json``."""
        result = self.result or {}
        return {
            "number": self.trial.number,
            "name": self.trial.name,
            "combination": self.trial.combination,
            "state": self.state,
            "reason": self.reason,
            "values": self.trial.values,
            "differences": difference_rows(self.trial),
            "config": self.trial.resolved.tree,
            "digest": self.trial.digest,
            "score": self.value(sweep.metric),
            "objectives": {name: self.value(name) for name in sweep.objectives},
            "metrics": result.get("metrics"),
            "steps": result.get("steps"),
            "seconds": result.get("seconds"),
            "weights_sha256": result.get("weights_sha256"),
            "best_checkpoint": self.best_checkpoint,
            "mlflow_run_id": result.get("mlflow_run_id"),
            "config_digest": result.get("config_digest"),
            "data_digest": result.get("data_digest"),
        }


def ranking(rows: Sequence[Row], sweep: SweepConfig) -> list[Row]:
    """Trials with a score, best first: those that ended first, the earliest of equals first."""
    scored = [row for row in rows if row.state in ("done", "stopped") and row.result is not None]
    return sorted(
        scored,
        key=lambda row: (
            row.state != "done",
            -(row.value(sweep.metric) or 0.0),
            row.trial.number,
        ),
    )


def front(rows: Sequence[Row], sweep: SweepConfig) -> list[Row]:
    """Finished trials that no other one beats in everything; empty with a single objective."""
    if not sweep.objectives:
        return []
    names = (sweep.metric, *sweep.objectives)
    points = {
        row.trial.number: tuple(
            (row.value(name) or 0.0) * (-1.0 if name == PARAMETERS else 1.0) for name in names
        )
        for row in rows
        if row.state == "done"
    }

    def is_beaten(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(a >= b for a, b in zip(other, point, strict=True))
            for other in points.values()
        )

    kept = {number for number, point in points.items() if not is_beaten(point)}
    return [row for row in rows if row.trial.number in kept]


def combinations(rows: Sequence[Row], sweep: SweepConfig) -> list[dict[str, Any]]:
    """Mean and range over the seeds of each combination, best mean first."""
    found = []
    for number in sorted({row.trial.combination for row in rows}):
        members = [r for r in rows if r.trial.combination == number and r.state == "done"]
        scores = [score for r in members if (score := r.value(sweep.metric)) is not None]
        if not scores:
            continue
        values = {k: v for k, v in members[0].trial.values.items() if k != "seed"}
        found.append(
            {
                "combination": number,
                "values": values,
                "runs": len(scores),
                "mean": sum(scores) / len(scores),
                "min": min(scores),
                "max": max(scores),
            }
        )
    return sorted(found, key=lambda entry: (-entry["mean"], entry["combination"]))


def best_checkpoint(planner: Planner, best: Row) -> str | None:
    """Address of the best checkpoint of the best trial; None where none was scored."""
    inner = best.best_checkpoint
    return None if inner is None else f"{planner.home}/{inner}"


def summary(planner: Planner, rows: Sequence[Row], *, state: str) -> dict[str, Any]:
    """Content of ``sweep.json``."""
    sweep = planner.sweep
    ranked = ranking(rows, sweep)
    best = ranked[0] if ranked else None
    return {
        "name": planner.base.experiment.name,
        "state": state,
        "metric": sweep.metric,
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "best": best.trial.name if best else None,
        "best_checkpoint": best_checkpoint(planner, best) if best else None,
        "ranking": [row.trial.name for row in ranked],
        "front": [row.trial.name for row in front(rows, sweep)],
        "combinations": combinations(rows, sweep) if sweep.seeds > 1 else [],
        "trials": [row.to_json(sweep) for row in rows],
    }


def write_summary(folder: Path, content: dict[str, Any]) -> None:
    """Replace ``sweep.json``."""
    write_atomic(folder / SWEEP_RESULT, json.dumps(content, indent=1).encode())


def say_sweep(planner: Planner, rows: Sequence[Row], console: Console) -> None:
    """The ranking, the spread over seeds and what failed."""
    sweep = planner.sweep
    names = [name for name in sweep.objectives if name != sweep.metric]
    # Of long keys nothing is cut away.
    values = Column("values", overflow="fold")
    table = Table("trial", "state", sweep.metric, *names, "steps", values, title="trials by rank")
    for row in ranking(rows, sweep):
        assert row.result is not None
        table.add_row(
            row.trial.name,
            row.state,
            *(_number(row.value(name)) for name in (sweep.metric, *names)),
            str(row.result["steps"]),
            escape(row.trial.text()),
        )
    console.print(table)
    if sweep.seeds > 1:
        for entry in combinations(rows, sweep):
            say(
                console,
                f"{describe(entry['values']) or 'the experiment as it is'}: {sweep.metric} "
                f"{entry['mean']:.4f} over {entry['runs']} seeds, {entry['min']:.4f} to "
                f"{entry['max']:.4f}",
            )
    unbeaten = front(rows, sweep)
    if unbeaten:
        say(console, f"not beaten in everything: {', '.join(row.trial.name for row in unbeaten)}")
    for row in rows:
        if row.state == "failed":
            say(console, f"{row.trial.name} failed: {row.reason}")
    for best in ranking(rows, sweep)[:1]:
        say(console, f"best checkpoint: {best_checkpoint(planner, best) or 'none was scored'}")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value < 0:
        return "-"  # COCO's number where there is nothing to score.
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4f}"
