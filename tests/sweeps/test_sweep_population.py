"""Populations: who replaces whom, and that a clone is its donor to the last bit."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.accelerators import Accelerator
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.resolve import Template, read_template
from orchestrator.config.schema import Domain, PbtConfig
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import ConfigError
from orchestrator.runs.plan import make_plan
from orchestrator.storage.local import LocalStorage
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.plan import Planner, Trial
from orchestrator.sweeps.population import Population, ages, clone, exploits, perturb
from orchestrator.sweeps.sources import Record
from orchestrator.training import engine
from orchestrator.training.job import Outcome
from orchestrator.training.session import run_rank
from orchestrator.training.stepper import Stepper
from orchestrator.training.verify_sampled import SampledValueError
from tests.support.small_run import make_data
from tests.sweeps.sweep_cases import planner

SPACE = {
    "lr": Domain(loguniform=(1e-4, 1e-1)),
    "flip": Domain(choice=(0.0, 0.25, 0.5)),
    "steps": Domain(integer=(10, 20)),
}
SECTION = """
trials: 4
scheduler: pbt
pbt: {interval_epochs: 1}
space:
  train.optimizer.lr: {loguniform: [1.0e-3, 1.0e-1]}
"""


def test_ages_end_with_the_full_one() -> None:
    assert ages(PbtConfig(interval_epochs=3), 9) == [3, 6, 9]
    assert ages(PbtConfig(interval_epochs=4), 9) == [4, 8, 9]


def test_the_worst_quarter_continues_from_the_best() -> None:
    scores = dict(enumerate([0.3, 0.9, 0.1, 0.5, 0.2, 0.8, 0.4, 0.6]))
    values: dict[int, dict[str, Any]] = {
        n: {"lr": 0.001 * (n + 1), "flip": 0.25, "steps": 15} for n in scores
    }
    config = PbtConfig(resample_probability=0.0)
    found = exploits(scores, values, config=config, space=SPACE, seed=5, age=3)
    assert [one.member for one in found] == [2, 4]
    for one in found:
        assert one.donor in (1, 5)
        donor = values[one.donor]
        assert one.values["lr"] in (
            pytest.approx(donor["lr"] * 0.8),
            pytest.approx(donor["lr"] * 1.2),
        )
        assert one.values["flip"] in (0.0, 0.5)
        assert one.values["steps"] in (12, 18)
    assert exploits(scores, values, config=config, space=SPACE, seed=5, age=3) == found


def test_nobody_continues_from_a_member_that_failed() -> None:
    values = {n: {"lr": 0.01, "flip": 0.25, "steps": 15} for n in range(4)}
    config = PbtConfig(quantile=0.5)
    scores = {0: -2.0, 1: -2.0, 2: 0.3, 3: -2.0}
    for age in range(20):
        found = exploits(scores, values, config=config, space=SPACE, seed=5, age=age)
        assert [(one.member, one.donor) for one in found] == [(1, 2), (3, 2)]
    nobody = dict.fromkeys(range(4), -2.0)
    assert exploits(nobody, values, config=config, space=SPACE, seed=5, age=1) == []


def test_perturbed_values_stay_inside_their_range() -> None:
    config = PbtConfig(resample_probability=0.0)
    assert perturb(SPACE["lr"], 0.09, [0.5, 0.5, 0.9], config) == 0.1
    assert perturb(SPACE["steps"], 19, [0.5, 0.5, 0.9], config) == 20
    assert perturb(SPACE["flip"], 0.5, [0.5, 0.5, 0.1], config) == 0.5
    assert perturb(SPACE["lr"], 0.09, [0.5, 0.0, 0.9], PbtConfig(resample_probability=1.0)) == 1e-4


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("population")
    make_data(folder / "squares")
    return folder


def at(folder: Path, squares: Path) -> Planner:
    return planner(
        folder,
        SECTION,
        [f"data.root={squares / 'squares'}", "train.ema={decay: 0.9, warmup_steps: 0}"],
    )


def run(trial: Trial, folder: Path) -> Outcome:
    """Train a member without Ray."""
    plan = make_plan(trial.resolved, folder / trial.name, threads=1)
    job = dataclasses.replace(plan.job, sampled=trial.values)
    return run_rank(job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))


def test_a_clone_goes_on_from_the_donors_exact_state_with_its_own_rate(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = at(tmp_path, squares)
    members = plan.planned()[:2]
    journal = Journal(plan.folder)
    population = Population(
        plan, journal, Record(plan, journal), members, steps_per_epoch=3, initial=None
    )
    outcomes = [run(population.trial(n, 1), plan.folder) for n in (0, 1)]
    assert [outcome.steps for outcome in outcomes] == [3, 3]
    donor, member = plan.folder / "trial-000", plan.folder / "trial-001"
    rate = 0.0123
    changed = plan.trial(1, {"train.optimizer.lr": rate})
    before = {p.name: p.read_bytes() for p in (donor / "ckpt" / "000000003").iterdir()}
    digest = clone(donor, changed, member, step=3, initial=None)

    # Weights, optimizer, average and position: all files but the manifest are the donor's.
    after = {p.name: p.read_bytes() for p in (member / "ckpt" / "000000003").iterdir()}
    assert before.keys() == after.keys()
    different = {name for name in before if before[name] != after[name]}
    assert different <= {"MANIFEST.json"}
    found = CommitStore(LocalStorage(member)).latest().commit
    assert found is not None
    assert found.manifest.files["weights.safetensors"].sha256 == digest

    rates: list[float] = []
    states: dict[str, torch.Tensor] = {}
    momenta: list[torch.Tensor] = []
    original = Stepper.begin

    def watched(self: Stepper, *args: Any, **kwargs: Any) -> Any:
        if not states:
            states.update({k: v.clone() for k, v in self.model.state_dict().items()})
            momenta.extend(s["momentum_buffer"].clone() for s in self.optimizer.state.values())
        report = original(self, *args, **kwargs)
        rates.append(self.optimizer.param_groups[0]["lr"])
        return report

    monkeypatch.setattr(Stepper, "begin", watched)
    outcome = run(population_trial(plan, changed), plan.folder)
    assert outcome.resumed_from == 3
    donors = CommitStore(LocalStorage(donor)).load(3)
    assert states.keys() == donors.model.keys()
    assert all(torch.equal(states[name], tensor) for name, tensor in donors.model.items())
    assert len(momenta) == len(donors.optimizer)
    assert sum(float(m.abs().sum()) for m in momenta) == pytest.approx(
        sum(float(m.abs().sum()) for m in donors.optimizer.values())
    )
    # Warm-up is over after 3 steps of 27, and half a cosine follows over the other 24.
    assert rates[0] == pytest.approx(rate)
    share = (1 + math.cos(math.pi * 2 / 24)) / 2
    assert rates[2] == pytest.approx(rate * (0.001 + 0.999 * share))


def population_trial(plan: Planner, trial: Trial) -> Trial:
    """The same member, for one more epoch."""
    return plan.trial(trial.number, {**trial.values, "train.max_steps": 6})


def test_a_population_is_rebuilt_from_its_journal(tmp_path: Path, squares: Path) -> None:
    plan = at(tmp_path, squares)
    journal = Journal(plan.folder)
    members = plan.planned()

    def population() -> Population:
        again = Journal(plan.folder)
        return Population(
            plan, again, Record(plan, again), members, steps_per_epoch=3, initial=None
        )

    first = Population(
        plan, journal, Record(plan, journal), members, steps_per_epoch=3, initial=None
    )
    for number, score in ((0, 0.2), (2, 0.1)):
        first.ended(members[number], 3, {"state": "done", "result": {"metrics": {"AP": score}}})
    first.ended(members[1], 3, {"state": "preempted"})
    first.ended(members[3], 3, {"state": "failed", "reason": "NonFiniteError"})
    # One that failed is tried again, until somebody is replaced.
    again = population()
    assert again.waiting(3) == [1, 3]
    assert again.scores[3] == {0: 0.2, 2: 0.1}
    values = {"train.optimizer.lr": 0.5}
    journal.add("cloned", trial=3, donor=0, age=3, values=values, replaced=members[3].values)
    assert population().scores[3] == {0: 0.2, 2: 0.1, 3: -2.0}
    assert population().trial(3, None).values == values
    assert population().trial(3, 6).resolved.experiment.train.max_steps == 18
    assert population().trial(3, 9).resolved.experiment.train.max_steps is None


def test_a_value_that_does_not_reach_the_optimizer_fails_the_run(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = at(tmp_path, squares)
    values: dict[str, Any] = {"train.optimizer.lr": 0.02, "train.optimizer.momentum": 0.5}
    trial = plan.trial(0, {**values, "train.max_steps": 1})

    class Deaf(Stepper):
        """Merges a fixed momentum over the sampled one, as some tuners do."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for group in self.optimizer.param_groups:
                group["momentum"] = 0.937

    assert run(trial, plan.folder).steps == 1
    shutil.rmtree(plan.folder / trial.name)
    monkeypatch.setattr(engine, "Stepper", Deaf)
    with pytest.raises(SampledValueError, match=r"momentum: the sweep chose 0.5, .* has 0.937"):
        run(trial, plan.folder)


def test_a_rate_that_is_overwritten_at_every_step_fails_the_run(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = at(tmp_path, squares)
    trial = plan.trial(0, {"train.optimizer.lr": 0.02, "train.max_steps": 1})
    original = Stepper.begin

    def stuck(self: Stepper, *args: Any, **kwargs: Any) -> Any:
        report = original(self, *args, **kwargs)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01
        return report

    monkeypatch.setattr(Stepper, "begin", stuck)
    with pytest.raises(SampledValueError, match=r"train.optimizer.lr: the sweep chose"):
        run(trial, plan.folder)


def test_a_template_is_never_changed_by_its_trials(tmp_path: Path, squares: Path) -> None:
    plan = at(tmp_path, squares)
    before = plan.template.resolve().digest
    for trial in plan.planned():
        assert trial.resolved.digest != before
    assert isinstance(plan.template, Template)
    assert plan.template.resolve().digest == before
    with pytest.raises(ConfigError):
        read_template(tmp_path / "swept.yaml").resolve({"train.optimizer.nothing": 1})
    assert plan.template.resolve().digest == before
