from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.config.printing import dump_yaml, print_config
from orchestrator.config.resolve import ABSENT, ResolvedExperiment, diff, digest, flatten
from orchestrator.config.schema import SGDOptimizer
from orchestrator.errors import ConfigError

Load = Callable[..., ResolvedExperiment]

# The minimal experiment again: other order, quotes, comments, number formats and aliases.
REWRITTEN = """\
# the same
train: {optimizer: {lr: 0.01, 'name': "sgd"}, batch_size: 0x10, epochs: +10}
data:
    val:   {annotations: b.json, images: "b"}   # last first
    train:
        images: &a a
        annotations: >-
            a.json
"detector":
    name: ssd
name: run
seed: 1
"""


def test_the_digest_is_of_the_values_and_not_of_how_they_are_written(
    load: Load, minimal: str
) -> None:
    one, two = load(minimal), load(REWRITTEN)
    assert one.digest == two.digest
    assert one.experiment == two.experiment


def test_the_digest_is_sha256_of_canonical_json(load: Load, minimal: str) -> None:
    resolved = load(minimal)
    canonical = json.dumps(resolved.tree, sort_keys=True, separators=(",", ":"))
    assert resolved.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert digest({"b": 1.0, "a": [None, True]}) == (
        hashlib.sha256(b'{"a":[null,true],"b":1.0}').hexdigest()
    )


@pytest.mark.parametrize(
    "override",
    ["seed=2", "train.optimizer.lr=0.011", "data.crowd=include", "train.clip_norm=1", "name=other"],
)
def test_the_digest_changes_with_any_value(override: str, load: Load, minimal: str) -> None:
    assert load(minimal, override).digest != load(minimal).digest


def test_a_default_written_out_changes_nothing(load: Load, minimal: str) -> None:
    assert load(minimal, "train.optimizer.momentum=0.9").digest == load(minimal).digest


def test_integers_become_the_floats_that_fields_hold(load: Load, minimal: str) -> None:
    resolved = load(minimal, "train.optimizer.lr=1", "train.loss_scale=1024")
    optimizer = resolved.experiment.train.optimizer
    assert type(optimizer.lr) is float
    assert resolved.experiment.train.loss_scale == 1024.0
    assert resolved.tree == load(minimal, "train.optimizer.lr=1.0", "train.loss_scale=1024.0").tree


def test_a_resolved_experiment_is_frozen(load: Load, minimal: str) -> None:
    experiment = load(minimal).experiment
    assert isinstance(experiment.train.optimizer, SGDOptimizer)
    with pytest.raises(ValidationError, match="frozen"):
        experiment.seed = 2  # type: ignore[misc]
    assert isinstance(experiment.data.augmentation.min_ious, tuple)


def test_every_value_has_its_origin(load: Load, minimal: str) -> None:
    resolved = load(minimal, "train.epochs=3", "data.augmentation.min_ious.1=0.2")
    assert list(resolved.origins) == list(flatten(resolved.tree))
    expected = {
        "name": "e.yaml:1",
        "seed": "default",
        "detector.name": "e.yaml:2",
        "detector.loss.gamma": "default",
        "data.train.images": "e.yaml:4",
        "data.augmentation.min_ious.0": "default",
        "data.augmentation.min_ious.1": "override",
        "train.epochs": "override",
        "train.batch_size": "e.yaml:8",
        "train.optimizer.name": "e.yaml:10",
        "train.optimizer.lr": "e.yaml:11",
        "train.optimizer.momentum": "default",
    }
    assert {path: resolved.origins[path] for path in expected} == expected


OVERRIDES = [
    ["train.optimizer={name: adamw, lr: 1e-5, eps: 1e-20}"],
    ["train.schedule={name: multistep, milestones: [4, 8.5], factors: [0.1, 0]}"],
    ["train.ema={decay: 0.9998, warmup_steps: 2000}", "tracking.mlflow=null"],
    ["data.augmentation={name: none}", "name=no", "storage='1e-3'"],
    ["data.root=010/x", "storage=s3:/b/a b: c # d", "data.val.images=-"],
    ["data.root='yes'", 'data.train.images="\\u2028\\x85\\n\'"', "data.val.images=é\U0001f600"],
]


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda overrides: overrides[0])
def test_what_is_printed_loads_as_the_same_experiment(
    overrides: list[str], load: Load, minimal: str
) -> None:
    resolved = load(minimal, *overrides)
    for text in (dump_yaml(resolved), print_config(resolved)):
        again = load(text)
        assert again.tree == resolved.tree
        assert again.digest == resolved.digest
        # Other readers, which follow YAML 1.1, see the same values.
        assert yaml.safe_load(text) == resolved.tree


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(min_value=0, max_value=2**63 - 1),
    # What a shell or a template expands, blanks at the ends and paths of Windows are refused.
    folder=st.text(min_size=1).filter(
        lambda text: (
            text[0] != "~"
            and text == text.strip()
            and not set("$`%{\\") & set(text)
            and text[1:2] != ":"
        )
    ),
)
def test_any_values_survive_printing_and_loading(
    lr: float, seed: int, folder: str, load: Load, minimal: str
) -> None:
    resolved = load(minimal)
    tree = json.loads(json.dumps(resolved.tree))
    tree["train"]["optimizer"]["lr"] = lr
    tree["seed"] = seed
    tree["storage"] = folder.replace("\0", "0")
    changed = ResolvedExperiment(
        experiment=resolved.experiment, tree=tree, origins={}, digest="", source=resolved.source
    )
    assert load(dump_yaml(changed)).tree == tree


def test_print_config_shows_digest_and_origins(load: Load, minimal: str) -> None:
    resolved = load(minimal, "data.augmentation.min_ious.0=0")
    lines = print_config(resolved).splitlines()
    assert lines[0] == f"# digest {resolved.digest}"
    assert lines[1].split() == ["name:", "run", "#", "e.yaml:1"]
    (ious,) = (line for line in lines if "min_ious" in line)
    assert ious.split("# ")[1] == "override, default"
    columns = {line.index("  # ") for line in lines[1:] if "  # " in line}
    assert len(columns) == 1


def test_flatten_names_values_as_overrides_do() -> None:
    tree = {"a": {"b": [1, {"c": None}], "d": []}, "e": {}, "f": "x"}
    assert flatten(tree) == {"a.b.0": 1, "a.b.1.c": None, "a.d": "[]", "e": "{}", "f": "x"}


def test_diff_lists_what_differs() -> None:
    left = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": True}
    right = {"a": 1, "b": {"c": [1], "d": 0}, "e": 1, "g": "new"}
    assert diff(left, right) == [
        ("b.c.1", 2, ABSENT),
        ("b.d", None, 0),
        ("e", True, 1),
        ("g", ABSENT, "new"),
    ]
    assert diff(left, left) == []
    assert str(ABSENT) == "absent"


def test_a_list_of_augmentations_stands_for_a_chain(
    load: Callable[..., ResolvedExperiment], minimal: str
) -> None:
    lists = "  augmentation:\n    - {name: photometric, hue: 9}\n    - {name: none}\ntrain:\n"
    resolved = load(minimal.replace("train:\n  epochs", lists + "  epochs"))
    assert resolved.tree["data"]["augmentation"] == {
        "name": "chain",
        "steps": [
            {
                "name": "photometric",
                "brightness": 32.0,
                "contrast": 0.5,
                "hue": 9,
                "saturation": 0.5,
            }
        ],
        "last": {"name": "none"},
    }
    assert resolved.origins["data.augmentation.steps.0.hue"] == "e.yaml:7"
    with pytest.raises(ConfigError) as caught:
        load(minimal.replace("train:\n  epochs", lists.replace("hue", "hew") + "  epochs"))
    assert "e.yaml:7 data.augmentation.steps.0.hew: unknown key" in str(caught.value)
    assert "did you mean 'hue'?" in str(caught.value)
