from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.tracking.ship import ENVIRONMENT


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory) -> Path:
    """An MLflow database with all its tables: making them takes several seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def tracking_uri(migrated_database: Path, tmp_path: Path, monkeypatch) -> str:
    """An empty MLflow database of its own for each test."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    copy = shutil.copy(migrated_database, tmp_path / "mlflow.db")
    return f"sqlite:///{copy}"


@pytest.fixture
def connect() -> Callable[[str], Any]:
    from mlflow import MlflowClient

    return lambda uri: MlflowClient(tracking_uri=uri)
