"""Every YAML block of README and documents: an experiment, or part of one, that is accepted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.resolve import load_experiment, read_template
from orchestrator.config.schema import Experiment
from orchestrator.config.schema.data import DataConfig
from orchestrator.sweeps.plan import check_sweep

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.S | re.M)
BLOCKS = [
    pytest.param(block, id=f"{file.name}-{number}")
    for file in FILES
    for number, block in enumerate(BLOCK.findall(file.read_text()))
    if yaml.safe_load(block) is not None
]
#: What a block that shows a part of an experiment is part of.
AROUND = """
name: around
detector: {name: ssd}
data:
  root: data/bccd
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train: {epochs: 120, batch_size: 16, optimizer: {name: sgd, lr: 0.02}}
"""


def laid_over(base: Any, part: Any) -> Any:
    """``part`` over ``base``; a split of the data is one thing or the other, never both."""
    if not isinstance(base, dict) or not isinstance(part, dict) or "shards" in part:
        return part
    return {**base, **{key: laid_over(base.get(key), value) for key, value in part.items()}}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_what_the_program_takes(block: str, tmp_path: Path) -> None:
    part = yaml.safe_load(block)
    if "extends" in part:
        part["extends"] = str(ROOT / "experiments" / part["extends"])
    elif not set(part) <= set(Experiment.model_fields):
        part = {"data" if set(part) <= set(DataConfig.model_fields) else "train": part}
    whole = part if "name" in part else laid_over(yaml.safe_load(AROUND), part)
    file = tmp_path / "documented.yaml"
    file.write_text(yaml.safe_dump(whole, sort_keys=False))
    template = read_template(file)
    check_sweep(template, template.resolve())


def test_a_block_with_the_name_of_a_shipped_experiment_is_that_experiment(tmp_path: Path) -> None:
    """Another of the same name would be refused by its folder, or miss the quoted figures."""
    shipped = {}
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        experiment = load_experiment(file).experiment
        shipped[experiment.name] = experiment
    compared = []
    for number, (block,) in enumerate(param.values for param in BLOCKS):
        name = yaml.safe_load(block).get("name")
        if name in shipped and "extends" not in block:
            file = tmp_path / f"{number}.yaml"
            file.write_text(block)
            assert load_experiment(file).experiment == shipped[name], name
            compared.append(name)
    assert "ssd300-mobilenet-v2-w035-bccd" in compared


def test_no_block_is_passed_over() -> None:
    assert len(BLOCKS) >= 11
