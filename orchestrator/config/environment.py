"""Values that an experiment leaves open and MLflow's own environment variables give."""

from __future__ import annotations

import os
from typing import Final

from orchestrator.config.overrides import put_default
from orchestrator.config.problems import Place
from orchestrator.config.yaml_loader import Document

#: Before the variable, in the origin of a value.
PREFIX: Final = "environment "
#: Variables of MLflow that say where to, and the keys they stand for.
FROM_ENVIRONMENT: Final = {
    "MLFLOW_TRACKING_URI": "tracking.mlflow",
    "MLFLOW_EXPERIMENT_NAME": "tracking.experiment",
}


def apply(document: Document) -> None:
    """Set what the variables say where neither file nor override says anything."""
    for variable, key in FROM_ENVIRONMENT.items():
        value = os.environ.get(variable)
        if value and tuple(key.split(".")) not in document.places:
            put_default(key, value, Place(f"{PREFIX}{variable}"), document)
