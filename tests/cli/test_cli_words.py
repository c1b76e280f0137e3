"""What people type: other names, other orders, slips; and one exit code for one mistake."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cli._shared.detector import split_overrides
from orchestrator.cli.main import VERBS, main

RECIPE = str(Path(__file__).parents[2] / "experiments" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x.yaml"], "did you mean 'train'?"),
        (["evalute"], "did you mean 'evaluate'?"),
        (["run", "x.yaml", "--train.epochs", "3"], "write train.epochs=3"),
        (["run", "x.yaml", "--train.epochs=3"], "write train.epochs=3"),
        (["run", "x.yaml", "--seed=3"], "write seed=3"),
        (["run", "x.yaml", "--epochs", "3"], "write train.epochs=3"),
        (["run", "x.yaml", "--lr=3"], "write train.optimizer.lr=3"),
        (["predict"], "required: RUN|CHECKPOINT|WEIGHTS INPUT ...\n"),
        (["predict", "runs/x"], "at least one INPUT, found runs/x"),
        (["run", "x.yaml", "--force-resum"], "did you mean --force-resume?"),
        (["evaluate", "runs/x", "--limits", "3"], "did you mean --limit?"),
        (["run"], "required: EXPERIMENT.yaml\n"),
        (["train"], "required: EXPERIMENT.yaml\n"),
    ],
)
def test_slips_are_told_what_was_meant(words, said, capsys):
    assert main(words) == 64
    assert said in capsys.readouterr().err


def test_a_file_whose_name_has_an_equals_sign_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.jpg").touch()
    words = ["runs/x", "a=b.jpg", "in/a=b.jpg", "train.epochs=3"]
    assert split_overrides(words) == (["train.epochs=3"], ["runs/x", "a=b.jpg", "in/a=b.jpg"])


def test_a_data_set_or_a_run_is_no_experiment_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my set").mkdir()
    Path("my set/data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: a}\n")
    Path("runs/a/config").mkdir(parents=True)
    Path("runs/a/config/resolved.yaml").write_text("name: a\n")
    for words, step in (
        (["run", "my set"], "Next: orchestrator init 'my set' makes one"),
        (["run", "my set/data.yaml"], "Next: orchestrator init 'my set/data.yaml' writes one"),
        (["check", "my set/data.yaml"], "Next: orchestrator init 'my set/data.yaml' writes one"),
        (["config", "show", "runs/a"], "Next: its experiment is runs/a/config/resolved.yaml"),
    ):
        assert main(words) == 64
        said = capsys.readouterr().err
        assert step in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--print-config", RECIPE, "train.epochs=7", "name=other"],
        [RECIPE, "--print-config", "train.epochs=7", "name=other"],
        [RECIPE, "train.epochs=7", "--print-config", "name=other"],
        ["--force-resume", RECIPE, "train.epochs=7", "--print-config", "name=other"],
    ],
)
def test_options_and_overrides_stand_in_any_order(words, capsys):
    assert main(["run", *words]) == 0
    printed = capsys.readouterr().out
    assert "epochs: 7 " in printed
    assert "name: other " in printed


def test_actions_below_a_verb_take_any_order_too(capsys):
    assert main(["config", "show-schedule", RECIPE, "--images", "64", "train.epochs=2"]) == 0


def test_a_run_that_is_stopped_while_it_imports_ends_with_75(monkeypatch, capsys):
    stopped = SimpleNamespace(drive=lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setitem(sys.modules, "orchestrator.runs.driver", stopped)
    assert main(["run", RECIPE]) == 75
    assert "asked to stop while nothing was being trained" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_usage_says_everything_once(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["help", verb]) == 0
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert usage.startswith("usage: orchestrator")
    assert usage.count("key.path=value") <= 1


@pytest.mark.parametrize(
    ("words", "wrong", "allowed"),
    [
        (["fit", "q.yaml", "--memory"], ["nan", "inf", "0", "x"], ">= 1"),
        (["fit", "q.yaml", "--headroom"], ["nan", "1", "-0.1"], ">= 0 and < 1"),
        (["fit", "q.yaml", "--boxes"], ["0"], ">= 1"),
        (["draw", "p.json", "--threshold"], ["50", "nan", "-1"], ">= 0 and <= 1"),
        (["predict", "r", "i", "--threshold"], ["50", "nan"], ">= 0 and <= 1"),
        (["predict", "r", "i", "--draw-threshold"], ["50", "nan"], ">= 0 and <= 1"),
        (["predict", "r", "--camera"], ["-1", "0.5"], ">= 0"),
        (["export", "r", "--images"], ["0", "1.5"], ">= 1"),
        (["export", "r", "--step"], ["-1"], ">= 0"),
        (["config", "show-schedule", "q.yaml", "--images"], ["-3", "0"], ">= 1"),
        (["evaluate", "r", "--limit"], ["0"], ">= 1"),
        (["evaluate", "r", "--fusion-iou"], ["0", "1", "nan"], "> 0 and < 1"),
        (["benchmark", "q.yaml", "--skip"], ["-1"], ">= 0"),
        (["check-resume", "q.yaml", "--steps"], ["1"], ">= 2"),
        (["compare", "a", "b", "--level"], ["95", "nan", "1"], ">= 0.5 and < 1"),
        (["compare", "a", "b", "--resamples"], ["99"], ">= 100"),
        (["init", "f", "--val"], ["0", "1", "nan"], "> 0 and < 1"),
        (["init", "f", "--seed"], ["-1"], ">= 0"),
        (["models", "--classes"], ["0"], ">= 1"),
        (["replay", "r", "--step"], ["-1"], ">= 0"),
        (["serve", "r", "--port"], ["65536", "-1"], ">= 0 and <= 65535"),
        (["serve", "r", "--wait-ms"], ["nan", "10001"], ">= 0 and <= 10000"),
        (["shard", "q.yaml", "out", "--images-per-shard"], ["0"], ">= 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_numbers_lie_where_they_mean_something(words, wrong, allowed, capsys):
    for number in wrong:
        assert main([*words, number]) == 64
        said = capsys.readouterr().err.splitlines()[0]
        assert f"argument {words[-1]}: found {number}, allowed is a " in said
        assert said.endswith(f"number {allowed}")


class _Ascii(io.TextIOWrapper):
    """What standard output is where the terminal's encoding is ASCII."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("verb", ["", *sorted(VERBS)])
def test_help_is_printed_in_ascii(verb, monkeypatch):
    said, told = _Ascii(), _Ascii()
    monkeypatch.setattr(sys, "stdout", said)
    monkeypatch.setattr(sys, "stderr", told)
    assert main([*verb.split(), "--help"]) == 0
    assert said.buffer.getvalue().startswith(b"usage: orchestrator")
    assert not told.buffer.getvalue()


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_letters_that_an_encoding_lacks_end_no_command(variables, tmp_path):
    file = tmp_path / "dö r" / "ü….yaml"
    file.parent.mkdir()
    for text, code, said in ((None, 64, b"does not exist"), (Path(RECIPE).read_text(), 0, b"")):
        if text is not None:
            file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", "config", "show", file],
            capture_output=True,
            env={**os.environ, **variables},
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stderr


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["config", "show", RECIPE]) == 71
    assert capsys.readouterr().err == (
        "the current folder is gone (No such file or directory). Next: cd to one that is there\n"
    )


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("orchestrator ")
    assert main(["help", "train"]) == 0
    assert "usage: orchestrator run" in capsys.readouterr().out


@pytest.fixture
def image(tmp_path):
    import cv2
    import numpy as np

    path = tmp_path / "x.jpg"
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return str(path)


@pytest.mark.parametrize(
    "words",
    [
        ["run"], ["config", "show"], ["check"], ["submit"], ["check-resume"], ["benchmark"],
        ["config", "show-schedule"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_experiment_file_that_is_not_there(words, capsys):
    assert main([*words, "none.yaml"]) == 64
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN"], ["predict", "RUN", "IMAGE"], ["export", "RUN", "--format", "pt2"],
        ["compare", "RUN", "RUN2"], ["report", "RUN"], ["rerun", "RUN"], ["replay", "RUN"],
        ["ship", "RUN"], ["status", "RUN"], ["list", "RUN"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_run_that_is_not_there(words, image, tmp_path, capsys):
    named = {"RUN": str(tmp_path / "none"), "RUN2": str(tmp_path / "none2"), "IMAGE": image}
    assert main([named.get(word, word) for word in words]) == 71
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_runs_are_listed_as_they_stand(tmp_path, capsys):
    from orchestrator.tracking.events import EventLog

    for name in ("done", "going"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
        log = EventLog(tmp_path / name / "events.jsonl")
        log.metrics({"train/loss": 2.0, "val/AP": 0.25}, step=40)
        log.note("resume", "from commit 40", step=40)
        log.metrics({"train/loss": 1.0}, step=50)
        log.close()
    result = {"state": "done", "steps": 50, "metrics": {"AP": 0.25}}
    (tmp_path / "done" / "result.json").write_text(json.dumps(result))
    sweep = tmp_path / "swept"
    sweep.mkdir()
    (sweep / "sweep.jsonl").write_text("")
    trials = [
        {"name": "trial-000", "state": "done", "score": 0.5},
        {"name": "trial-001", "state": "waiting", "score": None},
    ]
    (sweep / "sweep.json").write_text(
        json.dumps(
            {"state": "running", "metric": "val/AP75", "best": "trial-000", "trials": trials}
        )
    )
    (tmp_path / "other").mkdir()
    assert main(["list", str(tmp_path)]) == 0
    done, going, swept = capsys.readouterr().out.splitlines()
    assert done.startswith("done: run done, step 50, AP 0.2500, last written ")
    assert going.endswith("ago; resume: from commit 40")
    assert going.startswith("going: run unfinished, step 50, AP 0.2500, last written ")
    assert swept.startswith("swept: sweep running, 1 trials ended, AP75 0.5000, last written ")
    assert swept.endswith("ago; best trial-000")
    assert main(["status", str(tmp_path / "going")]) == 0
    assert capsys.readouterr().out.startswith("going: run unfinished")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["orchestrator", "eva"], ["evaluate"]),
        (["orchestrator", "run", "--pr"], ["--print-config"]),
        (["orchestrator", "run", "x.yaml", "--f"], ["--force-resume"]),
        (["orchestrator", "run", "x"], []),
    ],
)
def test_bash_completes_commands_and_options(words, expected, capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    typed = " ".join(words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _orchestrator"
    ask += '; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected


def test_fish_is_told_every_command(capsys):
    assert main(["completion", "fish"]) == 0
    told = capsys.readouterr().out
    assert all(f"-a {name} -d " in told for name in VERBS)
    assert "-n '__fish_seen_subcommand_from run' -l print-config\n" in told
