"""Trials from a section: valid, distinct, reproducible; and what is refused, with which words."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from orchestrator.cli.main import main
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
    # Without a warm-up is what a schedule is when nothing is said about it.
    section = (
        "search: grid\nspace:\n  train.schedule: {choice: "
        "[{name: cosine}, {name: constant}, {name: cosine, warmup_epochs: 0}]}"
    )
    with pytest.raises(ConfigError, match=r"trial-000 .* and trial-002 .* have equal effective"):
        planner(tmp_path, section).planned()


def test_a_space_with_fewer_combinations_than_trials_is_refused(tmp_path: Path) -> None:
    section = "trials: 4\nspace:\n  train.optimizer.momentum: {choice: [0.0, 0.5, 0.9]}"
    for search in ("random", "optuna"):
        plan = planner(tmp_path, f"search: {search}\n{section}")
        with pytest.raises(ConfigError, match=r"only 3 different combinations.*trials to 3"):
            _ = plan.check(), plan.planned()


LARGE = "train.optimizer.lr: {uniform: [0.0001, 0.1], step: 1e-9}"


@pytest.mark.parametrize(
    ("head", "lines", "culprit", "message"),
    [
        ("search: grid", [LARGE], 0, "99,900,001 trials; allowed are at most 10,000; raise `step`"),
        (
            "search: grid",
            [
                "train.optimizer.momentum: {uniform: [0.0, 0.99], step: 1e-3}",
                "train.optimizer.lr: {uniform: [0.1, 1.1], step: 1e-3}",
            ],
            1,
            "991,991 trials; allowed are at most 10,000; raise `step`",
        ),
        (
            "search: grid\nseeds: 3",
            [f"train.optimizer.lr: {{choice: {[n / 1000 for n in range(1, 3402)]}}}"],
            0,
            "10,203 trials; allowed are at most 10,000; leave values out",
        ),
        (
            "search: grid",
            [
                "train.optimizer.momentum: {choice: [0.5, 0.9]}",
                LARGE.replace("}", ", when: {train.optimizer.momentum: 0.5}}"),
            ],
            1,
            "more than 10,000 trials; allowed are at most 10,000; raise `step`",
        ),
        ("trials: 2000000000", [LARGE], None, "2,000,000,000 trials; .* lower sweep.trials"),
    ],
)
def test_more_trials_than_anyone_runs_are_refused_at_their_line(
    tmp_path: Path, head: str, lines: list[str], culprit: int | None, message: str
) -> None:
    plan = planner(tmp_path, f"{head}\nspace:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(ConfigError) as refused:
        plan.check()
    line = f"  {head}" if culprit is None else f"    {lines[culprit]}"
    number = (tmp_path / "swept.yaml").read_text().splitlines().index(line) + 1
    assert f"swept.yaml:{number} sweep." in str(refused.value)
    assert re.search(message, str(refused.value))


def test_few_trials_of_a_domain_of_many_values(tmp_path: Path) -> None:
    lines = ["seed: {integer: [0, 2000000000], step: 10}", LARGE]
    for search in ("random", "optuna"):
        section = f"trials: 4\nsearch: {search}\nspace:\n  " + "\n  ".join(lines)
        plan = planner(tmp_path, section)
        plan.check()
        assert len(plan.planned()) == 4


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
            "trials: 2\nsearch: optuna\nobjectives: [val/AP]\n"
            "space:\n  train.optimizer.lr: {uniform: [0.1, 0.2]}",
            "names one twice, or sweep.metric",
        ),
        (
            "trials: 4\nscheduler: pbt\npbt: {factors: [1], resample_probability: 0}\n"
            "space:\n  train.optimizer.lr: {uniform: [0.1, 0.2]}",
            "no value would ever change",
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


@pytest.mark.parametrize(
    ("line", "at", "message"),
    [
        ("train.optimizer.lr: {uniform: [0.1, 0.2], step: 0.5}", "step", "0.1 alone would be"),
        ("train.batch_size: {integer: [4, 8], step: 5}", "step", "4 alone would be tried"),
        ("train.optimizer.lr: {choice: [0.1, 0.3, 0.1]}", "choice", "value 3 .* equal to value 1"),
        ("train.clip_norm: {choice: [null, 1, 1.0]}", "choice", "value 3 .* equal to value 2"),
        (
            "train.schedule: {choice: [{name: cosine, warmup_epochs: 2}, {warmup_epochs: 2.0, "
            "name: cosine}]}",
            "choice",
            "value 2 .* equal to value 1",
        ),
        ("train.optimizer.lr: {loguniform: [0, 0.1]}", "loguniform.0", "allowed is a number > 0"),
        ("train.batch_size: {logint: [0, 8]}", "logint.0", "allowed is a whole number >= 1"),
        ("train.optimizer.lr: {choice: [.nan, 0.1]}", "choice.0", "every number must be finite"),
        ("train.optimizer.lr: {uniform: [0.1, 0.1]}", "uniform", "not upwards"),
        ("train.optimizer.lr: {uniform: [0, 1], step: 1e-300}", "step", "raise it, or leave it"),
        ("train.optimizer.lr: {choice: []}", "choice", "at least 1"),
    ],
)
def test_a_domain_that_cannot_be_is_refused_at_its_line(
    tmp_path: Path, line: str, at: str, message: str
) -> None:
    for search in ("random", "optuna"):
        with pytest.raises(ConfigError) as refused:
            planner(tmp_path, f"trials: 2\nsearch: {search}\nspace:\n  {line}")
        number = (tmp_path / "swept.yaml").read_text().splitlines().index(f"    {line}") + 1
        key = line.partition(":")[0]
        assert f"swept.yaml:{number} sweep.space.{key}.{at}: " in str(refused.value)
        assert re.search(message, str(refused.value))


def test_true_is_not_one(tmp_path: Path) -> None:
    section = "trials: 2\nspace:\n  data.keep_empty: {choice: [true, false]}"
    assert len(planner(tmp_path, section).planned()) == 2


def test_a_sweep_file_takes_the_place_of_the_section(tmp_path: Path) -> None:
    experiment, sweep = tmp_path / "one.yaml", tmp_path / "sweep.yaml"
    experiment.write_text(EXPERIMENT.replace("sweep:\n", ""))
    sweep.write_text("sweep:\n  trials: 2\n  space:\n    train.optimizer.lr: {uniform: [1, 2]}\n")
    section = read_template(experiment, ["sweep.trials=5"], sweep=sweep).resolve().experiment.sweep
    assert section is not None
    assert section.trials == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: 2\n", "s.yaml:1:1: the keys at the top are trials; allowed is sweep alone"),
        ("", "s.yaml:1:1: found nothing; a sweep file is a mapping of one key, such as 'sweep: "),
        ("sweep: [", "s.yaml:2:1: this is not YAML"),
        ("sweep: {trials: 0}\n", "s.yaml:1 sweep.trials: found 0"),
        ("sweep: {trials: 2, space: {train.optimizer.lrr: {choice: [1, 2]}}}\n", "s.yaml:1 "),
    ],
)
def test_a_wrong_sweep_file_is_checked_again_with_its_experiment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment, sweep = Path("one experiment.yaml"), Path("s.yaml")
    experiment.write_text(EXPERIMENT.replace("sweep:\n", ""))
    sweep.write_text(text)
    assert main(["run", "--print-config", str(experiment), "--sweep", str(sweep)]) == 64
    refused = capsys.readouterr().err
    assert message in refused
    command = refused.splitlines()[-1].removeprefix("Correct this and check it with: ")
    assert command == "orchestrator config show 'one experiment.yaml' --sweep s.yaml"
    assert main(shlex.split(command)[1:]) == 64
    assert capsys.readouterr().err == refused
    sweep.write_text("sweep: {trials: 2, space: {train.optimizer.lr: {choice: [1, 2]}}}\n")
    assert main(shlex.split(command)[1:]) == 0


NEVER = "no trial would set it"
REPLACED = "replaces"
LR = "train.optimizer.lr: {uniform: [0.1, 0.2], when: %s}"
MOMENTUM = "train.optimizer.momentum: {choice: [0.0, 0.9]%s}"
OPTIMIZERS = "train.optimizer: {choice: [{name: sgd%s}, {name: adamw%s}]}"


@pytest.mark.parametrize(
    ("lines", "culprit", "message"),
    [
        # A condition on what the sweep does not touch, which is something else.
        ([LR % "{detector.name: sdd}"], 0, NEVER),
        ([LR % "{detector.name: retinanet}"], 0, NEVER),
        ([LR % "{seed: 12}"], 0, NEVER),
        ([LR % "{detector.width: [0.2, 0.3]}"], 0, NEVER),
        ([LR % "{cluster.workers: '1'}"], 0, NEVER),
        # On another key, whose values do not include it.
        ([MOMENTUM % "", LR % "{train.optimizer.momentum: 0.5}"], 1, NEVER),
        (["train.batch_size: {integer: [2, 8], step: 2}", LR % "{train.batch_size: 5}"], 1, NEVER),
        (["train.batch_size: {integer: [2, 8]}", LR % "{train.batch_size: 9}"], 1, NEVER),
        (["train.batch_size: {logint: [2, 8]}", LR % "{train.batch_size: 2.5}"], 1, NEVER),
        (["train.clip_norm: {uniform: [1, 9]}", LR % "{train.clip_norm: 3}"], 1, NEVER),
        (
            ["train.clip_norm: {uniform: [1, 9], step: 2}", LR % "{train.clip_norm: [2, 4]}"],
            1,
            NEVER,
        ),
        (["train.clip_norm: {loguniform: [1, 9]}", LR % "{train.clip_norm: 3}"], 1, NEVER),
        # On a part of a section that no choice gives, or gives otherwise.
        (
            [OPTIMIZERS % ("", ""), "train.clip_norm: {uniform: [1, 9], when: "
             "{train.optimizer.name: lion}}", "train.optimizer.lr: {uniform: [0.1, 0.2]}"],
            1,
            NEVER,
        ),
        ([LR % "{train.optimizer.nesterov: 0}"], 0, NEVER),
        ([LR % "{train.optimizer.name: []}"], 0, "asks for train.optimizer.name of an empty list"),
        ([LR % "{train.optimizer: {name: sgd}}"], 0, NEVER),
        (["train.accumulate: {choice: [1, 2]}", LR % "{train.accumulate: true}"], 1, NEVER),
        # On a key that is itself not set there.
        (
            [
                "train.batch_size: {choice: [2, 8]}",
                "train.clip_norm: {choice: [5.0], when: {train.batch_size: 8}}",
                LR % "{train.clip_norm: 5.0, train.batch_size: 2}",
            ],
            2,
            "never hold together",
        ),
        (
            [
                "train.batch_size: {choice: [2, 8]}",
                "train.clip_norm: {choice: [5.0], when: {train.batch_size: 8}}",
                LR % "{train.clip_norm: 4.0}",
            ],
            2,
            "it is not given or 5.0 in every trial",
        ),
        # Weights and data that are not there.
        (
            ["train.init_from: {choice: [null, /nowhere/a.pth]}"],
            0,
            "train.init_from would be /nowhere/a.pth, which does not exist",
        ),
        (
            ["data.val.annotations: {choice: [annotations/instances_val.json, nowhere.json]}"],
            0,
            "squares/nowhere.json, which does not exist",
        ),
        # The section comes after its part.
        (
            ["train.optimizer.lr: {uniform: [0.1, 0.2]}",
             "train.optimizer: {choice: [{name: sgd, lr: 0.1}, {name: adamw, lr: 0.1}]}"],
            0,
            REPLACED,
        ),
        (
            ["train.schedule.warmup_epochs: {integer: [1, 2]}",
             "train.schedule: {choice: [{name: cosine}], when: {detector.name: ssd}}"],
            0,
            REPLACED,
        ),
        # The part of a choice is set by a later key whenever it is chosen.
        (
            [OPTIMIZERS % (", lr: 0.3", ""), "train.optimizer.lr: {uniform: [0.1, 0.2]}"],
            0,
            REPLACED,
        ),
        (
            ["train.optimizer: {choice: [{name: sgd, lr: 0.3}, {name: adamw, lr: 0.3}]}",
             LR % "{train.optimizer.name: adamw}"],
            0,
            "choice 2 says lr is 0.3, which train.optimizer.lr replaces",
        ),
    ],
)  # fmt: skip
def test_what_no_trial_would_do_is_refused_at_its_line(
    tmp_path: Path, lines: list[str], culprit: int, message: str
) -> None:
    plan = planner(tmp_path, "trials: 3\nspace:\n" + "\n".join(f"  {line}" for line in lines))
    with pytest.raises(ConfigError) as refused:
        plan.check()
    number = (tmp_path / "swept.yaml").read_text().splitlines().index(f"    {lines[culprit]}") + 1
    key = lines[culprit].partition(":")[0]
    assert f"swept.yaml:{number} sweep.space.{key}: " in str(refused.value)
    assert message in str(refused.value)
    assert ": 1 problem\n" in str(refused.value)


@pytest.mark.parametrize(
    "lines",
    [
        [LR % "{detector.name: ssd}"],
        [MOMENTUM % "", LR % "{train.optimizer.momentum: [0.5, 0.9]}"],
        ["train.batch_size: {integer: [2, 8], step: 2}", LR % "{train.batch_size: 4}"],
        ["train.clip_norm: {uniform: [1, 9], step: 2}", LR % "{train.clip_norm: 3}"],
        # The section first, then what is set in all, or in some, of its kinds.
        [OPTIMIZERS % ("", ""), "train.optimizer.lr: {uniform: [0.1, 0.2]}"],
        [
            OPTIMIZERS % ("", ", lr: 0.3"),
            LR % "{train.optimizer.name: sgd}",
            MOMENTUM % ", when: {train.optimizer.name: sgd}",
        ],
        # A part that is replaced in some trials only still does something in the others.
        [
            "train.batch_size: {choice: [2, 8]}",
            "train.optimizer: {choice: [{name: sgd, lr: 0.3}]}",
            LR % "{train.batch_size: 8}",
        ],
        # Never in the same trial.
        [
            "train.batch_size: {choice: [4, 8]}",
            "train.optimizer.lr: {uniform: [0.1, 0.2], when: {train.batch_size: 4}}",
            "train.optimizer: {choice: [{name: adamw, lr: 0.1}], when: {train.batch_size: 8}}",
        ],
    ],
)
def test_conditions_that_hold_somewhere_are_taken(tmp_path: Path, lines: list[str]) -> None:
    planner(tmp_path, "trials: 3\nspace:\n" + "\n".join(f"  {line}" for line in lines)).check()
