from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from orchestrator.cli._shared.exit import run_guarded
from orchestrator.cli.main import VERBS, main
from orchestrator.config.resolve import load_experiment
from orchestrator.config.shape import Shape, published_schema
from orchestrator.config.yaml_loader import load_file
from orchestrator.errors import (
    ConfigError,
    DataError,
    OrchestratorError,
    PreemptedError,
    SecurityError,
    StorageError,
)
from orchestrator.storage.address import StoreError
from tests.support.own_process import python

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_loads(path: Path) -> None:
    resolved = load_experiment(path)
    assert "default" in resolved.origins.values()


def test_the_experiment_in_the_documentation_loads(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    path = tmp_path / "e.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert load_experiment(path).experiment.name == "first"


def test_the_coco_recipe_is_the_published_one() -> None:
    train = load_experiment(ROOT / "experiments/ssd300_mobilenet_v2_coco.yaml").experiment.train
    # mindspore-ai/models, official/cv/SSD: 32 images on each of 8 GPUs, 800 epochs.
    assert (train.epochs, train.batch_size) == (800, 8 * 32)
    assert train.optimizer.weight_decay == 1.5e-4


def test_the_schema_accepts_what_the_loader_accepts_and_describes_every_field() -> None:
    schema = published_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for path in EXPERIMENTS:
        validator.validate(load_file(path).tree)
    broken = load_file(EXPERIMENTS[0]).tree
    assert isinstance(broken, dict)
    assert not validator.is_valid({**broken, "sed": 1})
    assert not validator.is_valid(
        {**broken, "train": {**broken["train"], "optimizer": {"lr": "1"}}}
    )
    several = [{"name": "photometric"}, {"name": "ssd", "brightness": 0.1}]
    assert validator.is_valid({"data": {"augmentation": several}})
    assert not validator.is_valid({"data": {"augmentation": [{"name": "ssd", "brigthness": 1}]}})
    assert not validator.is_valid({"data": {"augmentation": []}})
    assert validator.is_valid({"cluster": {"workers": {"min": 1, "max": 4}}})
    assert not validator.is_valid({"cluster": {"workers": {"least": 1}}})
    for model in [schema, *schema["$defs"].values()]:
        for name, field in model.get("properties", {}).items():
            assert field.get("description"), f"{model['title']}.{name}"


def test_the_shape_knows_the_fields_of_every_kind_of_section() -> None:
    fields = set(Shape.root().fields())
    assert ("train", "optimizer", "momentum") in fields
    assert ("train", "optimizer", "betas") in fields
    assert ("detector", "loss", "gamma") in fields
    assert len(fields) == len(Shape.root().fields())


def test_config_show_prints_the_resolved_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(EXPERIMENTS[0])
    assert main(["config", "show", path, "seed=5"]) == 0
    shown = capsys.readouterr()
    (line,) = (line for line in shown.out.splitlines() if line.startswith("seed:"))
    assert line.split() == ["seed:", "5", "#", "override"]
    assert shown.err == ""


def test_the_documented_origins_are_those_that_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    (block,) = (part for part in page.split("```")[1::2] if "# override\n" in part)
    monkeypatch.chdir(ROOT)
    assert main(["config", "show", "experiments/quickstart.yaml", "train.epochs=3"]) == 0
    assert block.strip("\n") in capsys.readouterr().out


def test_config_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == published_schema()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: orchestrator COMMAND"),
        (["confg"], "unknown command 'confg'; did you mean 'config'?"),
        (["config"], "the following arguments are required: ACTION"),
        (["config", "shwo"], "invalid choice: 'shwo'"),
        (["config", "show"], "the following arguments are required: EXPERIMENT.yaml"),
        (["config", "show", "x.yaml"], "experiment file x.yaml does not exist"),
        (["config", "show", "x.yaml", "--seed=1"], "overrides have no dashes"),
    ],
)
def test_wrong_usage_exits_with_64(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    shown = capsys.readouterr().out
    for verb in VERBS.values():
        assert verb.summary in shown


@pytest.mark.parametrize("command", [["run"], ["config", "show"]], ids=lambda words: words[0])
def test_mistakes_are_printed_and_exit_with_64_before_ray_or_mlflow_is_imported(
    command: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(
        "name: run\nsed: 3\ndetector: {name: sdd}\ndata:\n"
        "  train: {images: a, annotations: b}\n  val: {images: a, annotation: b}\n"
        "train:\n  epochs: 1e2\n  batch_size: 16\n  optimizer: {name: sgd, lr: 010}\n"
    )
    program = (
        "import sys\n"
        "from orchestrator.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'ray', 'mlflow', 'cv2'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64, done.stderr
    located = [line.split(":")[1].split()[0] for line in done.stderr.splitlines()[1:-1]]
    assert located == ["2", "3", "6", "6", "8", "10"]
    assert done.stderr.count("did you mean") == 3
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError, 64),
        (DataError, 65),
        (OrchestratorError, 70),
        (StorageError, 71),
        (PreemptedError, 75),
        (SecurityError, 77),
    ],
)
def test_an_error_for_people_exits_with_its_code_and_no_traceback(
    error: type[OrchestratorError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error("what and where")

    assert run_guarded(fail) == code
    assert capsys.readouterr().err == "what and where\n"


def test_a_bug_exits_with_70_and_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise RuntimeError("broken")

    assert run_guarded(fail) == 70
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "RuntimeError: broken" in shown


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise KeyboardInterrupt

    assert run_guarded(fail) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert run_guarded(lambda: 0) == 0


def test_an_error_may_end_the_process_at_once() -> None:
    """Whatever libraries have registered for its end: of a cluster that is gone Ray waits."""
    script = (
        "import atexit, sys\n"
        "from orchestrator.cli._shared.exit import run_guarded\n"
        "from orchestrator.cluster.connection import ClusterLostError\n"
        "def fail():\n"
        "    print('said')\n"
        "    raise ClusterLostError('it is gone')\n"
        "atexit.register(print, 'late')\n"
        "sys.exit(run_guarded(fail))\n"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (75, "said\n", "it is gone\n")


@pytest.mark.parametrize("words", [["config", "schema"], ["models"], ["--version"], ["--help"]])
def test_a_reader_that_stops_early_is_no_error(words: list[str]) -> None:
    program = "import sys; from orchestrator.cli.main import main; sys.exit(main(sys.argv[1:]))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("opened", "code", "said"),
    [("pipe", 1, ""), ("/dev/full", 1, ""), ("/dev/full", 0, "standard output: No space left")],
)
def test_what_becomes_of_the_output_ends_no_work(
    opened: str, code: int, said: str, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from orchestrator.cli._shared.exit import run_guarded\n"
        "def work():\n"
        "    for _ in range(3):\n"
        "        Console().print('x ' * 9_999, highlight=False); print('y' * 99_999, flush=True)\n"
        "    Path(sys.argv[1]).touch(); return int(sys.argv[2])\n"
        "sys.exit(run_guarded(work))"
    )
    read, pipe = os.pipe()
    os.close(read)
    with os.fdopen(pipe, "w") if opened == "pipe" else Path(opened).open("w") as output:
        words = [sys.executable, "-c", program, tmp_path / "done", str(code)]
        ended = subprocess.run(words, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (tmp_path / "done").exists()
    assert ended.returncode == (71 if said else code)
    assert said in ended.stderr
    assert bool(said) == bool(ended.stderr)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 64, "no more memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 64, "no more memory"),
        (ImportError("libx.so: failed to map segment", name="cv2"), 64, "no more memory"),
        (RuntimeError("can't start new thread"), 64, "no more threads"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 64, "no more threads"),
        (OSError(errno.EMFILE, "Too many open files", "x.jpg"), 64, "ulimit -n"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 64, "No module named 'rich'"),
        (ModuleNotFoundError("No module named 'native.x'", name="native.x"), 70, "Traceback"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 71, "/a/b: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a/b"), 71, "/a/b: File name too long"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), 71, "/a/b: Input/output error"),
        (OSError(errno.EFBIG, "File too large", "/a/b"), 71, "ulimit -f"),
        (StoreError("AWS Error NETWORK_CONNECTION", "s3://b/run"), 71, "s3://b/run: the store"),
        (RuntimeError("I/O error: File too large (os error 27)"), 71, "ulimit -f"),
        (OSError("no number, no name"), 70, "Traceback"),
    ],
)
def test_what_the_machine_refuses_is_no_bug(
    error: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_guarded(fail) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert ("Traceback" in shown) == (code == 70)


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("<&-", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 71, "standard output: No space left on device"),
        (">/dev/full 2>/dev/full", 71, ""),
    ],
)
def test_standard_streams_that_are_not_there_or_full(
    redirection: str, code: int, said: str
) -> None:
    program = "import sys; from orchestrator.cli.main import main; sys.exit(main(sys.argv[1:]))"
    shell = f'exec "$0" -c "$1" models {redirection}'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_never_takes_the_number_of_a_stream_that_is_closed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from orchestrator.cli._shared.exit import run_guarded\n"
        "def work():\n"
        "    with open(sys.argv[1], 'w'):\n"
        "        return os.write(1, b'from a library')\n"
        "run_guarded(work); sys.exit(os.path.getsize(sys.argv[1]))"
    )
    shell = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    words = ["/bin/sh", "-c", shell, sys.executable, program, tmp_path / "log"]
    assert subprocess.run(words, cwd=ROOT).returncode == 0
