"""``orchestrator benchmark``: what it measures adds up, and results can be compared."""

from __future__ import annotations

import json
import time

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.benchmark.result import BenchmarkResult, differences, rows
from orchestrator.benchmark.training import PARTS, Clock
from orchestrator.cli.main import main
from orchestrator.errors import ConfigError, DataError, StorageError


@pytest.fixture(scope="module")
def measured(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    words = ["benchmark", str(small_run), "--steps", "3", "--skip", "1", "--batches", "1,2"]
    words += ["--repeats", "2", "--output", str(folder / "a.json")]
    assert main([*words, "--trace", str(folder / "trace.json")]) == 0
    return folder


def test_parts_add_up_to_the_steps(measured):
    result = BenchmarkResult.read(measured / "a.json")
    training = result.training
    assert (training.batch_size, training.steps, training.skipped) == (4, 3, 1)
    assert len(training.step_s) == 3
    assert training.images_per_s == pytest.approx(4 / (sum(training.step_s) / 3))
    assert tuple(training.parts) == PARTS
    assert all(seconds > 0 for seconds in training.parts.values())
    assert [one.batch for one in result.inference] == [1, 2]
    for one in result.inference:
        assert one.images_per_s == pytest.approx(one.batch / one.median_ms * 1e3)
        assert one.network_ms > 0
    # Seven images in batches of four: the first batch alone is looked at.
    assert result.evaluation.images == 4
    assert result.peak_process_bytes > 50 * 2**20


def test_the_trace_holds_the_work_of_steps(measured):
    tree = json.loads((measured / "trace.json").read_text())
    names = {event.get("name", "") for event in tree["traceEvents"]}
    assert any("convolution_backward" in name for name in names)


def test_a_result_is_compared_with_an_earlier_one(measured, small_run, tmp_path, capsys):
    tree = json.loads((measured / "a.json").read_text())
    tree["inference"] = [{**one, "median_ms": one["median_ms"] / 2} for one in tree["inference"]]
    tree["hardware"] = "another machine"
    (tmp_path / "b.json").write_text(json.dumps(tree))
    now = BenchmarkResult.read(measured / "a.json")
    then = BenchmarkResult.read(tmp_path / "b.json")
    table = {row[0].strip(): row for row in rows(now, then)}
    assert table["median of 1"][-1] == "2.00x"
    assert table["backward"][-1] == "1.00x"
    assert differences(now, then) == [f"hardware: another machine then, {now.hardware} now"]
    assert differences(now, now) == []


def test_inner_time_does_not_count_outside():
    clock = Clock(Accelerator("cpu"))

    class Work:
        def inner(self):
            time.sleep(0.05)

    work = Work()
    with clock.inside(work, "inner", "inner"), clock.part("outer"):
        work.inner()
        time.sleep(0.01)
    assert clock.seconds["inner"] >= 0.05
    assert 0.01 <= clock.seconds["outer"] < clock.seconds["inner"] + 0.01
    assert "inner" not in vars(work)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "--steps: found 0, allowed is a whole number >= 1"),
        (["--batches", "1,x"], "--batches 1,x: expected numbers"),
    ],
)
def test_options_that_mean_nothing_are_refused(small_run, capsys, words, message):
    assert main(["benchmark", str(small_run), *words]) == ConfigError.exit_code
    assert message in capsys.readouterr().err


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(StorageError, match="cannot be read"):
        BenchmarkResult.read(tmp_path / "none.json")
    for text in ("[]", "{", '{"version": 9}', '{"version": 1}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match="no result of"):
            BenchmarkResult.read(tmp_path / "other.json")
