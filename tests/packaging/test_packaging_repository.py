"""The repository itself: what the pages promise exists, and every file keeps to the house rules."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.main import VERBS
from orchestrator.config.resolve import load_experiment

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "clusters/README.md"]


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Every file that is, or is about to be, under version control."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if "dubious ownership" in done.stderr:
        pytest.skip("the clone is another user's, which git refuses")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.splitlines()
    return [path for name in listed if (path := ROOT / name).is_file()]


def commands(page: str) -> list[str]:
    """The lines of the shell blocks of a page, with continuations joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for line in commands(page):
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        if words[:1] == ["orchestrator"]:
            assert words[1] in VERBS, line
        for name in re.findall(r"\b(?:experiments|clusters)/[\w.-]+", line):
            assert (ROOT / name).is_file(), line
        for module in re.findall(r"python -m (orchestrator[\w.]*)", line):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), line


@pytest.mark.parametrize("page", [*PAGES, "docs/architecture.md", "docs/weights.md"])
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_experiments_on_a_page_are_valid(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(name:.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        (tmp_path / f"{number}.yaml").write_text(block)
        load_experiment(tmp_path / f"{number}.yaml")


def test_the_readme_begins_with_the_two_commands() -> None:
    makes = [line for line in commands("README.md") if line.startswith("make ")]
    assert [line.split()[1] for line in makes[:2]] == ["quickstart", "test"]


def test_no_source_is_longer_than_a_reader_can_hold(files: list[Path]) -> None:
    code = {".py", ".cpp", ".hpp", ".inl", ".sh"}
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in files
        if path.suffix in code
    }
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_file_names_a_path_of_somebodys_machine(files: list[Path]) -> None:
    private = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users|opt|tmp/env)/\w")
    found = []
    for path in files:
        if path.suffix in {".png", ".jpg", ".ico"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert version is not None
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{version[1]}]" in text
