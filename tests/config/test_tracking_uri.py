"""Addresses of MLflow: which are taken, and what the others are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.config.tracking_uri import refusal, resolve_tracking_uri


def test_sqlite_files_become_absolute():
    base = Path("/some/where")
    assert resolve_tracking_uri("sqlite:///runs/a.db", base) == "sqlite:////some/where/runs/a.db"
    assert resolve_tracking_uri("sqlite:////abs/a.db", base) == "sqlite:////abs/a.db"


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/x",
        "postgresql://db/mlflow",
        "postgresql+psycopg2://db/mlflow",
        "databricks",
        "databricks://profile",
    ],
)
def test_servers_and_databases_stay(uri):
    assert refusal(uri) is None
    assert resolve_tracking_uri(uri, Path("/")) == uri
    scheme, colon, rest = uri.partition(":")
    if colon:
        # MLflow takes it so, and a server is asked for the place of its artifacts.
        assert refusal(f"{scheme.upper()}:{rest}") is None
        assert resolve_tracking_uri(f"{scheme.upper()}:{rest}", Path("/")) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "allowed are sqlite"),
        ("file:///x/mlruns", "MLflow keeps no runs in folders"),
        ("sqllite:///a.db", "did you mean sqlite"),
        ("databricks-uc", "allowed are sqlite"),
        ("databricks-uc://profile", "did you mean databricks"),
        ("mlruns", "MLflow keeps no runs in folders"),
        ("~/x.db", "allowed are sqlite"),
        ("htp://h", "did you mean http?"),
        ("none", "allowed is an address or null; write null"),
        ("None", "write null"),
        ("sqlite://", "allowed is sqlite:///FILE"),
        ("sqlite:///:memory:", "a database in memory"),
        ("sqlite:///~/x.db", "is not expanded"),
        ("localhost:5000", "did you mean http://localhost:5000"),
        ("127.0.0.1:5000/x", "did you mean http://127.0.0.1:5000/x"),
        ("http://", "names no host"),
        ("https://:443/x", "names no host"),
        ("http:/mlflow", "names no host"),
        ("http://h:99999", "no address"),
        ("http://h:port/", "no address"),
        ("http://[::1", "no address"),
        ("http://h:0", "port is 0"),
        ("http://my server/", "holds a blank"),
    ],
)
def test_what_mlflow_does_not_serve_is_refused_where_it_stands(uri, message, mistakes, minimal):
    (found,) = mistakes(f"{minimal}tracking:\n  mlflow: {json.dumps(uri)}\n")
    assert found.startswith(f"e.yaml:13 tracking.mlflow: found {uri!r}, ")
    assert message in found


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///x.db?timeout=60", "sqlite:////base/x.db?timeout=60"),
        ("SQLite:///x.db", "sqlite:////base/x.db"),
        ("sqlite:////a/x.db?timeout=60&cache=shared", "sqlite:////a/x.db?timeout=60&cache=shared"),
        ("sqlite+pysqlite:///r/x.db?a=b", "sqlite+pysqlite:////base/r/x.db?a=b"),
        (
            "sqlite:///file:r/x.db?mode=rwc&uri=true",
            "sqlite:///file:/base/r/x.db?mode=rwc&uri=true",
        ),
    ],
)
def test_options_of_a_database_stay_with_its_file(uri, expected):
    assert refusal(uri) is None
    assert resolve_tracking_uri(uri, Path("/base")) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///:memory:?timeout=3",
        "sqlite:///?timeout=3",
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_a_database_in_memory_is_refused_with_options_too(uri):
    assert "in memory" in str(refusal(uri))


def test_a_name_that_mlflow_would_refuse_for_ever_is_refused_at_once(load, mistakes, minimal):
    from mlflow.utils.validation import MAX_EXPERIMENT_NAME_LENGTH as LONGEST

    load(f"{minimal}tracking:\n  experiment: {'n' * LONGEST}\n")
    (found,) = mistakes(f"{minimal}tracking:\n  experiment: {'n' * (LONGEST + 1)}\n")
    assert found == (
        "e.yaml:13 tracking.experiment: found a name of 501 characters, allowed by MLflow are 500; "
        "shorten it"
    )
