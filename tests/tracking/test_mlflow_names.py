"""Names and addresses, judged by MLflow's own checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.tracking.mlflow_names import clean_name, param_text, resolve_tracking_uri


@pytest.mark.parametrize(
    "name",
    ["val/AP", "val/AP/traffic light", "train/loss_cls", "train.optimizer.betas.0", "val/AP/Bär"],
)
def test_good_names_stay(name):
    assert clean_name(name) == name


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("AP@[0.5:0.95]", "AP__0.5:0.95_-"),
        ("val/AP/Hello Kitty (toy)", "val/AP/Hello Kitty _toy_-"),
        ("val/AP/..", "val/AP/_-"),
        ("/etc", "_/etc-"),
        ("val//AP", "val/_/AP-"),
        ("", "_-"),
        ("x" * 400, "x" * 241 + "-"),
    ],
)
def test_other_names_are_changed_and_marked(name, start):
    cleaned = clean_name(name)
    assert cleaned.startswith(start)
    assert len(cleaned) == len(start) + 8


@settings(deadline=None)  # The first example imports MLflow.
@given(st.text(max_size=300))
def test_mlflow_accepts_every_name(name):
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    cleaned = clean_name(name)
    _validate_metric_name(cleaned)
    _validate_param_name(cleaned)
    assert len(cleaned) <= 250


@given(st.sets(st.text("ab@[./", max_size=6), min_size=2))
def test_different_names_stay_different(names):
    assert len({clean_name(name) for name in names}) == len(names)


def test_parameter_values():
    assert [param_text(v) for v in ("sgd", 1e-3, True, None, 16)] == [
        "sgd",
        "0.001",
        "true",
        "null",
        "16",
    ]
    assert len(param_text("x" * 9000)) == 6000


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
    assert resolve_tracking_uri(uri, Path("/")) == uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("./mlruns", "allowed are sqlite"),
        ("file:///x/mlruns", "MLflow keeps no runs in folders"),
        ("sqllite:///a.db", "did you mean sqlite"),
        ("sqlite://", "expected sqlite:///FILE"),
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
def test_what_mlflow_does_not_serve_is_refused(uri, message):
    with pytest.raises(ConfigError, match=message):
        resolve_tracking_uri(uri, Path("/"))


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
    with pytest.raises(ConfigError, match="in memory"):
        resolve_tracking_uri(uri, Path("/base"))
