"""Successive halving over the journal: Ray Tune's ASHA, told again what it has seen already."""

from __future__ import annotations

from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from orchestrator.config.schema import AshaConfig
from orchestrator.storage.run_files import trial_name
from orchestrator.sweeps.journal import Journal


def judged_epochs(config: AshaConfig, epochs: int) -> tuple[int, ...]:
    """Ages at which trials are judged, below the full age."""
    found, age = [], config.grace_epochs
    while age < epochs:
        found.append(age)
        age *= config.reduction_factor
    return tuple(found)


class Judge:
    """Decides at each judged age whether a trial goes on, once and for all.

    Args:
        config: of ASHA.
        epochs: full age.
        journal: of the sweep; what it holds is told to the scheduler again.
    """

    def __init__(self, config: AshaConfig, epochs: int, journal: Journal) -> None:
        self._asha = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=epochs,
            grace_period=config.grace_epochs,
            reduction_factor=config.reduction_factor,
        )
        self._journal = journal
        self._known: dict[tuple[int, int], bool] = {}
        self._added: set[int] = set()
        for entry in journal.of("judged"):
            self._ask(entry["trial"], entry["epoch"], entry["score"])
            self._known[entry["trial"], entry["epoch"]] = entry["goes_on"]

    def goes_on(self, trial: int, epoch: int, score: float) -> bool:
        """Whether a trial goes on after ``epoch`` epochs; the same answer whenever it is asked.

        Args:
            trial: its number.
            epoch: one of :func:`judged_epochs`.
            score: at that age.
        """
        if (trial, epoch) not in self._known:
            answer = self._ask(trial, epoch, score)
            self._journal.add("judged", trial=trial, epoch=epoch, score=score, goes_on=answer)
            self._known[trial, epoch] = answer
        return self._known[trial, epoch]

    def _ask(self, number: int, epoch: int, score: float) -> bool:
        # All that the scheduler looks at of a trial is its id.
        trial = SimpleNamespace(trial_id=trial_name(number))
        if number not in self._added:
            self._asha.on_trial_add(None, trial)
            self._added.add(number)
        answer = self._asha.on_trial_result(None, trial, {"epoch": epoch, "score": score})
        return bool(answer == TrialScheduler.CONTINUE)
