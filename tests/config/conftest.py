from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.errors import ConfigError

#: The shortest complete experiment, with the line numbers that the tests count on.
MINIMAL = """\
name: run
detector: {name: ssd}
data:
  train: {images: a, annotations: a.json}
  val: {images: b, annotations: b.json}
train:
  epochs: 10
  batch_size: 16
  optimizer:
    name: sgd
    lr: 1e-2
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ResolvedExperiment]:
    """Loads text as the file e.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> ResolvedExperiment:
        Path("e.yaml").write_text(text, encoding="utf-8")
        return load_experiment("e.yaml", overrides)

    return load


@pytest.fixture
def mistakes(load: Callable[..., ResolvedExperiment]) -> Callable[..., list[str]]:
    """The located lines of the error that loading text raises."""

    def mistakes(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        first, *lines, last = str(caught.value).splitlines()
        assert first.startswith("e.yaml: ")
        same = any(line.startswith("override '") for line in lines) * " and the same overrides"
        assert last == f"Correct this and check it with: orchestrator config show e.yaml{same}"
        return lines

    return mistakes


@pytest.fixture
def minimal() -> str:
    return MINIMAL
