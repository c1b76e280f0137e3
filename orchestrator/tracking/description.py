"""What describes a run in MLflow - parameters, tags and data sets - as MLflow takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.tracking.mlflow_names import MAX_TAG, clean_name, param_text

_NOTE = "mlflow.note.content"
#: Before the name of a parameter that has changed since the run was made.
CHANGED = "changed/"
_ARROW = " -> "
_MAX_DIGEST = 36


def new_params(params: Mapping[str, object], there: Mapping[str, str]) -> list[Any]:
    """Parameters that a run does not have.

    Args:
        params: plain values by dotted path.
        there: what the run has.
    """
    from mlflow.entities import Param

    return [Param(key, value) for key, value in _texts(params).items() if key not in there]


def tags_of(
    tags: Mapping[str, str],
    params: Mapping[str, object],
    first: Mapping[str, str],
    there: Mapping[str, str],
) -> list[Any]:
    """Tags of a run; a parameter with another value than the first is one, and a line of the note.

    Args:
        tags: by name.
        params: plain values by dotted path.
        first: parameters that the run has.
        there: tags that the run has.
    """
    from mlflow.entities import RunTag

    changes = _changes(_texts(params), first, there)
    named = {**tags, **changes}
    lines = [f"- `{key.removeprefix(CHANGED)}`: {text}" for key, text in changes.items()]
    if lines:
        head = "Changed between two starts; the parameters show the first values:"
        note = [named[_NOTE]] if _NOTE in named else []
        named[_NOTE] = "\n\n".join([*note, "\n".join([head, "", *lines])])
    return [RunTag(clean_name(key), str(text)[:MAX_TAG]) for key, text in named.items()]


def _texts(params: Mapping[str, object]) -> dict[str, str]:
    return {clean_name(key): param_text(value) for key, value in params.items()}


def _changes(
    params: Mapping[str, str], first: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, str]:
    """Tags of the parameters that have changed: every value so far, oldest first."""
    found = {}
    for key, value in params.items():
        before = tags.get(f"{CHANGED}{key}", first.get(key, value))
        if before != value and not before.endswith(f"{_ARROW}{value}"):
            found[f"{CHANGED}{key}"] = f"{before}{_ARROW}{value}"
        elif f"{CHANGED}{key}" in tags:
            found[f"{CHANGED}{key}"] = before
    return found


def input_of(data: Mapping[str, str]) -> Any:
    """A data set as MLflow's list of them has it.

    Args:
        data: ``name``, ``digest``, ``context``, ``source`` and ``profile``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(
        dataset=Dataset(
            name=data["name"],
            digest=data["digest"][:_MAX_DIGEST],
            source_type="local",
            source=data["source"],
            profile=data["profile"],
        ),
        tags=[InputTag("mlflow.data.context", data["context"])],
    )
