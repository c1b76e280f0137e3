"""The ``sweep`` section: which values to try, how to choose them and when to give up on a trial."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, JsonValue, model_validator
from typing_extensions import Self

from detectors.config import Settings
from orchestrator.config.fields import (
    Conflict,
    Count,
    Fraction,
    NonNegativeInt,
    Positive,
    refuse,
)
from orchestrator.config.metrics import Metric

#: What can be optimised beside a COCO number, and is better when smaller.
PARAMETERS = "model/parameters"
Objective: TypeAlias = Metric | Literal["model/parameters"]

#: Keys, with everything below them, that no trial may have for itself.
_SHARED = ("name", "storage", "scratch", "tracking", "sweep", "cluster")
#: What may change in a run that goes on: nothing that shapes its state or the order of its data.
_IN_FLIGHT = (
    "train.optimizer",
    "train.schedule",
    "train.clip_norm",
    "train.ema.decay",
    "data.augmentation",
)

#: More steps than a number of 64 bits has digits for.
_MOST_STEPS = 2**52


class Domain(Settings):
    """The values one key may take; exactly one of the first five fields is given.

    Attributes:
        uniform: lower and upper end of a range of numbers.
        loguniform: the same, drawn evenly on a logarithmic scale.
        integer: smallest and largest whole number, both included.
        logint: the same on a logarithmic scale.
        choice: the values themselves; whole sections are allowed, such as detectors.
        step: of ``uniform`` or ``integer``: only the lower end plus whole steps.
        when: keys and the value, or list of values, each must have for this key to be set at all;
            otherwise it keeps what the experiment says.
    """

    uniform: tuple[float, float] | None = None
    loguniform: tuple[Positive, Positive] | None = None
    integer: tuple[int, int] | None = None
    logint: tuple[Count, Count] | None = None
    choice: Annotated[tuple[JsonValue, ...], Field(min_length=1)] | None = None
    step: Positive | None = None
    when: dict[str, JsonValue] = Field(default={})

    @model_validator(mode="after")
    def _is_one_set(self) -> Self:
        refuse(self._conflicts())
        return self

    @property
    def kind(self) -> str:
        """Name of the field that is given."""
        kinds = ("uniform", "loguniform", "integer", "logint", "choice")
        return next((kind for kind in kinds if getattr(self, kind) is not None), "")

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lower and upper end; None for a choice."""
        return self.uniform or self.loguniform or self.integer or self.logint

    def _conflicts(self) -> Iterator[Conflict]:
        kinds = ("uniform", "loguniform", "integer", "logint", "choice")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            yield Conflict(
                given[1] if given else "choice",
                f"give one of uniform, loguniform, integer, logint and choice; found {found}",
            )
            return
        if self.ends is not None and self.ends[0] >= self.ends[1]:
            yield Conflict(
                given[0], f"{given[0]} goes from {self.ends[0]:g} to {self.ends[1]:g}, not upwards"
            )
        if self.step is not None and given[0] not in ("uniform", "integer"):
            yield Conflict("step", f"step belongs to uniform or integer, not to {given[0]}")
        if self.step is not None and self.integer is not None and not self.step.is_integer():
            yield Conflict("step", f"step of integer is {self.step:g}; it must be a whole number")
        elif self.step is not None and self.ends is not None:
            low, high = self.ends
            if self.step > high - low:
                yield Conflict(
                    "step",
                    f"step is {self.step:g}, more than the range from {low:g} to {high:g}: "
                    f"{low:g} alone would be tried",
                )
            elif (high - low) / self.step > _MOST_STEPS:
                yield Conflict(
                    "step",
                    f"step is {self.step:g}, of which the range from {low:g} to {high:g} holds "
                    "more than numbers can tell apart; raise it, or leave it out",
                )
        seen: dict[str, int] = {}
        for position, value in enumerate(self.choice or (), start=1):
            first = seen.setdefault(_canonical(value), position)
            if first != position:
                yield Conflict(
                    "choice",
                    f"value {position} of choice is equal to value {first}; leave one of them out",
                )


class AshaConfig(Settings):
    """Asynchronous successive halving (Li et al., MLSys 2020), as Ray Tune does it.

    Attributes:
        grace_epochs: a trial is judged for the first time after so many epochs.
        reduction_factor: it is judged again whenever its epochs have grown by this factor, and
            goes on while it is among the best ``1 / reduction_factor`` seen at that age.
    """

    grace_epochs: Count = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3


class PbtConfig(Settings):
    """Population based training (Jaderberg et al., 2017), as Ray Tune does it, in step.

    Attributes:
        interval_epochs: epochs between judgements of the whole population.
        quantile: share of the population that is replaced by clones of the best such share.
        resample_probability: of drawing a value of a clone anew instead of perturbing it.
        factors: a perturbed number is multiplied by one of these and kept inside its range.
    """

    interval_epochs: Count = 1
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    resample_probability: Fraction = 0.25
    factors: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.8, 1.2)


class SweepConfig(Settings):
    """Many runs of the experiment that differ in chosen values.

    Attributes:
        metric: that ranks trials and that schedulers look at, as of the last evaluation.
        objectives: further ones for Optuna to weigh against ``metric``: the sweep then ends in a
            front of trials none of which is worse in everything. ``model/parameters`` is better
            when smaller, all others when larger.
        trials: how many; null with ``search: grid``, which has as many as there are combinations.
        search: draws at random, goes through a grid, or lets Optuna (TPE) learn from the trials.
        scheduler: which trials go on: all, those that ASHA promotes, or a population that clones
            its best members.
        asha: with ``scheduler: asha``.
        pbt: with ``scheduler: pbt``.
        seeds: runs of every combination, with the seeds ``seed``, ``seed + 1`` and so on of the
            experiment.
        seed: of the search; null takes that of the experiment.
        concurrency: trials at a time; null takes as many as fit the cluster.
        space: what is tried, by key of the experiment.
    """

    metric: Metric = "val/AP"
    objectives: tuple[Objective, ...] = ()
    trials: Count | None = None
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Literal["none", "asha", "pbt"] = "none"
    asha: AshaConfig = AshaConfig()
    pbt: PbtConfig = PbtConfig()
    seeds: Count = 1
    seed: NonNegativeInt | None = None
    concurrency: Count | None = None
    space: dict[str, Domain] = Field(default={})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse([*self._conflicts(), *self._space_conflicts()])
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        if not self.space and self.seeds == 1:
            yield Conflict(
                "space", "sweep.space has no key and sweep.seeds is 1, so all trials would be equal"
            )
        if self.search == "grid" and self.trials is not None:
            yield Conflict(
                "trials",
                f"sweep.trials is {self.trials}, but a grid has as many trials as combinations; "
                "remove sweep.trials or use sweep.search random",
            )
        if self.search != "grid" and self.trials is None and self.space:
            yield Conflict("trials", f"sweep.search is {self.search} and needs sweep.trials")
        if self.objectives and (self.search != "optuna" or self.scheduler != "none"):
            yield Conflict(
                "objectives",
                "sweep.objectives needs sweep.search optuna and sweep.scheduler none: other "
                "searches and the schedulers look at sweep.metric alone",
            )
        if len({self.metric, *self.objectives}) <= len(self.objectives):
            yield Conflict(
                "objectives",
                f"sweep.objectives {', '.join(self.objectives)} names one twice, or sweep.metric, "
                f"which is {self.metric} and counts anyway; leave it out",
            )
        pbt = self.pbt
        still = set(pbt.factors) == {1.0} and pbt.resample_probability == 0
        if self.scheduler == "pbt" and still:
            yield Conflict(
                "pbt.factors",
                "sweep.pbt.factors are all 1 and sweep.pbt.resample_probability is 0, so that no "
                "value would ever change; give other factors or a probability",
            )
        if self.seeds > 1 and (self.search == "optuna" or self.scheduler != "none"):
            yield Conflict(
                "seeds",
                f"sweep.seeds is {self.seeds}, which needs sweep.search random or grid and "
                "sweep.scheduler none: a mean over seeds is known only when all have ended",
            )
        if self.scheduler == "pbt" and (self.search != "random" or (self.trials or 0) < 2):
            yield Conflict(
                "scheduler",
                "sweep.scheduler pbt needs sweep.search random and at least 2 sweep.trials, its "
                "population",
            )

    def _space_conflicts(self) -> Iterator[Conflict]:
        for position, (key, domain) in enumerate(self.space.items()):
            later = list(self.space)[position:]
            if _is_below(key, _SHARED) or (key == "seed" and self.seeds > 1):
                yield Conflict("space", f"{key} is the same for all trials")
            for condition in domain.when:
                if _is_below(condition, (key,)):
                    yield Conflict("space", f"{key} depends on itself; name another key in `when`")
                elif any(_is_below(condition, (other,)) for other in later):
                    yield Conflict(
                        "space",
                        f"{key} depends on {condition}, which comes later; put "
                        f"{condition} before {key}",
                    )
            if self.scheduler == "pbt" and (domain.when or not _is_below(key, _IN_FLIGHT)):
                yield Conflict(
                    "space",
                    f"{key} cannot change while a trial trains; sweep.scheduler pbt "
                    f"takes keys below {', '.join(_IN_FLIGHT)}, without when",
                )
            if self.scheduler == "pbt" and key.endswith(".name"):
                yield Conflict("space", f"{key} cannot change while a trial trains")
            if self.search == "grid" and domain.choice is None and domain.step is None:
                yield Conflict(
                    "space",
                    f"{key} is a continuous range, of which a grid needs the values: "
                    "give choice, or a step",
                )


def _canonical(value: JsonValue) -> str:
    """A text that equal values share: 1 and 1.0 are equal, 1 and true are not."""

    def plain(part: JsonValue) -> JsonValue:
        if isinstance(part, dict):
            return {key: plain(child) for key, child in part.items()}
        if isinstance(part, list | tuple):
            return [plain(child) for child in part]
        whole = isinstance(part, float) and part.is_integer()
        return int(part) if whole else part  # type: ignore[arg-type]

    return json.dumps(plain(value), sort_keys=True)


def _is_below(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
