"""Ending a run that no longer gets better: a function of its evaluations, by step.

What is known of the evaluations before a commit is part of that commit; those of the commit itself
lie beside it. However often a run is interrupted, it therefore ends after the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.schema import EarlyStoppingConfig


@dataclass(frozen=True)
class Patience:
    """What the evaluations so far amount to.

    Attributes:
        best: highest value that counted as a rise; None before the first evaluation.
        best_step: its step.
        fruitless: evaluations since then.
        last_step: of the newest evaluation that is counted here.
    """

    best: float | None = None
    best_step: int = 0
    fruitless: int = 0
    last_step: int = 0


class EarlyStopping:
    """Watches one metric of a run.

    Args:
        config: what ends it.
        steps_per_epoch: for people.
    """

    def __init__(self, config: EarlyStoppingConfig, *, steps_per_epoch: int) -> None:
        self._config = config
        self._steps_per_epoch = steps_per_epoch
        self.patience = Patience()

    def count(self, numbers: Mapping[str, float], *, step: int) -> None:
        """Take in the evaluation after ``step`` steps; one that is counted already is not again.

        Args:
            numbers: of COCO, by name without ``val/``.
            step: optimizer steps behind it.
        """
        before = self.patience
        if step <= before.last_step:
            return
        value = numbers[self._config.metric.removeprefix("val/")]
        if before.best is None or value > before.best + self._config.min_delta:
            self.patience = Patience(value, step, 0, step)
        else:
            self.patience = Patience(before.best, before.best_step, before.fruitless + 1, step)

    @property
    def ending(self) -> dict[str, Any] | None:
        """Why the run ends after the newest evaluation, as plain values; None if it goes on."""
        found, wanted = self.patience, self._config.patience
        if found.best is None or found.fruitless < wanted:
            return None
        beyond = f" by more than {self._config.min_delta:g}" if self._config.min_delta else ""
        times = "evaluation" if wanted == 1 else f"{wanted} evaluations"
        epoch, best_epoch = (
            step / self._steps_per_epoch for step in (found.last_step, found.best_step)
        )
        return {
            "step": found.last_step,
            "epoch": epoch,
            "metric": self._config.metric,
            "best": found.best,
            "best_step": found.best_step,
            "reason": (
                f"ended after step {found.last_step} (epoch {epoch:g}): {self._config.metric} has "
                f"not risen{beyond} in the last {times} above {found.best:.4f} of step "
                f"{found.best_step} (epoch {best_epoch:g})"
            ),
        }

    def to_json(self) -> dict[str, Any]:
        """What a commit holds of it."""
        return asdict(self.patience)

    def load(self, tree: Mapping[str, Any] | None) -> None:
        """Inverse of :meth:`to_json`; a commit of a run that had no early stopping holds None."""
        self.patience = Patience() if tree is None else Patience(**tree)
