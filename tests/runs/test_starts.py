"""What a start of the driver does before there is a cluster, and what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.errors import ConfigError, DataError
from orchestrator.runs import driver
from orchestrator.runs.identity import record_run
from orchestrator.runs.plan import make_plan
from orchestrator.runs.report import result_of
from orchestrator.storage.run_files import EVENTS, IDENTITY, LABEL_MAP, RESOLVED, RESULT
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.training.job import Outcome

NO_CLUSTER = "no room on this cluster"


@pytest.fixture(autouse=True)
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Clusters that were asked for; each of them is too small."""
    asked: list[Any] = []

    @contextmanager
    def connected(config: Any, *, beside: bool) -> Iterator[None]:
        asked.append(config)
        raise ConfigError(NO_CLUSTER)
        yield

    monkeypatch.setattr(driver, "connected", connected)
    return asked


@pytest.fixture
def file(tmp_path: Path, small_run: Path) -> Path:
    return Path(shutil.copy(small_run.parent / "tiny.yaml", tmp_path))


def drive(file: Path, *overrides: str, force: bool = False) -> int:
    resolved = load_experiment(file, overrides)
    return driver.drive(resolved, file.parent / "tiny", force_resume=force)


def test_a_start_that_the_cluster_refuses_takes_no_name(file: Path) -> None:
    for overrides in ((), ("train.optimizer.lr=0.5",), ("detector.width=0.2",)):
        with pytest.raises(ConfigError, match=NO_CLUSTER):
            drive(file, *overrides)
    assert {path.name for path in (file.parent / "tiny").iterdir()} <= {"lock"}


def test_a_start_that_its_data_or_configuration_refuse_takes_no_name(file: Path) -> None:
    with pytest.raises(DataError):
        drive(file, "data.train.annotations=missing.json")
    with pytest.raises(ConfigError, match="warm"):
        drive(file, "train.schedule={name: constant, warmup_steps: 1000}")
    assert not (file.parent / "tiny" / IDENTITY).exists()
    with pytest.raises(ConfigError, match=NO_CLUSTER):
        drive(file)


@pytest.fixture
def finished(file: Path, small_run: Path) -> tuple[Path, ResolvedExperiment]:
    """A folder as the driver leaves it when training is complete: twelve steps."""
    run = file.parent / "tiny"
    shutil.copytree(small_run, run)
    outcome = Outcome(**json.loads((run / RESULT).read_bytes()))
    resolved = load_experiment(file)
    job = make_plan(resolved, run).job
    record_run(run, driver.identity_of(job), resolved.tree, driver.RunState("new"))
    (run / RESULT).write_text(json.dumps(result_of(job, outcome, None, 1.0)))
    return file, resolved


def test_a_finished_run_says_so_without_a_cluster(
    finished: tuple[Path, ResolvedExperiment], clusters: list[Any], capsys: Any
) -> None:
    file, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (file.parent / "tiny").rglob("*.json*")}
    assert drive(file) == 0
    assert clusters == []
    said = capsys.readouterr().out
    assert "already done: tiny has all of its 12 steps" in said
    assert "Next: raise train.epochs to go on" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("name", [IDENTITY, RESOLVED, LABEL_MAP])
@pytest.mark.parametrize("content", [None, b"", b"\xff{"])
def test_what_says_what_a_finished_run_is_comes_back(
    name: str,
    content: bytes | None,
    finished: tuple[Path, ResolvedExperiment],
    clusters: list[Any],
    capsys: Any,
) -> None:
    file, resolved = finished
    run = file.parent / "tiny"
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    assert drive(file) == 0
    assert clusters == []
    said = capsys.readouterr().out
    assert f"missing or damaged, and written anew: {name}\n" in said
    assert "already done" in said
    after = {path: path.read_bytes() for path in before}
    # Of what it was written from, a comment may name another place.
    assert after.pop(run / RESOLVED)
    before.pop(run / RESOLVED)
    assert after == before
    assert load_experiment(run / RESOLVED).tree == resolved.tree
    assert drive(file) == 0
    assert "written anew" not in capsys.readouterr().out


def test_a_finished_run_whose_last_checkpoint_is_damaged_goes_on(
    finished: tuple[Path, ResolvedExperiment], clusters: list[Any], capsys: Any
) -> None:
    """From the one before, so that there is a last one again; its size says nothing."""
    file, _ = finished
    weights = file.parent / "tiny" / "ckpt" / "000000012" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match=NO_CLUSTER):
        drive(file)
    said = capsys.readouterr().out
    assert "000000012: weights.safetensors does not match its digest; the run goes on" in said
    assert "already done" not in said


def test_a_val_without_a_box_that_counts_is_refused(file: Path, clusters: list[Any]) -> None:
    resolved = load_experiment(file)
    data = file.parent / "crowds"
    shutil.copytree(resolved.experiment.data.root, data)
    path = data / "annotations" / "instances_val.json"
    tree = json.loads(path.read_text())
    for box in tree["annotations"]:
        box["iscrowd"] = 1
    path.write_text(json.dumps(tree))
    said = r"instances_val\.json has no boxes but crowds, .*nothing to score against.*Next: point"
    with pytest.raises(DataError, match=said):
        drive(file, f"data.root={data}")
    tree["annotations"][0]["iscrowd"] = 0
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=NO_CLUSTER):
        drive(file, f"data.root={data}")


def test_a_run_that_has_something_left_to_do_goes_on(
    finished: tuple[Path, ResolvedExperiment], clusters: list[Any]
) -> None:
    file, _ = finished
    run = file.parent / "tiny"
    for overrides in (("train.epochs=6",), ("tracking.mlflow=sqlite:///m.db",)):
        with pytest.raises(ConfigError, match=NO_CLUSTER):
            drive(file, *overrides)
    result = json.loads((run / RESULT).read_bytes())
    for change in ({"state": "preempted"}, {"steps": 9}, {"data_digest": "0" * 64}):
        (run / RESULT).write_text(json.dumps({**result, **change}))
        with pytest.raises(ConfigError, match=NO_CLUSTER):
            drive(file)
    (run / RESULT).unlink()
    with pytest.raises(ConfigError, match=NO_CLUSTER):
        drive(file)
    assert len(clusters) == 6


def test_an_end_before_what_is_done_is_refused(
    finished: tuple[Path, ResolvedExperiment], clusters: list[Any]
) -> None:
    file, _ = finished
    with pytest.raises(ConfigError, match=r"train.max_steps is 7, but .* has 12 steps done"):
        drive(file, "train.max_steps=7")
    with pytest.raises(ConfigError, match=r"train.epochs is 2, which is 6 steps .* has 12 steps"):
        drive(file, "train.epochs=2", force=True)
    assert clusters == []


def test_classes_that_changed_are_refused_also_by_force(
    finished: tuple[Path, ResolvedExperiment], clusters: list[Any]
) -> None:
    file, resolved = finished
    data = file.parent / "swapped"
    shutil.copytree(resolved.experiment.data.root, data)
    for path in (data / "annotations").iterdir():
        tree = json.loads(path.read_text())
        first, second = tree["categories"]
        first["name"], second["name"] = second["name"], first["name"]
        path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="label maps differ"):
        drive(file, f"data.root={data}", force=True)
    assert clusters == []
    assert "dark" in (file.parent / "tiny" / LABEL_MAP).read_text()


def test_what_was_forced_is_in_the_log(finished: tuple[Path, ResolvedExperiment]) -> None:
    file, _ = finished
    run = file.parent / "tiny"
    changed = load_experiment(file, ["train.optimizer.lr=0.5"])
    job = make_plan(changed, run).job
    claim = driver.examine_run(run, driver.identity_of(job), changed.tree, force=True)
    driver.log_changes(run, claim, 12)
    EventLog(run / EVENTS).close()
    told = [(e.step, e.text) for e in read_events(run / EVENTS) if e.kind == "changed"]
    assert told == [(12, "forced: train.optimizer.lr: 0.003 there, 0.5 now")]
