"""Every command of the documents: its verb and options exist, and what is quick is executed."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.cli._shared.parser import Parser
from orchestrator.cli.main import ALIASES, VERBS, main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
#: Programs of others, which stand on the pages for people who have them.
OTHERS = {
    *(
        "bash",
        "cd",
        "chmod",
        "cp",
        "export",
        "git",
        "mkdir",
        "openssl",
        "printf",
        "sed",
        "sh",
        "source",
        "ssh",
    ),
    *("ssh-keygen", "curl", "docker", "kubectl", "helm", "kind", "pip", "ray", "aws", "sbatch"),
    *("atc", "converter_lite", "mlflow"),
}
#: What a placeholder of a page stands for here.
PLACEHOLDERS = {"EXPERIMENT.yaml": "experiments/quickstart.yaml", "RUN": "runs/NAME"}


class Command(NamedTuple):
    page: str
    line: str
    words: list[str]


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page that say they are in one of some languages."""
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def commands() -> Iterator[Command]:
    """The commands of this program on the pages, without comments, pipes and targets of output."""
    for page in PAGES:
        for block in blocks(page, "", "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = split(line)
                if words[:2] == ["python", "-m"] and words[2:3] == ["orchestrator.run"]:
                    words = ["orchestrator", "run", *words[3:]]
                if words[:1] == ["orchestrator"]:
                    yield Command(page, line, words)


def split(line: str) -> list[str]:
    """Words of a line up to a comment, a pipe or what follows; usage in brackets left out."""
    line = re.sub(r"\[[^\]]*…\]|\[--?[^\]]*\]", "", line)
    line = re.sub(r"\s{3,}[a-z].*$", "", line)  # An explanation in a column of its own.
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    end = next((i for i, word in enumerate(words) if word in (">", "|", "&&", ";")), len(words))
    return words[:end]


COMMANDS = list(commands())


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) > 40
    assert {one.words[1] for one in COMMANDS} > {"init", "run", "predict", "check", "compare"}


class _ParsedError(Exception):
    """Leaves a verb with the arguments that it has understood."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: f"{one.page}: {one.line[:70]}")
def test_verb_and_options_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = Parser.parse_args

    def stop(self: Parser, args: Any = None, namespace: Any = None) -> Any:
        raise _ParsedError(parse(self, args, namespace))

    monkeypatch.setattr(Parser, "parse_args", stop)
    verb = ALIASES.get(command.words[1], command.words[1])
    assert verb in VERBS, command.line
    with pytest.raises(_ParsedError):
        VERBS[verb].main(command.words[2:])


def shell_lines() -> list[tuple[str, str]]:
    """First words of all lines in blocks that say they are for a shell."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = [word for word in split(line) if not re.match(r"[A-Z_]+=", word)]
                if words:
                    found.append((page, " ".join(words[:3])))
    return found


def test_other_commands_are_known() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page, line in shell_lines():
        first, *rest = line.split()
        if first == "make":
            assert {word for word in rest if "=" not in word} <= targets, (page, line)
        elif first == "python":
            module = rest[1] if rest[0] == "-m" else rest[0]
            path = ROOT / (module.replace(".", "/") + ".py" if rest[0] == "-m" else module)
            assert path.is_file(), (page, line)
        else:
            assert first in {"orchestrator", *OTHERS}, (page, line)


def known_experiment(command: Command) -> bool:
    return any((ROOT / word).is_file() and word.endswith(".yaml") for word in command.words[2:])


RUNS = [one for one in COMMANDS if one.words[1] in ("run", "submit") and known_experiment(one)]


@pytest.mark.parametrize("command", RUNS, ids=lambda one: f"{one.page}: {one.line[:70]}")
def test_what_is_to_be_run_is_valid(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in command.words[2:] if not word.startswith("--")]
    assert main(["run", *words, "--print-config"]) == 0
    assert "train:" in capsys.readouterr().out


@pytest.fixture
def workplace(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the files that the pages speak of lie."""
    data = small_run.parent / "squares"
    for name in ("NAME", "a", "b"):
        shutil.copytree(small_run, tmp_path / "runs" / name)
    shutil.copytree(data / "images", tmp_path / "images")
    shutil.copytree(data, tmp_path / "data" / "bccd")
    shutil.copy(data / "annotations" / "instances_val.json", tmp_path / "val.json")
    shutil.copy(small_run / "eval" / "coco_results.json", tmp_path / "results.json")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    text = (small_run.parent / "tiny.yaml").read_text()
    (tmp_path / "experiment.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: Beginnings of commands that end within seconds on a few small images.
QUICK = (
    "orchestrator config",
    "orchestrator models",
    "orchestrator evaluate runs/NAME --predictions",
    "orchestrator evaluate --predictions",
    "orchestrator evaluate runs/NAME --max-detections",
    "orchestrator compare runs/a runs/b --html",
    "orchestrator draw predictions.json",
    "orchestrator convert data experiment.yaml",
)


def quick() -> list[Command]:
    return [one for one in COMMANDS if " ".join(one.words).startswith(QUICK)]


@pytest.mark.parametrize("command", quick(), ids=lambda one: f"{one.page}: {one.line[:70]}")
def test_what_is_quick_does_what_the_page_says(command: Command, workplace: Path) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in command.words[1:]]
    if words[:2] == ["config", "show-schedule"]:
        words += ["--images", "100"]
    if words[0] == "draw":
        predicted = ["predict", "runs/NAME", "images/", "--output", "predictions.json"]
        assert main(predicted) == 0
        # Only the validation images have annotations in the file.
        words[words.index("images/")] = "images"
    assert main(words) == 0


def test_the_quick_ones_are_on_the_pages() -> None:
    lines = [" ".join(one.words) for one in quick()]
    assert [start for start in QUICK if not any(line.startswith(start) for line in lines)] == [
        "orchestrator models"
    ]


def test_predictions_of_the_page_are_where_it_says(workplace: Path) -> None:
    (command,) = (
        one
        for one in COMMANDS
        if one.page == "docs/inference.md" and "--form" not in one.words and "predict" in one.words
    )
    assert main(command.words[1:]) == 0
    assert (workplace / "predictions.json").is_file()
    assert len(list((workplace / "drawn").glob("*.jpg"))) == 19
