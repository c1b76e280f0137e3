"""A run folder belongs to one experiment: the same goes on, another is refused with a diff."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.resolve import load_experiment
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.runs import numerics
from orchestrator.runs.digests import NOT_IDENTITY, config_digest, identity_tree, source_digests
from orchestrator.runs.identity import (
    Identity,
    RunState,
    examine_run,
    open_run,
    recorded_identity,
)
from orchestrator.runs.numerics import NumericsChange
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.sealed import seal, unseal
from orchestrator.tracking.events import EventLog
from orchestrator.training.schedules import Extension
from tests.support.commit_scenario import states

ROOT = Path(__file__).parents[2]
TREE: dict[str, Any] = {
    "name": "a",
    "seed": 1,
    "storage": "runs",
    "data": {"root": "/here", "prefetch": 4, "format": "coco"},
    "train": {
        "epochs": 3,
        "optimizer": {"name": "sgd", "lr": 0.02},
        "log_every_steps": 10,
        "checkpoint": {"keep_last": 5, "metric": "val/AP"},
    },
    "cluster": {"workers": 1},
    "tracking": {"mlflow": "sqlite:///runs/mlflow.db"},
}
SOURCES = {"detectors/ssd/model.py": "0123456789abcdef"}


def changed(**paths: Any) -> dict[str, Any]:
    """``TREE`` with values replaced; dots in paths are written as double underscores."""
    tree = copy.deepcopy(TREE)
    for path, value in paths.items():
        *folders, name = path.split("__")
        place = tree
        for folder in folders:
            place = place[folder]
        place[name] = value
    return tree


def start(run: Path, tree: dict[str, Any] = TREE, **arguments: Any) -> RunState:
    force, begins = arguments.pop("force", False), arguments.pop("begins", True)
    fields: dict[str, Any] = {"data_digest": "d" * 64, "sources": SOURCES, **arguments}
    state = open_run(run, Identity(config_digest(tree), **fields), tree, force=force)
    if begins and state.kind == "new":
        log = EventLog(run / "events.jsonl")
        log.note("start", "from random weights", step=0)
        log.close()
    return state


def test_new_then_resume(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    assert start(run) == RunState("new")
    assert start(run) == RunState("resume")
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    stored = json.loads((run / "run.json").read_text())
    assert stored["config"] == TREE
    assert stored["config_digest"] == config_digest(TREE)
    assert {path.name for path in run.iterdir()} == {"run.json", "events.jsonl"}


def test_a_folder_in_which_nothing_was_done_is_taken_over(tmp_path: Path) -> None:
    """As a start leaves it that was refused by its cluster, or killed before its first step."""
    other = changed(seed=2)
    start(tmp_path, begins=False)
    assert start(tmp_path, other, data_digest="e" * 64) == RunState("new")
    with pytest.raises(ConfigError, match="seed: 2 there, 1 now"):
        start(tmp_path, data_digest="e" * 64)


def test_a_sweep_of_this_name_is_no_folder_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "sweep.jsonl").write_text('{"kind":"open"}\n')
    with pytest.raises(ConfigError, match=r"sweep.jsonl: a sweep has this name. Next: give"):
        start(tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    start(tmp_path)
    other = changed(seed=2, train__optimizer={"name": "adamw", "lr": 0.02, "eps": 1e-8})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, other)
    lines = str(caught.value).splitlines()
    assert "holds another experiment" in lines[0]
    assert lines[1:4] == [
        "  seed: 1 there, 2 now",
        '  train.optimizer.name: "sgd" there, "adamw" now',
        "  train.optimizer.eps: absent there, 1e-08 now",
    ]
    assert "Next:" in lines[4]
    assert "--force-resume" in lines[4]
    assert (tmp_path / "run.json").read_bytes() == before


def test_other_data_are_refused(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ConfigError, match=r"data: sha256 dddddddddddddddd there, eeeeeeeeeeeeeeee"):
        start(tmp_path, data_digest="e" * 64)


def test_another_program_with_the_same_numbers_goes_on_with_a_note(tmp_path: Path) -> None:
    start(tmp_path)
    moved = {"detectors/ssd/model.py": "1" * 16, "detectors/new.py": "2" * 16}
    assert start(tmp_path, sources=moved) == RunState(
        "resume",
        ("the program changed, its numbers did not: detectors/new.py, detectors/ssd/model.py",),
    )
    assert start(tmp_path, sources=moved).notes == ()
    many = {f"detectors/file{n}.py": "3" * 16 for n in range(20)}
    assert re.search(r"file13.py.* and 14 more$", start(tmp_path, sources=many).notes[0])


@pytest.fixture
def changed_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose version 2 has another seed, and nothing else, for those with more workers."""
    change = NumericsChange(2, "sums over workers", lambda tree: tree["cluster"] != {"workers": 1})
    monkeypatch.setattr(numerics, "CHANGES", [change])


@pytest.mark.usefixtures("changed_numbers")
def test_other_numbers_are_refused_where_they_change_the_experiment(tmp_path: Path) -> None:
    two = changed(cluster__workers=2)
    start(tmp_path / "one", numerics=1)
    start(tmp_path / "two", two, numerics=1)
    assert start(tmp_path / "one", numerics=2) == RunState("resume")
    with pytest.raises(ConfigError, match="program: numerics version 2: sums over workers"):
        start(tmp_path / "two", two, numerics=2)
    forced = start(tmp_path / "two", two, numerics=2, force=True)
    assert forced.notes == ("forced: program: numerics version 2: sums over workers",)
    assert start(tmp_path / "two", two, numerics=2) == RunState("resume")
    with pytest.raises(ConfigError, match="numerics version 2 there, 1 now, which is older"):
        start(tmp_path / "two", two, numerics=1)


def test_a_record_from_before_there_were_versions_has_the_first(tmp_path: Path) -> None:
    start(tmp_path)
    record = tmp_path / "run.json"
    stored = unseal("run", record.read_bytes())
    del stored["numerics_version"]
    record.write_bytes(seal("run", {**stored, "format": 1, "code_version": "0" * 64}))
    assert recorded_identity(tmp_path) == Identity(
        config_digest(TREE), "d" * 64, numerics=1, sources=SOURCES
    )
    assert start(tmp_path, numerics=1) == RunState("resume")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "b"),
        ("storage", "/elsewhere"),
        ("data__root", "/moved"),
        ("data__prefetch", 9),
        ("train__log_every_steps", 1),
        ("train__checkpoint", {"keep_last": 9, "metric": "val/AP"}),
        ("cluster", {"workers": 2, "accelerator": "gpu"}),
        ("tracking", {"mlflow": None}),
    ],
)
def test_what_does_not_change_the_result_may_change(path: str, value: Any, tmp_path: Path) -> None:
    other = changed(**{path: value})
    assert config_digest(other) == config_digest(TREE)
    start(tmp_path)
    state = start(tmp_path, other)
    assert state.kind == "resume"
    assert state.notes
    assert start(tmp_path, other).notes == ()


def test_a_change_of_workers_is_noted(tmp_path: Path) -> None:
    start(tmp_path)
    assert start(tmp_path, changed(cluster__workers=4)).notes == (
        "cluster.workers: 1 there, 4 now",
    )


def test_force_goes_on_and_says_what_was_forced(tmp_path: Path) -> None:
    start(tmp_path)
    other = changed(seed=2, cluster__workers=2)
    state = start(tmp_path, other, force=True, data_digest="e" * 64)
    assert state.kind == "resume"
    assert state.notes == (
        "forced: seed: 1 there, 2 now",
        "forced: data: sha256 dddddddddddddddd there, eeeeeeeeeeeeeeee now",
        "cluster.workers: 1 there, 2 now",
    )
    assert start(tmp_path, other, data_digest="e" * 64) == RunState("resume")
    with pytest.raises(ConfigError, match="seed: 2 there, 1 now"):
        start(tmp_path)


def commit(run: Path, tree: dict[str, Any] = TREE) -> None:
    CommitStore(LocalStorage(run)).save(
        states(1)[1], config_digest=config_digest(tree), data_digest="d" * 64, label_map="{}"
    )


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 1}\n'])
def test_a_lost_or_torn_record_is_made_again_from_the_commits(
    content: bytes | None, tmp_path: Path
) -> None:
    start(tmp_path)
    commit(tmp_path)
    record = tmp_path / "run.json"
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    with pytest.raises(ConfigError, match="configuration: sha256"):
        start(tmp_path, changed(seed=2))
    state = start(tmp_path)
    assert state.kind == "resume"
    assert "run.json" in state.notes[0]
    assert "commit of step 1" in state.notes[0]
    assert start(tmp_path) == RunState("resume")


def test_every_flipped_bit_of_the_record_is_noticed(tmp_path: Path) -> None:
    start(tmp_path)
    commit(tmp_path)
    record = tmp_path / "run.json"
    content = record.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 4
        record.write_bytes(damaged)
        assert "made again" in start(tmp_path).notes[0], position


def test_a_torn_record_of_a_run_without_commits_is_a_new_run(tmp_path: Path) -> None:
    start(tmp_path, begins=False)
    (tmp_path / "run.json").write_bytes(b"{")
    assert start(tmp_path, changed(seed=2)) == RunState("new")


CLASSES = LabelMap(names=("cat", "dog"), ids=(1, 2))


@pytest.mark.parametrize("force", [False, True])
def test_weights_for_other_classes_are_refused_forced_or_not(force: bool, tmp_path: Path) -> None:
    identity = Identity(config_digest(TREE), "d" * 64, sources=SOURCES)
    start(tmp_path)
    CommitStore(LocalStorage(tmp_path)).save(
        states(1)[1],
        config_digest=identity.config_digest,
        data_digest="d" * 64,
        label_map=CLASSES.to_json(),
    )

    def examine(label_map: LabelMap) -> RunState:
        return examine_run(tmp_path, identity, TREE, label_map=label_map, force=force)

    assert examine(CLASSES) == RunState("resume")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(DataError) as refused:
        examine(LabelMap(names=("dog", "cat"), ids=(1, 2)))
    assert re.search(r"! label 0: 1:dog +1:cat\n  ! label 1: 2:cat +2:dog\n", str(refused.value))
    assert "--force-resume does not go on" in str(refused.value)
    assert (tmp_path / "run.json").read_bytes() == before


def scheduled(epochs: int, schedule: dict[str, Any], how: str | None = None) -> dict[str, Any]:
    tree = changed(train__epochs=epochs)
    tree["train"] |= {"schedule": schedule, "continue": how}
    return tree


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant"},
        {"name": "multistep", "milestones": [1.0], "factors": [0.1]},
        {"name": "cosine", "period_epochs": 9.0},
    ],
)
def test_a_run_whose_rates_stay_may_go_on_for_longer(
    schedule: dict[str, Any], tmp_path: Path
) -> None:
    start(tmp_path, scheduled(2, schedule))
    state = start(tmp_path, scheduled(5, schedule))
    note = "train.epochs: 2 there, 5 now; the rate of no step changes"
    assert state == RunState("resume", (note,))
    assert start(tmp_path, scheduled(5, schedule)) == RunState("resume")
    with pytest.raises(ConfigError) as raised:
        start(tmp_path, scheduled(4, schedule))
    _, line, step = str(raised.value).splitlines()
    assert line.startswith("  train.epochs: 5 there, 4 now: to end sooner")
    assert "set train.max_steps" in line
    assert "do what the line says" in step
    other = {**schedule, "warmup_steps": 3}
    with pytest.raises(
        ConfigError, match=r"holds another.*\n  train.schedule.warmup_steps: absent"
    ):
        start(tmp_path, scheduled(6, other))


def test_a_cosine_that_is_to_go_on_wants_a_word(tmp_path: Path) -> None:
    cosine = {"name": "cosine", "period_epochs": None}
    start(tmp_path, scheduled(2, cosine))
    with pytest.raises(ConfigError, match=r"ends? at epoch 2: say .* train.continue=stretch"):
        start(tmp_path, scheduled(5, cosine))
    held = (Extension(2, "hold"),)
    assert start(tmp_path, scheduled(5, cosine, "hold")).extensions == held
    # What was said once is remembered, also by a start that does not say it again.
    assert start(tmp_path, scheduled(5, cosine)).extensions == held
    longer = start(tmp_path, scheduled(7, cosine, "restart"))
    assert longer.extensions == (*held, Extension(5, "restart"))


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    start(tmp_path)
    record = tmp_path / "run.json"
    record.write_bytes(seal("run", {**unseal("run", record.read_bytes()), "format": 3}))
    with pytest.raises(StorageError, match="format 3; this program reads 2 and older"):
        start(tmp_path)


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    # What ships the run to MLflow outlives it, and may still be writing the last of these.
    names = ("run.json", ".result.json", "eval/.coco_results.json", ".mlflow.json")
    for name in names:
        (tmp_path / f"{name}.tmp-{'0' * 32}").write_bytes(b"half")
    start(tmp_path, begins=False)
    left = sorted(path.name for path in tmp_path.rglob("*"))
    assert left == [f".mlflow.json.tmp-{'0' * 32}", "eval", "run.json"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot open the run folder"):
        start(tmp_path / "file" / "run")


def test_the_keys_left_out_are_keys_of_real_experiments() -> None:
    experiment = load_experiment(ROOT / "experiments" / "quickstart.yaml").tree
    for key in NOT_IDENTITY:
        place: Any = experiment
        for part in key.split("."):
            assert part in place, key
            place = place[part]
    left = identity_tree(experiment)
    assert {"name", "storage", "cluster", "tracking"}.isdisjoint(left)
    assert {"seed", "detector", "data", "train"} <= set(left)


def test_the_sources_are_those_that_can_decide_the_result() -> None:
    sources = source_digests()
    assert "orchestrator/training/engine.py" in sources
    assert "orchestrator/accelerators.py" in sources
    assert "detectors/boxes.py" in sources
    assert any(path.startswith("native/") for path in sources)
    assert not any(
        path.startswith(("orchestrator/cli", "orchestrator/tracking")) for path in sources
    )
    content = (ROOT / "detectors" / "boxes.py").read_bytes()
    assert sources["detectors/boxes.py"] == hashlib.sha256(content).hexdigest()[:16]


def test_commits_that_are_all_damaged_give_no_folder_away(tmp_path: Path) -> None:
    """They may come back from a copy, and must not be another experiment's then."""
    start(tmp_path, begins=False)
    commit(tmp_path)
    (manifest,) = tmp_path.glob("ckpt/*/MANIFEST.json")
    manifest.write_bytes(b"")
    with pytest.raises(ConfigError, match="seed: 1 there, 2 now"):
        start(tmp_path, changed(seed=2))
    assert start(tmp_path) == RunState("resume")


def test_a_checkpoint_that_somebody_put_there_is_not_gone_on_from(tmp_path: Path) -> None:
    """Two runs of one name on two machines, whose folders were brought together."""
    other = changed(seed=2)
    start(tmp_path / "other", other)
    store = CommitStore(LocalStorage(tmp_path / "other"))
    store.save(
        states(2)[2], config_digest=config_digest(other), data_digest="d" * 64, label_map="{}"
    )
    start(tmp_path / "run")
    commit(tmp_path / "run")
    assert start(tmp_path / "run") == RunState("resume")
    foreign = shutil.copytree(
        tmp_path / "other" / "ckpt" / "000000002", tmp_path / "run" / "ckpt" / "000000002"
    )
    with pytest.raises(ConfigError, match="the checkpoint of step 2 was made by another: config"):
        start(tmp_path / "run")
    # By force it is one of the run's own; what it was made by is not forgotten.
    assert "step 2 was made by another" in start(tmp_path / "run", force=True).notes[0]
    shutil.rmtree(foreign)
    assert start(tmp_path / "run") == RunState("resume")


def test_checkpoints_of_before_a_change_stay_the_runs_own(tmp_path: Path) -> None:
    start(tmp_path)
    commit(tmp_path)
    for seed in (2, 3):
        assert "forced: seed" in start(tmp_path, changed(seed=seed), force=True).notes[0]
        assert start(tmp_path, changed(seed=seed)) == RunState("resume")
    # A record from before there was a list of them cannot tell.
    record = tmp_path / "run.json"
    tree = unseal("run", record.read_bytes())
    assert len(tree.pop("earlier")) == 3
    record.write_bytes(seal("run", {**tree, "config_digest": "0" * 64}))
    assert start(tmp_path, changed(seed=3)) == RunState("resume")
