from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError

Mistakes = Callable[..., list[str]]

FIVE_MISTAKES = """\
name: run
sed: 3
detector: {name: ssd, width: "0.5"}
data:
  train: {images: a, annotations: a.json}
  val: {images: b}
train:
  epochs: 1e2
  batch_size: 16
  optimizer: {name: sdg, lr: 1e-2}
"""

# Text of the minimal file to replace, its replacement, the line expected in full.
SCHEMA: dict[str, tuple[str, str, str]] = {
    "pattern": (
        "name: run",
        "name: my run",
        "e.yaml:1 name: found 'my run', allowed is text that matches "
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    ),
    "number as a name": (
        "name: run",
        "name: 300",
        "e.yaml:1 name: found 300, allowed is text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$; "
        "write quotes around it, which make it text",
    ),
    "power of ten as a name": (
        "name: run",
        "name: 1234e5",
        "e.yaml:1 name: found 123400000.0, allowed is text that matches "
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$; write quotes around it, which make it text",
    ),
    "variable": (
        "images: a,",
        "images: $DATA/a,",
        "e.yaml:4 data.train.images: found '$DATA/a', and nothing expands $DATA; write the path "
        "itself, or give it as an override, where the shell expands it",
    ),
    "variable in an address": (
        "name: run",
        "name: run\ntracking: {mlflow: sqlite:///$HOME/runs.db}",
        "e.yaml:2 tracking.mlflow: found 'sqlite:///$HOME/runs.db', and nothing expands $HOME; "
        "write the path itself, or give it as an override, where the shell expands it",
    ),
    "command in a path": (
        "name: run",
        "name: run\nstorage: $(pwd)/runs",
        "e.yaml:2 storage: found '$(pwd)/runs', and nothing expands $(pwd); write the path "
        "itself, or give it as an override, where the shell expands it",
    ),
    "backquotes in a path": (
        "name: run",
        "name: run\nstorage: '`pwd`/runs'",
        "e.yaml:2 storage: found '`pwd`/runs', and nothing expands `pwd`; write the path "
        "itself, or give it as an override, where the shell expands it",
    ),
    "variable of Windows": (
        "name: run",
        "name: run\nstorage: '%TEMP%/runs'",
        "e.yaml:2 storage: found '%TEMP%/runs', and nothing expands %TEMP%; write the path "
        "itself, or give it as an override, where the shell expands it",
    ),
    "template": (
        "name: run",
        "name: run\nstorage: /shared/{{ user }}/runs",
        "e.yaml:2 storage: found '/shared/{{ user }}/runs', and nothing expands {{ user }}; write "
        "the path itself, or give it as an override, where the shell expands it",
    ),
    "blank at the end": (
        "name: run",
        "name: run\nstorage: 'runs '",
        "e.yaml:2 storage: found 'runs ', which begins or ends with a blank; remove it",
    ),
    "path of Windows": (
        "name: run",
        "name: run\nstorage: C:/runs",
        "e.yaml:2 storage: found 'C:/runs', a path of Windows, where none of this machine's begins "
        "so; write the path that the machines which train have, such as /mnt/c/runs",
    ),
    "empty text": (
        "images: a,",
        "images: '',",
        "e.yaml:4 data.train.images: found '', allowed is text, not empty",
    ),
    "home folder": (
        "images: a,",
        "images: ~/a,",
        "e.yaml:4 data.train.images: a path that starts with '~' is not expanded, because a "
        "worker's home folder may be another one; write it in full",
    ),
    "bucket for working folders": (
        "name: run",
        "name: run\nscratch: s3://bucket/runs",
        "e.yaml:2 scratch: a run folder holds a lock and a log that is appended to, which "
        "'s3://bucket/runs' cannot; allowed is a path that all nodes share, such as /shared/runs",
    ),
    "storage of an unknown kind": (
        "name: run",
        "name: run\nstorage: hdfs://host/runs",
        "e.yaml:2 storage: found 'hdfs://host/runs', allowed is a path that all nodes share, such "
        "as /shared/runs, or s3://bucket/prefix or gs://bucket/prefix",
    ),
    "bucket without a name": (
        "name: run",
        "name: run\nstorage: s3:///runs",
        "e.yaml:2 storage: found 's3:///runs', allowed is a path that all nodes share, such as "
        "/shared/runs, or s3://bucket/prefix or gs://bucket/prefix",
    ),
    "key of a bucket": (
        "name: run",
        "name: run\nstorage: s3://id:secret@bucket/runs",
        "e.yaml:2 storage: the address holds a key, which would be stored with the run; take it "
        "out and set the environment variables of the store, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, instead",
    ),
    "word for a boolean": (
        "  epochs: 10",
        "  epochs: 10\n  deterministic: no",
        "e.yaml:8 train.deterministic: found 'no', allowed is true or false; write false",
    ),
    "number for a boolean": (
        "  epochs: 10",
        "  epochs: 10\n  deterministic: 1",
        "e.yaml:8 train.deterministic: found 1, allowed is true or false",
    ),
    "text for a number": (
        "epochs: 10",
        "epochs: ten",
        "e.yaml:7 train.epochs: found 'ten', allowed is a whole number >= 1",
    ),
    "quoted number": (
        "epochs: 10",
        "epochs: '10'",
        "e.yaml:7 train.epochs: found '10', allowed is a whole number >= 1; "
        "write 10, without quotes",
    ),
    "underscores": (
        "epochs: 10",
        "epochs: 1_000",
        "e.yaml:7 train.epochs: found '1_000', allowed is a whole number >= 1; "
        "write 1000, without quotes",
    ),
    "float for an integer": (
        "epochs: 10",
        "epochs: 1e1",
        "e.yaml:7 train.epochs: found 10.0, allowed is a whole number >= 1; write 10",
    ),
    "fraction for an integer": (
        "epochs: 10",
        "epochs: 1.5",
        "e.yaml:7 train.epochs: found 1.5, allowed is a whole number >= 1",
    ),
    "boolean for an integer": (
        "epochs: 10",
        "epochs: true",
        "e.yaml:7 train.epochs: found true, allowed is a whole number >= 1",
    ),
    "too small": (
        "epochs: 10",
        "epochs: 0",
        "e.yaml:7 train.epochs: found 0, allowed is a whole number >= 1",
    ),
    "null": (
        "epochs: 10",
        "epochs:",
        "e.yaml:7 train.epochs: found null, allowed is a whole number >= 1",
    ),
    "out of an open interval": (
        "lr: 1e-2",
        "lr: 0",
        "e.yaml:11 train.optimizer.lr: found 0, allowed is a number > 0",
    ),
    "sexagesimal": (
        "lr: 1e-2",
        "lr: 12:30:45",
        "e.yaml:11 train.optimizer.lr: found '12:30:45', allowed is a number > 0",
    ),
    "section for a number": (
        "lr: 1e-2",
        "lr: {value: 1}",
        "e.yaml:11 train.optimizer.lr: found a section with the keys 'value', "
        "allowed is a number > 0",
    ),
    "unknown kind": (
        "name: sgd",
        "name: sdg",
        "e.yaml:10 train.optimizer.name: found 'sdg', allowed is 'adamw' or 'sgd'; "
        "did you mean 'sgd'?",
    ),
    "kind of a wrong type": (
        "name: sgd",
        "name: 5",
        "e.yaml:10 train.optimizer.name: found 5, allowed is 'adamw' or 'sgd'",
    ),
    "no kind": (
        "    name: sgd\n",
        "",
        "e.yaml:9 train.optimizer.name: required key is missing; allowed is 'adamw' or 'sgd'",
    ),
    "unknown key of a kind": (
        "lr: 1e-2",
        "lr: 1e-2\n    momentun: 0.5",
        "e.yaml:12 train.optimizer.momentun: unknown key of sgd; allowed are 'name', 'lr', "
        "'momentum', 'nesterov', 'weight_decay', 'decay_norm_and_bias' or 'groups'; "
        "did you mean 'momentum'?",
    ),
    "key of another kind": (
        "lr: 1e-2",
        "lr: 1e-2\n    betas: [0.9, 0.9]",
        "e.yaml:12 train.optimizer.betas: unknown key of sgd; allowed are 'name', 'lr', "
        "'momentum', 'nesterov', 'weight_decay', 'decay_norm_and_bias' or 'groups'; "
        "did you mean 'train.optimizer.betas'?",
    ),
    "name for a section": (
        "  epochs: 10",
        "  epochs: 10\n  schedule: cosin",
        "e.yaml:8 train.schedule: found 'cosin', allowed is a section with name: 'constant', "
        "'cosine' or 'multistep'; write {name: cosine}",
    ),
    "none for null": (
        "  epochs: 10",
        "  epochs: 10\n  ema: none",
        "e.yaml:8 train.ema: found 'none', allowed is a section with the keys decay, warmup_steps "
        "or null; write null",
    ),
    "half a range of workers": (
        "name: run",
        "name: run\ncluster: {workers: {min: 1}}",
        "e.yaml:2 cluster.workers: found a section with the keys 'min', allowed is a whole number "
        ">= 1 or a section with the keys min, max",
    ),
    "the least of the workers twice": (
        "name: run",
        "name: run\ncluster:\n  workers: {min: 1, max: 2}\n  min_workers: 2",
        "e.yaml:4 cluster.min_workers: found 2, and cluster.workers (e.yaml:3) is "
        "{min: 1, max: 2}, whose min says the same; remove one of the two, or write null here",
    ),
    "neither of two types": (
        "  epochs: 10",
        "  epochs: 10\n  loss_scale: dynamik",
        "e.yaml:8 train.loss_scale: found 'dynamik', allowed is 'dynamic' or a number > 0; "
        "did you mean 'dynamic'?",
    ),
    "unknown metric": (
        "  epochs: 10",
        "  epochs: 10\n  checkpoint: {metric: val/mAP}",
        "e.yaml:8 train.checkpoint.metric: found 'val/mAP', allowed is 'val/AP', 'val/AP50', "
        "'val/AP75', 'val/APs', 'val/APm', 'val/APl', 'val/AR1', 'val/AR10', 'val/AR100', "
        "'val/ARs', 'val/ARm' or 'val/ARl'; did you mean 'val/AP'?",
    ),
    "list too short": (
        "lr: 1e-2",
        "lr: 1e-2\n  schedule: {name: multistep, milestones: [], factors: [0.1]}",
        "e.yaml:12 train.schedule.milestones: found a list of 0, allowed is a list of values, "
        "at least 1, each a number > 0",
    ),
    "value for a list": (
        "lr: 1e-2",
        "lr: 1e-2\n  schedule: {name: multistep, milestones: 5, factors: [0.1]}",
        "e.yaml:12 train.schedule.milestones: found 5, allowed is a list of values, at least 1, "
        "each a number > 0; write [5]",
    ),
    "pair of the wrong length": (
        "    name: sgd\n",
        "    name: adamw\n    betas: [0.9]\n",
        "e.yaml:11 train.optimizer.betas: found a list of 1, allowed is a list of 2 values, "
        "each a number >= 0 and < 1",
    ),
    "item of a list": (
        "data:",
        "data:\n  augmentation: {name: ssd, min_ious: [null,\n    1.5]}",
        "e.yaml:5 data.augmentation.min_ious.1: found 1.5, "
        "allowed is a number >= 0 and <= 1 or null",
    ),
    "missing at the top": (
        "name: run\n",
        "",
        "e.yaml:1 name: required key is missing; allowed is text that matches "
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    ),
    "missing in a section": (
        "  batch_size: 16\n",
        "",
        "e.yaml:6 train.batch_size: required key is missing; allowed is a whole number >= 1",
    ),
    "not yet known": (
        "name: run",
        "name: run\nplugins: {}",
        "e.yaml:2 plugins: unknown key; allowed are 'name', 'seed', 'detector', 'data', 'train', "
        "'cluster', 'storage', 'scratch', 'tracking' or 'sweep'",
    ),
    "dotted key": (
        "name: run",
        "name: run\ntrain.lr: 1",
        "e.yaml:2 train.lr: unknown key; allowed are 'name', 'seed', 'detector', 'data', 'train', "
        "'cluster', 'storage', 'scratch', 'tracking' or 'sweep'; did you mean "
        "'train.optimizer.lr'? write it as sections: train: {optimizer: {lr: 1}}",
    ),
    "dotted key that an override has": (
        "name: run",
        "name: run\ncluster.workers: 3",
        "e.yaml:2 cluster.workers: unknown key; allowed are 'name', 'seed', 'detector', 'data', "
        "'train', 'cluster', 'storage', 'scratch', 'tracking' or 'sweep'; write it as sections: "
        "cluster: {workers: 3}",
    ),
    "dotted key in a section": (
        "  val: {images: b, annotations: b.json}",
        "  val: {images: b, annotations: b.json, train.epochs: [1]}",
        "e.yaml:5 data.val.train.epochs: unknown key; allowed are 'shards', 'images' or "
        "'annotations'; did you mean 'train.epochs'? write it as sections: train: {epochs: ...}",
    ),
    "list for a section of names": (
        "name: run",
        "name: run\nsweep: {trials: 2, space: [train.optimizer.lr]}",
        "e.yaml:2 sweep.space: found a list of 1, allowed is a section of NAME: a section with the "
        "keys uniform, loguniform, integer, logint, choice, step, when",
    ),
    "list for labels": (
        "name: run",
        "name: run\ncluster: {labels: [zone]}",
        "e.yaml:2 cluster.labels: found a list of 1, allowed is a section of NAME: text",
    ),
    "hyphen for underscore": (
        "  batch_size: 16",
        "  batch_size: 16\n  checkpoint: {keep-last: 1}",
        "e.yaml:9 train.checkpoint.keep-last: unknown key; allowed are 'every_epochs', "
        "'every_steps', 'keep_last', 'keep_best' or 'metric'; did you mean 'keep_last'?",
    ),
    "password": (
        "name: run",
        "name: run\ntracking: {mlflow: 'https://me:hunter2@host'}",
        "e.yaml:2 tracking.mlflow: the address holds a password, which would be stored with the "
        "run; take it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead",
    ),
    "line break in a value": (
        "name: run",
        'name: "a\\nb"',
        "e.yaml:1 name: found 'a\\nb', allowed is text that matches "
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
    ),
}


# Values that are valid alone, as overrides; where the conflict is shown; what it names.
@pytest.mark.parametrize("case", SCHEMA)
def test_a_wrong_value_is_shown_with_its_place_and_what_is_allowed(
    case: str, mistakes: Mistakes, minimal: str
) -> None:
    old, new, expected = SCHEMA[case]
    assert minimal.count(old) == 1
    assert mistakes(minimal.replace(old, new)) == [expected]


def test_five_mistakes_give_five_located_lines(mistakes: Mistakes) -> None:
    assert mistakes(FIVE_MISTAKES) == [
        "e.yaml:2 sed: unknown key; allowed are 'name', 'seed', 'detector', 'data', 'train', "
        "'cluster', 'storage', 'scratch', 'tracking' or 'sweep'; did you mean 'seed'?",
        "e.yaml:3 detector.width: found '0.5', allowed is a number > 0 and <= 4; "
        "write 0.5, without quotes",
        "e.yaml:6 data.val.annotations: required key is missing; allowed is text, not empty",
        "e.yaml:8 train.epochs: found 100.0, allowed is a whole number >= 1; write 100",
        "e.yaml:10 train.optimizer.name: found 'sdg', allowed is 'adamw' or 'sgd'; "
        "did you mean 'sgd'?",
    ]


def test_a_refused_scalar_is_not_complained_about_twice(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(minimal.replace("epochs: 10", "epochs: 010"))
    assert "leading zero" in found


def test_a_mistake_in_an_aliased_section_is_shown_where_it_is_written(
    mistakes: Mistakes, minimal: str
) -> None:
    text = minimal.replace("train: {images: a,", "train: &split {imags: a,").replace(
        "val: {images: b, annotations: b.json}", "val: *split"
    )
    found = mistakes(text)
    assert [line.split(":")[1].split()[0] for line in found] == ["4", "4", "4", "5"]
    assert "e.yaml:5 data.val.images: required key is missing; allowed is text, not empty" in found


def test_hundreds_of_mistakes_are_cut_short(mistakes: Mistakes, minimal: str) -> None:
    found = mistakes(minimal + "".join(f"unknown{i}: 1\n" for i in range(250)))
    assert len(found) == 101
    assert found[-1] == "… and 150 more"


TOKENS = [
    *"{}[]:?-\n\t#|>%@`!&*\\'\"",
    *["- ", ": ", "  ", "&a ", "*a", "!!str ", "<<: ", "---\n", "...\n", "null", "true"],
    *["010", "1e-3", ".nan", "-1", "1.5", "0x", "${x}", "~", "é", "\u2028"],
    *["name", "lr", "train", "ssd", "sgd", "{name: sgd}", "[1]", "min_ious", "schedule: "],
]
KEYS = ["train", "train.optimizer", "data.augmentation.min_ious.1", "train.ema.decay", "detector"]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    edits=st.lists(st.tuples(st.integers(0, 250), st.sampled_from(TOKENS)), max_size=4),
    overrides=st.lists(
        st.tuples(st.sampled_from(KEYS), st.lists(st.sampled_from(TOKENS), max_size=3)), max_size=2
    ),
)
def test_whatever_is_written_ends_in_an_experiment_or_in_located_mistakes(
    edits: list[tuple[int, str]],
    overrides: list[tuple[str, list[str]]],
    load: Callable[..., object],
    minimal: str,
) -> None:
    text = minimal
    for position, token in edits:
        text = text[:position] + token + text[position:]
    try:
        load(text, *(f"{key}={''.join(value)}" for key, value in overrides))
    except ConfigError as error:
        for line in str(error).splitlines()[1:-1]:
            assert line.startswith(("e.yaml:", "override '"))
