from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.config.resolve import ResolvedExperiment, flatten

Load = Callable[..., ResolvedExperiment]
Mistakes = Callable[..., list[str]]

# Overrides; values expected by dotted path.
APPLIED: dict[str, tuple[list[str], dict[str, object]]] = {
    "number": (["train.optimizer.lr=3e-4"], {"train.optimizer.lr": 3e-4}),
    "integer for a float": (["train.optimizer.lr=1"], {"train.optimizer.lr": 1.0}),
    "text": (["name=second"], {"name": "second"}),
    "text that YAML 1.1 takes for a boolean": (["name=no"], {"name": "no"}),
    "quoted number is text": (["name='300'"], {"name": "300"}),
    "spaces around it": (["seed = 7 "], {"seed": 7}),
    "an equals sign in the value": (["storage=a=b"], {"storage": "a=b"}),
    "hash and colon in the value": (["storage=/b/#1: x"], {"storage": "/b/#1: x"}),
    "what YAML would take for an alias": (["storage=*x"], {"storage": "*x"}),
    "null": (["tracking.mlflow=null"], {"tracking.mlflow": None}),
    "boolean": (["data.keep_empty=true"], {"data.keep_empty": True}),
    "in a section that is not in the file": (["cluster.workers=2"], {"cluster.workers": 2}),
    "in a default section of several kinds": (
        ["data.augmentation.crop_attempts=9"],
        {"data.augmentation.name": "ssd", "data.augmentation.crop_attempts": 9},
    ),
    "in a section that is null by default": (
        ["train.ema.decay=0.99", "train.ema.warmup_steps=0"],
        {"train.ema.decay": 0.99, "train.ema.warmup_steps": 0},
    ),
    "item of a default list": (
        ["data.augmentation.min_ious.0=0.2"],
        {"data.augmentation.min_ious.0": 0.2, "data.augmentation.min_ious.1": 0.1},
    ),
    "item becomes null": (
        ["data.augmentation.min_ious.5=null"],
        {"data.augmentation.min_ious.4": 0.7, "data.augmentation.min_ious.5": None},
    ),
    "whole list": (
        ["data.augmentation.min_ious=[null, 0.5]"],
        {"data.augmentation.min_ious.0": None, "data.augmentation.min_ious.1": 0.5},
    ),
    "least and most workers": (
        ["cluster.min_workers=null", "cluster.workers={min: 2, max: 4}"],
        {"cluster.workers": 4, "cluster.min_workers": 2},
    ),
    "the most workers of a range given before": (
        ["cluster.workers={min: 1, max: 4}", "cluster.workers.max=8"],
        {"cluster.workers": 8, "cluster.min_workers": 1},
    ),
    "a label": (["cluster.labels.zone=b"], {"cluster.labels.zone": "b"}),
    "a label with dots": (
        ["cluster.labels.a.example/zone=b", "cluster.labels.c=d"],
        {"cluster.labels.a.example/zone": "b", "cluster.labels.c": "d"},
    ),
    "a key of a sweep": (
        ["sweep.trials=2", "sweep.space.train.optimizer.lr={loguniform: [1e-4, 1e-3]}"],
        {"sweep.space.train.optimizer.lr.loguniform.1": 1e-3},
    ),
    "a part of a key of a sweep": (
        [
            "sweep.trials=2",
            "sweep.space.train.optimizer.lr.uniform=[0.1, 0.2]",
            "sweep.space.train.optimizer.lr.uniform.1=0.3",
            "sweep.space.train.optimizer.lr.when.detector.name=ssd",
        ],
        {
            "sweep.space.train.optimizer.lr.uniform.1": 0.3,
            "sweep.space.train.optimizer.lr.when.detector.name": "ssd",
        },
    ),
    "an item of a list of augmentations": (
        [
            "data.augmentation=[{name: photometric}, {name: ssd}]",
            "data.augmentation.0.hue=4",
            "data.augmentation.1.crop_attempts=9",
        ],
        {"data.augmentation.steps.0.hue": 4, "data.augmentation.last.crop_attempts": 9},
    ),
    "the same as it is printed": (
        [
            "data.augmentation=[{name: photometric}, {name: ssd}]",
            "data.augmentation.steps.0.hue=4",
            "data.augmentation.last.crop_attempts=9",
        ],
        {"data.augmentation.steps.0.hue": 4, "data.augmentation.last.crop_attempts": 9},
    ),
    "whole section": (
        ["train.optimizer={name: adamw, lr: 2e-3}"],
        {"train.optimizer.name": "adamw", "train.optimizer.lr": 2e-3},
    ),
    "kind of an empty section, then its key": (
        ["train.schedule.name=cosine", "train.schedule.end_factor=0"],
        {"train.schedule.name": "cosine", "train.schedule.end_factor": 0.0},
    ),
    "the last one holds": (["seed=5", "seed=6"], {"seed": 6}),
    "an item of a list given before": (
        ["data.augmentation.min_ious=[0.5, 0.6]", "data.augmentation.min_ious.1=1"],
        {"data.augmentation.min_ious.0": 0.5, "data.augmentation.min_ious.1": 1.0},
    ),
}

# Overrides; how the one line of complaint starts; what it says.
REFUSED: dict[str, tuple[list[str], str, str]] = {
    "no value": (["train.epochs"], "override 'train.epochs':", "is key.path=value"),
    "two words": (["train.epochs", "3"], "override 'train.epochs 3':", "one: train.epochs=3"),
    "two words, of a key without a section": (["seed", "3"], "override 'seed 3':", "one: seed=3"),
    "no key": (["=3"], "override '=3':", "is key.path=value"),
    "empty part": (["train..epochs=3"], "override 'train..epochs=3':", "is key.path=value"),
    "dashes": (["--train.epochs=3"], "override '--train.epochs=3':", "no dashes"),
    "nothing after =": (["train.epochs="], "override 'train.epochs=':", "no value after"),
    "unknown key": (["train.epoch=3"], "override 'train.epoch=3':", "did you mean 'epochs'?"),
    "letter case": (["train.Epochs=3"], "override 'train.Epochs=3':", "did you mean 'epochs'?"),
    "unknown section": (["trian.epochs=3"], "override 'trian.epochs=3' trian:", "'train'?"),
    "known elsewhere": (
        ["train.lr=3"],
        "override 'train.lr=3':",
        "did you mean 'train.optimizer.lr'",
    ),
    "key of another kind": (
        ["train.optimizer.betas=[0.9, 0.9]"],
        "override 'train.optimizer.betas=[0.9, 0.9]':",
        "unknown key of sgd",
    ),
    "below a value": (["train.epochs.x=3"], "override 'train.epochs.x=3':", "a whole number >= 1"),
    "below a value not in the file": (["seed.x=3"], "override 'seed.x=3':", "a whole number >= 0"),
    "octal": (["seed=010"], "override 'seed=010':", "leading zero"),
    "infinite": (["train.optimizer.lr=.inf"], "override 'train.optimizer.lr=.inf':", "finite"),
    "interpolation": (["storage=${HOME}/x"], "override 'storage=${HOME}/x':", "nothing expands"),
    "wrong type": (["train.epochs=ten"], "override 'train.epochs=ten':", "found 'ten', allowed is"),
    "boolean for a number": (["train.epochs=true"], "override 'train.epochs=true':", "found true"),
    "null where none may be": (
        ["train.epochs=null"],
        "override 'train.epochs=null':",
        "found null",
    ),
    "out of range": (["data.crowd=incl"], "override 'data.crowd=incl':", "did you mean 'include'?"),
    "index too large": (
        ["data.augmentation.min_ious.6=1"],
        "override 'data.augmentation.min_ious.6=1':",
        "allowed is 0 to 5",
    ),
    "negative index": (
        ["data.augmentation.min_ious.-1=1"],
        "override 'data.augmentation.min_ious.-1=1':",
        "allowed is 0 to 5",
    ),
    "key of a list": (
        ["data.augmentation.min_ious.first=1"],
        "override 'data.augmentation.min_ious.first=1':",
        "allowed is 0 to 5",
    ),
    "unclosed list": (
        ["data.augmentation.min_ious=[1, 2"],
        "override 'data.augmentation.min_ious=[1, 2':",
        "close the bracket",
    ),
    "duplicate inside": (
        ["train.optimizer={name: sgd, lr: 1, lr: 2}"],
        "override 'train.optimizer={name: sgd, lr: 1, lr: 2}' train.optimizer.lr:",
        "duplicate key",
    ),
    "tag inside": (
        ["train.optimizer={name: !!str sgd, lr: 1}"],
        "override 'train.optimizer={name: !!str sgd, lr: 1}' train.optimizer.name:",
        "tags are not allowed",
    ),
    "too deep": (["name=" + "[" * 40 + "]" * 40], "override 'name=[[", "32 levels"),
    "the least of the workers twice": (
        ["cluster.workers={min: 1, max: 2}", "cluster.min_workers=2"],
        "override 'cluster.min_workers=2':",
        "cluster.workers (override 'cluster.workers={min: 1, max: 2}') is {min: 1, max: 2}",
    ),
    "index behind a list of augmentations": (
        ["data.augmentation=[{name: photometric}, {name: ssd}]", "data.augmentation.2.hue=4"],
        "override 'data.augmentation.2.hue=4' data.augmentation.2:",
        "found the index '2', allowed is 0 to 1",
    ),
    "unknown key of an augmentation": (
        ["data.augmentation=[{name: photometric}, {name: ssd}]", "data.augmentation.0.hew=4"],
        "override 'data.augmentation.0.hew=4' data.augmentation.steps.0.hew:",
        "did you mean 'hue'?",
    ),
    "below a number that may be a section": (
        ["cluster.workers=4", "cluster.workers.max=8"],
        "override 'cluster.workers.max=8':",
        "'cluster.workers' is 4, allowed is a whole number >= 1 or a section with the keys min, "
        "max; give it whole",
    ),
    "below a label": (
        ["cluster.labels={zone: b}", "cluster.labels.zone.x=[c]"],
        "override 'cluster.labels.zone.x=[c]':",
        "found a list of 1, allowed is text",
    ),
    "unknown part of a key of a sweep": (
        ["sweep.space.train.optimizer.lr={unifrom: [1, 2]}", "sweep.trials=2"],
        "override 'sweep.space.train.optimizer.lr={unifrom: [1, 2]}' "
        "sweep.space.train.optimizer.lr.unifrom:",
        "did you mean 'uniform'?",
    ),
    "half a section": (
        ["train.ema.decay=0.9"],
        "override 'train.ema.decay=0.9' train.ema.warmup_steps:",
        "required key is missing",
    ),
    "kind changed, keys of the old one left": (
        ["data.augmentation={name: ssd, min_crop: 0.1}", "data.augmentation.name=none"],
        "override 'data.augmentation={name: ssd, min_crop: 0.1}' data.augmentation.min_crop:",
        "unknown key of none",
    ),
}


@pytest.mark.parametrize("case", APPLIED)
def test_an_override_sets_its_value(case: str, load: Load, minimal: str) -> None:
    overrides, expected = APPLIED[case]
    found = flatten(load(minimal, *overrides).tree)
    assert {path: found[path] for path in expected} == expected
    for path, value in expected.items():
        assert type(found[path]) is type(value)


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_override_is_refused_by_name(case: str, mistakes: Mistakes, minimal: str) -> None:
    overrides, where, what = REFUSED[case]
    (found,) = mistakes(minimal, *overrides)
    assert found.startswith(where)
    assert what in found


def test_wrong_overrides_and_a_wrong_file_are_reported_together(
    mistakes: Mistakes, minimal: str
) -> None:
    text = minimal.replace("epochs: 10", "epochs: ten")
    found = mistakes(text, "train.bach_size=8", "seed=x", "a")
    assert [line.split(":")[0] for line in found] == [
        "e.yaml",
        "override 'a'",
        "override 'seed=x'",
        "override 'train.bach_size=8'",
    ]


def test_an_override_repairs_the_value_it_replaces(load: Load, minimal: str) -> None:
    text = minimal.replace("epochs: 10", "epochs: ten")
    assert load(text, "train.epochs=3").experiment.train.epochs == 3


def test_a_refused_override_leaves_no_trace(mistakes: Mistakes, minimal: str) -> None:
    # An opened but never filled train.ema would be a second complaint.
    (found,) = mistakes(minimal, "train.ema.decey=0.9")
    assert "did you mean 'decay'?" in found


def test_credentials_in_an_override_are_not_repeated(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(minimal, "tracking.mlflow=https://me:hunter2@host")
    assert "hunter2" not in found
    assert "MLFLOW_TRACKING_PASSWORD" in found
