"""``seed: null``: drawn once, recorded, and taken over by later starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.config.shape import Shape
from orchestrator.errors import ConfigError
from orchestrator.runs import driver
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, open_run, recorded_seed

EXPERIMENT = """
name: run
seed: null
detector: {name: ssd}
data:
  train: {images: a, annotations: a.json}
  val: {images: b, annotations: b.json}
train: {epochs: 10, batch_size: 16, optimizer: {name: sgd, lr: 1e-2}}
"""


def resolve(folder: Path, *overrides: str) -> ResolvedExperiment:
    path = folder / "e.yaml"
    path.write_text(EXPERIMENT)
    return load_experiment(path, overrides)


def test_null_draws_a_number_and_says_where_it_was_asked_for(tmp_path: Path) -> None:
    one, two = resolve(tmp_path), resolve(tmp_path)
    assert one.seed_is_drawn
    assert one.origins["seed"] == f"drawn, {tmp_path / 'e.yaml'}:3"
    assert one.tree["seed"] == one.experiment.seed >= 0
    assert one.experiment.seed != two.experiment.seed
    assert one.digest != two.digest
    assert one.with_seed(two.experiment.seed).digest == two.digest
    assert one.with_seed(5).experiment.seed == 5
    assert resolve(tmp_path, "seed=null").origins["seed"] == "drawn, override"


def test_a_given_seed_is_not_drawn(tmp_path: Path) -> None:
    given = resolve(tmp_path, "seed=7")
    assert (given.experiment.seed, given.seed_is_drawn) == (7, False)
    with pytest.raises(ConfigError, match="allowed is a whole number >= 0 or null"):
        resolve(tmp_path, "seed=-1")
    shape = Shape.root().child("seed")
    assert shape is not None
    assert shape.nullable


def test_a_second_start_takes_over_the_seed_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = resolve(tmp_path)
    run = tmp_path / "run"
    assert recorded_seed(run) is None
    open_run(run, Identity(config_digest(first.tree), "data"), first.tree)
    assert recorded_seed(run) == first.experiment.seed

    class PlannedError(Exception):
        pass

    def plan(resolved: ResolvedExperiment, _: Path, **options: object) -> None:
        assert resolved.experiment.seed == first.experiment.seed
        assert resolved.digest == first.digest
        raise PlannedError

    monkeypatch.setattr(driver, "make_plan", plan)
    with pytest.raises(PlannedError):
        driver.drive(resolve(tmp_path), run, force_resume=False)
    assert f"seed: {first.experiment.seed}, drawn" in capsys.readouterr().out


@pytest.mark.parametrize("record", [None, b"", b"{"])
def test_the_seed_outlives_the_record(record: bytes | None, tmp_path: Path) -> None:
    """Without it, checkpoints would be of no use to anybody."""
    first, run = resolve(tmp_path), tmp_path / "run"
    (run / "config").mkdir(parents=True)
    (run / "config" / "resolved.yaml").write_text(dump_yaml(first))
    if record is not None:
        (run / "run.json").write_bytes(record)
    assert recorded_seed(run) == first.experiment.seed
    (run / "config" / "resolved.yaml").write_text("name: [")
    assert recorded_seed(run) is None
