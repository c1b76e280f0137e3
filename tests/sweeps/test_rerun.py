"""Repeating a run: which one, as what, where, and what is said at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.readers.coco import read_coco
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, open_run
from orchestrator.sweeps import rerun as module
from tests.support.run_folders import EXPERIMENT, rng, write_data, write_run
from tests.support.simulated_detectors import Skill, detect, make_truth
from tests.support.user_command import finish, result, start


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three trials, the second of them the best, and one that has no result."""
    write_data(tmp_path / "data", make_truth(rng(1), images=20))
    dataset = read_coco(tmp_path / "data" / "images", tmp_path / "data" / "val.json").dataset
    folder = tmp_path / "lr-sweep"
    for number, recall in enumerate((0.5, 0.95, 0.7)):
        found = detect(rng(2, number), dataset, Skill(recall=recall))
        name = f"trial-{number:03d}"
        write_run(folder, name, dataset, found, f"train.optimizer.lr=0.00{number + 1}")
    write_run(folder, "trial-003", dataset, None)
    (folder / "sweep.json").write_text(json.dumps({"metric": "val/AP50"}))
    return folder


class FakeDriver:
    """Leaves a run folder with a result, as the driver would."""

    def __init__(self) -> None:
        self.calls: list[tuple[ResolvedExperiment, Path]] = []
        self.forced: list[bool] = []
        self.weights = "trial-001"
        self.code = 0
        self.sources = {"a.py": "0" * 16}

    def __call__(self, resolved: ResolvedExperiment, run_dir: Path, *, force_resume: bool) -> int:
        self.calls.append((resolved, run_dir))
        self.forced.append(force_resume)
        (run_dir / "config").mkdir(parents=True, exist_ok=True)
        (run_dir / "config" / "resolved.yaml").write_text(dump_yaml(resolved))
        source = resolved.experiment.data
        data = read_coco(Path(source.root) / "images", Path(source.root) / "val.json").dataset
        identity = Identity(config_digest(resolved.tree), data.digest, sources=self.sources)
        open_run(run_dir, identity, resolved.tree, force=True)
        result = {"state": "done", "steps": 15, "weights_sha256": self.weights}
        (run_dir / "result.json").write_text(json.dumps(result))
        return self.code


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(module, "drive", fake)
    return fake


def test_the_best_trial_is_repeated_beside_its_sweep(
    sweep: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rerun", str(sweep), "--trial", "best"]) == 0
    ((resolved, run_dir),) = driver.calls
    assert run_dir == sweep.parent / "lr-sweep-trial-001-rerun"
    assert resolved.experiment.name == run_dir.name
    assert resolved.experiment.storage == str(sweep.parent)
    assert resolved.tree["train"]["optimizer"]["lr"] == 0.002
    assert resolved.experiment.train.max_steps is None
    assert driver.forced == [False]
    assert "trial-001: the same weights, to the bit" in capsys.readouterr().out


def test_the_best_is_that_of_the_sweep_and_none_that_was_given_up(
    sweep: Path, driver: FakeDriver
) -> None:
    file = sweep / "trial-001" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": "stopped"}))
    driver.weights = "trial-002"
    assert main(["rerun", str(sweep), "--trial", "best"]) == 0
    ((_, run_dir),) = driver.calls
    assert run_dir.name == "lr-sweep-trial-002-rerun"


def test_other_weights_exit_with_1_and_say_what_changed(
    sweep: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.sources = {"a.py": "1" * 16}
    assert main(["rerun", str(sweep), "--trial", "2", "--name", "again"]) == 1
    ((_, run_dir),) = driver.calls
    assert run_dir == sweep.parent / "again"
    shown = capsys.readouterr().out
    assert "trial-002: other weights" in shown
    assert "then sha256 trial-002" in shown
    assert "now  sha256 trial-001" in shown
    assert "not the same: program: a.py" in shown


def test_a_run_that_was_cut_short_is_repeated_as_far_as_it_came(
    sweep: Path, driver: FakeDriver
) -> None:
    file = sweep / "trial-001" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "state": "stopped", "steps": 7}))
    assert main(["rerun", str(sweep / "trial-001"), "--storage", str(sweep / "out")]) == 0
    ((resolved, run_dir),) = driver.calls
    assert resolved.experiment.train.max_steps == 7
    assert run_dir == sweep / "out" / "lr-sweep-trial-001-rerun"


def test_a_member_of_a_population_is_repeated_as_all_that_it_has_been(
    sweep: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    def clone(trial: int, donor: int, step: int, rate: float) -> dict[str, Any]:
        found = {"kind": "cloned", "trial": trial, "donor": donor, "step": step}
        return {**found, "values": {"train.optimizer.lr": rate}}

    begun = [
        {"kind": "trial", "trial": number, "values": {"train.optimizer.lr": rate}}
        for number, rate in enumerate((0.001, 0.5, 0.003))
    ]
    # The last one came after the weights of step 15, and the first is not behind those of step 5.
    clones = [clone(2, 1, 5, 0.6), clone(0, 2, 5, 0.004), clone(1, 0, 10, 0.002)]
    entries = [*begun, *clones, clone(1, 2, 15, 0.7)]
    journal = sweep / "sweep.jsonl"
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"cut off')
    assert main(["rerun", str(sweep), "--trial", "1"]) == 0
    trains = [resolved.experiment.train for resolved, _ in driver.calls]
    assert [train.optimizer.lr for train in trains] == [0.003, 0.004, 0.002]
    assert [train.max_steps for train in trains] == [5, 10, None]
    assert driver.forced == [False, True, True]
    assert len({run_dir for _, run_dir in driver.calls}) == 1
    shown = capsys.readouterr().out
    assert "up to step 5 as trial-002, with train.optimizer.lr=0.003" in shown
    assert "up to step 10 as trial-000, with train.optimizer.lr=0.004" in shown
    driver.code = 75
    assert main(["rerun", str(sweep), "--trial", "1", "--name", "again"]) == 75
    assert len(driver.calls) == 4


def test_a_digest_that_is_not_that_of_the_checkpoint_is_refused(
    small_run: Path, tmp_path: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(small_run, tmp_path / "tiny")
    file = copy / "result.json"
    result = json.loads(file.read_text())
    driver.weights = result["weights_sha256"]
    file.write_text(json.dumps({**result, "weights_sha256": "0" * 64}))
    assert main(["rerun", str(copy)]) == 71
    assert f"the checkpoint of that step has {driver.weights}" in capsys.readouterr().err
    assert driver.calls == []


def test_what_is_not_recorded_is_not_called_the_same(
    sweep: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "trial-001" / "run.json").unlink()
    driver.weights = "others"
    assert main(["rerun", str(sweep), "--trial", "1"]) == 1
    shown = capsys.readouterr().out
    assert "not known: " in shown
    assert "run.json is missing" in shown
    assert "are the same" not in shown


def test_a_run_alone_is_repeated_beside_itself_where_its_data_lies_now(
    sweep: Path, driver: FakeDriver, tmp_path: Path
) -> None:
    alone, moved = tmp_path / "runs" / "trial-001", tmp_path / "moved"
    shutil.copytree(sweep / "trial-001", alone)
    (tmp_path / "data").rename(moved)
    assert main(["rerun", str(alone), f"data.root={moved}"]) == 0
    ((resolved, run_dir),) = driver.calls
    assert run_dir == tmp_path / "runs" / "trial-001-rerun"
    assert resolved.experiment.data.root == str(moved)


def test_a_stopped_repetition_hands_on_its_exit_code(sweep: Path, driver: FakeDriver) -> None:
    driver.code = 75
    assert main(["rerun", str(sweep), "--trial", "1"]) == 75


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 64, "say which one, --trial best or --trial N"),
        (["--trial", "9"], 64, "has no trial-009; it holds 4 runs"),
        (["--trial", "3"], 71, "has no result.json"),
        (["--trial", "0", "train.optimizer.lr=0.5"], 64, "train.optimizer.lr: decides the result"),
        (["--trial", "0", "seed=2"], 64, "seed: decides the result"),
    ],
)
def test_what_cannot_be_repeated(
    sweep: Path,
    driver: FakeDriver,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(["rerun", str(sweep), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not driver.calls


def test_a_run_has_no_trials_and_is_not_its_own_repetition(
    sweep: Path, driver: FakeDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = sweep / "trial-000"
    assert main(["rerun", str(alone), "--trial", "1"]) == 64
    assert "is the folder of one run" in capsys.readouterr().err
    assert main(["rerun", str(alone), "--storage", str(sweep), "--name", "trial-000"]) == 64
    assert "is the run that is to be repeated" in capsys.readouterr().err
    assert not driver.calls


@pytest.mark.ray
@pytest.mark.slow
def test_a_trained_run_is_repeated_to_the_bit(tmp_path: Path) -> None:
    build_digits(tmp_path / "data", Recipe(train=12, val=4, seed=3))
    text = EXPERIMENT.format(name="tiny", seed=4, root=tmp_path / "data", storage="runs")
    text = text.replace("annotations: val.json", "annotations: annotations/instances_val.json")
    (tmp_path / "tiny.yaml").write_text(text.replace("batch_size: 10", "batch_size: 2"))
    narrow = "detector.width=0.1"
    finish(start(tmp_path, "tiny.yaml", narrow, "train.epochs=2"))
    said = finish(start(tmp_path, "rerun", "runs/tiny", module="orchestrator.cli.main"))
    assert "tiny: the same weights, to the bit" in said
    first, second = (result(tmp_path, name) for name in ("tiny", "tiny-rerun"))
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["metrics"] == second["metrics"]
    assert (first["steps"], second["resumed_from"]) == (4, 0)
