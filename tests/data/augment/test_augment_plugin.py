"""Augmentations of an installed package: named in an experiment, shown, trained with."""

from __future__ import annotations

from pathlib import Path

from tests.support.plugin_runs import ROOT, run_with

PLUGIN = Path(__file__).with_name("plugin")
EXPERIMENT = """\
extends: {root}/experiments/quickstart.yaml
name: grey
data:
  root: {data}
  augmentation: {augmentation}
train: {{max_steps: 2, batch_size: 2, log_every_steps: 1}}
detector: {{width: 0.1}}
tracking: {{mlflow: null}}
"""
TRAIN = """\
import sys
from pathlib import Path
from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.training.session import run_rank
plan = make_plan(load_experiment(sys.argv[1]), Path(sys.argv[1]).parent / "run", threads=1)
batch = next(LocalStream(plan.batches).train_batches(0, 1))
run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
print(bool((batch.images[..., 0] == batch.images[..., 1]).all()),
      bool((batch.images[:, 150:] == 0).all()))
"""


def test_an_experiment_is_trained_with_them(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    chain = "[{name: grey, probability: 1.0}, {name: corner}]"
    file.write_text(EXPERIMENT.format(root=ROOT, data=digits, augmentation=chain))
    shown = run_with(PLUGIN, "-m", "orchestrator.cli.main", "config", "show", str(file))
    assert shown.returncode == 0, shown.stderr
    assert "probability: 1.0" in shown.stdout
    trained = run_with(PLUGIN, "-c", TRAIN, str(file))
    assert trained.stdout.splitlines()[-1:] == ["True True"], trained.stderr


def test_without_the_package_its_names_are_unknown(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT.format(root=ROOT, data=digits, augmentation="{name: corner}"))
    shown = run_with(None, "-m", "orchestrator.cli.main", "config", "show", str(file))
    assert shown.returncode == 64
    assert "data.augmentation.name: found 'corner', allowed is" in shown.stderr
