"""Experiment files laid over one another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.errors import ConfigError

Load = Callable[..., ResolvedExperiment]


def write(**files: str) -> None:
    for name, text in files.items():
        path = Path(name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_values_are_laid_over_those_of_the_parent(load: Load, minimal: str) -> None:
    write(
        base=minimal, family__middle="extends: ../base.yaml\ntrain: {epochs: 7, clip_norm: 2.0}\n"
    )
    resolved = load(
        "extends: family/middle.yaml\nname: last\n"
        "train:\n  epochs: 9\n  optimizer: {name: adamw, lr: 3e-4}\n",
        "train.batch_size=8",
    )
    train = resolved.experiment.train
    assert (resolved.experiment.name, train.epochs, train.clip_norm) == ("last", 9, 2.0)
    assert train.batch_size == 8
    # Another kind of optimizer: nothing of the parent's is kept.
    assert (train.optimizer.name, train.optimizer.lr) == ("adamw", 3e-4)
    origins = resolved.origins
    assert origins["name"] == "e.yaml:2"
    assert origins["train.epochs"] == "e.yaml:4"
    assert origins["train.clip_norm"] == "family/middle.yaml:2"
    assert origins["train.optimizer.lr"] == "e.yaml:5"
    assert origins["train.batch_size"] == "override"
    assert origins["data.train.images"].endswith("base.yaml:4")
    assert "extends" not in resolved.tree


def test_the_same_section_by_another_way_has_the_same_digest(load: Load, minimal: str) -> None:
    whole = load(minimal, "train.epochs=3", "train.optimizer.lr=0.5")
    write(base=minimal)
    assert load("extends: base.yaml\ntrain: {epochs: 3, optimizer: {lr: 0.5}}\n").digest == (
        whole.digest
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: e.yaml\n", "e.yaml:1 extends: leads in a circle: e.yaml extends e.yaml"),
        ("extends: round.yaml\n", "round.yaml:1 extends: leads in a circle: e.yaml extends round"),
        ("extends: bsae.yaml\n", "e.yaml:1 extends: experiment file bsae.yaml does not exist; did"),
        ("extends: [base.yaml]\n", "e.yaml:1 extends: found a list of 1, allowed is the path of"),
        ("extends: ''\n", "e.yaml:1 extends: found '', allowed is the path of one experiment file"),
        ("extends: ~\n", "e.yaml:1 extends: found null, allowed is the path of one experiment"),
        ("extends: loop.yaml\n", "e.yaml:1 extends: experiment file loop.yaml cannot be read: Too"),
        (f"extends: {'a' * 300}.yaml\n", "yaml cannot be read: File name too long; give the path"),
        ("extends: .\n", "e.yaml:1 extends: experiment file . cannot be read: Is a directory"),
        ("extends: base.yaml\ntrain: {epochs: -1}\n", "e.yaml:2 train.epochs: found -1"),
        ("extends: wrong.yaml\n", "wrong.yaml:7 train.epochs: found -1"),
    ],
)
def test_mistakes_are_located_in_the_file_that_makes_them(
    text: str, message: str, load: Load, minimal: str
) -> None:
    write(
        base=minimal, round="extends: e.yaml\n", wrong=minimal.replace("epochs: 10", "epochs: -1")
    )
    Path("loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message in str(caught.value)
    assert str(caught.value).endswith("check it with: orchestrator config show e.yaml")


def test_every_shipped_recipe_resolves_with_its_parents() -> None:
    for path in sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml")):
        assert load_experiment(path).experiment.name
