"""Names, judged by MLflow's own checks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.tracking.mlflow_names import clean_name, param_text


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
