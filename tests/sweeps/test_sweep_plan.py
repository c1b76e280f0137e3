"""Trials from a section: valid, distinct, reproducible; and what is refused, with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.resolve import read_template
from orchestrator.errors import ConfigError
from orchestrator.sweeps.plan import difference_rows
from tests.sweeps.sweep_cases import EXPERIMENT, planner

RANDOM = """
trials: {trials}
space:
  train.optimizer.lr: {{loguniform: [1.0e-3, 1.0e-1]}}
  train.schedule.warmup_epochs: {{uniform: [0, 2]}}
"""


def test_trials_are_ordinary_experiments_that_differ_where_they_say(tmp_path: Path) -> None:
    plan = planner(tmp_path, RANDOM.format(trials=6))
    plan.check()
    trials = plan.planned()
    assert [trial.name for trial in trials] == [f"trial-{n:03d}" for n in range(6)]
    assert len({trial.digest for trial in trials}) == 6
    for trial in trials:
        experiment = trial.resolved.experiment
        assert experiment.sweep is None
        assert experiment.name == trial.name
        assert experiment.storage == str(tmp_path / "runs" / "swept")
        assert experiment.train.optimizer.lr == trial.values["train.optimizer.lr"]
        assert {row["key"] for row in difference_rows(trial)} == set(trial.values)


def test_adding_trials_changes_none_of_those_there_were(tmp_path: Path) -> None:
    few = [t.values for t in planner(tmp_path, RANDOM.format(trials=4)).planned()]
    many = [t.values for t in planner(tmp_path, RANDOM.format(trials=9)).planned()]
    assert many[:4] == few


def test_schedules_and_whole_sections_are_swept(tmp_path: Path) -> None:
    section = """
search: grid
space:
  train.schedule:
    choice:
      - {name: cosine, warmup_epochs: 2}
      - {name: multistep, milestones: [4, 7], factors: [0.1, 0.01]}
  data.augmentation:
    choice: [{name: none}, {name: ssd, flip_probability: 0.2}]
"""
    plan = planner(tmp_path, section)
    plan.check()
    kinds = [
        (t.resolved.experiment.train.schedule.name, t.resolved.experiment.data.augmentation.name)
        for t in plan.planned()
    ]
    assert plan.count == 4
    assert kinds == [
        ("cosine", "none"), ("cosine", "ssd"), ("multistep", "none"), ("multistep", "ssd"),
    ]  # fmt: skip


def test_an_unknown_key_is_refused_with_the_nearest_match_and_its_line(tmp_path: Path) -> None:
    plan = planner(tmp_path, "trials: 3\nspace:\n  train.optimizer.lrr: {uniform: [0.1, 0.2]}")
    with pytest.raises(ConfigError) as refused:
        plan.check()
    text = str(refused.value)
    line = (
        (tmp_path / "swept.yaml")
        .read_text()
        .splitlines()
        .index("    train.optimizer.lrr: {uniform: [0.1, 0.2]}")
    )
    assert f"swept.yaml:{line + 1} sweep.space.train.optimizer.lrr: unknown key" in text
    assert "did you mean 'lr'?" in text


def test_an_unknown_condition_is_refused_with_the_nearest_match(tmp_path: Path) -> None:
    plan = planner(
        tmp_path,
        "trials: 3\nspace:\n"
        "  train.optimizer.lr: {uniform: [0.1, 0.2], when: {train.optimiser.name: sgd}}",
    )
    with pytest.raises(ConfigError, match=r"did you mean 'train.optimizer.name'"):
        plan.check()


def test_a_corner_that_is_not_valid_is_refused_before_anything_starts(tmp_path: Path) -> None:
    plan = planner(tmp_path, "trials: 3\nspace:\n  train.schedule.warmup_epochs: {uniform: [0, 9]}")
    with pytest.raises(ConfigError) as refused:
        plan.check()
    assert "warmup_epochs=9.0" in str(refused.value)
    assert "must be below train.epochs, which is 9" in str(refused.value)


def test_equal_effective_configurations_are_refused(tmp_path: Path) -> None:
    section = "search: grid\nspace:\n  train.optimizer.lr: {choice: [0.02, 0.03, 0.02]}"
    with pytest.raises(ConfigError, match=r"trial-000 .* and trial-002 .* have equal effective"):
        planner(tmp_path, section).planned()


def test_a_space_with_fewer_combinations_than_trials_is_refused(tmp_path: Path) -> None:
    section = "trials: 4\nspace:\n  train.optimizer.momentum: {choice: [0.0, 0.5, 0.9]}"
    with pytest.raises(ConfigError, match=r"only 3 different combinations"):
        planner(tmp_path, section).planned()


def test_every_combination_runs_with_every_seed(tmp_path: Path) -> None:
    section = "search: grid\nseeds: 3\nspace:\n  train.optimizer.lr: {choice: [0.1, 0.2]}"
    plan = planner(tmp_path, section)
    trials = plan.planned()
    assert plan.count == 6
    assert [(t.combination, t.resolved.experiment.seed) for t in trials] == [
        (0, 11), (0, 12), (0, 13), (1, 11), (1, 12), (1, 13),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("trials: 2\nspace:\n  name: {choice: [a, b]}", "name is the same for all trials"),
        ("search: grid\nspace:\n  train.optimizer.lr: {uniform: [0.1, 0.2]}", "continuous range"),
        ("trials: 2\nspace:\n  train.optimizer.lr: {uniform: [0.2, 0.1]}", "not upwards"),
        ("trials: 2", "all trials would be equal"),
        ("space:\n  train.optimizer.lr: {uniform: [0.1, 0.2]}", "needs sweep.trials"),
        (
            "trials: 4\nscheduler: pbt\nspace:\n  train.batch_size: {choice: [2, 4]}",
            "cannot change while a trial trains",
        ),
        (
            "trials: 4\nscheduler: asha\nasha: {grace_epochs: 9}\n"
            "space:\n  train.optimizer.lr: {uniform: [0.1, 0.2]}",
            "no trial would be judged",
        ),
    ],
)
def test_sections_that_make_no_sense_are_refused(
    tmp_path: Path, section: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planner(tmp_path, section)


def test_a_sweep_file_takes_the_place_of_the_section(tmp_path: Path) -> None:
    experiment, sweep = tmp_path / "one.yaml", tmp_path / "sweep.yaml"
    experiment.write_text(EXPERIMENT.replace("sweep:\n", ""))
    sweep.write_text("sweep:\n  trials: 2\n  space:\n    train.optimizer.lr: {uniform: [1, 2]}\n")
    section = read_template(experiment, ["sweep.trials=5"], sweep=sweep).resolve().experiment.sweep
    assert section is not None
    assert section.trials == 5
    sweep.write_text("trials: 2\n")
    with pytest.raises(ConfigError, match=r"sweep\.yaml: the keys at the top are trials"):
        read_template(experiment, sweep=sweep)
