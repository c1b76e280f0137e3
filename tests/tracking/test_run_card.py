"""The run card and what it asks of git and the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from orchestrator.tracking.git_info import GitInfo, git_info
from orchestrator.tracking.run_card import Hardware, RunCard, package_versions, read_tables

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("x = 1\n")
    (folder / "other.py").write_text("y = 1\n")
    _git(folder.parent, "init", "-q", str(folder))
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "first")
    return folder


@needs_git
def test_commit_and_changes(repository):
    code = repository / "package" / "code.py"
    commit = _git(repository, "rev-parse", "HEAD")
    (repository / "notes.txt").write_text("untracked")
    assert git_info(code) == GitInfo(commit, dirty=False)
    (repository / "other.py").write_text("y = 2\n")
    assert git_info(code) == GitInfo(commit, dirty=True)
    assert str(git_info(code)) == f"{commit} with uncommitted changes"


@needs_git
def test_a_package_installed_inside_a_repository_is_not_of_it(repository):
    (repository / ".venv").mkdir()
    installed = repository / ".venv" / "code.py"
    installed.write_text("x = 1\n")
    assert git_info(installed) is None


@needs_git
def test_no_repository(tmp_path):
    (tmp_path / "code.py").write_text("")
    assert git_info(tmp_path / "code.py") is None


@needs_git
def test_no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_info(repository / "package" / "code.py") is None


def test_this_machine():
    hardware = Hardware.here(["NVIDIA H100"] * 2 + ["NVIDIA A100"])
    assert hardware.cores >= 1
    assert hardware.memory_gib > 0.1
    assert str(hardware).endswith("2 x NVIDIA H100, 1 x NVIDIA A100")
    assert Hardware.here().accelerators == ()


def test_versions_are_those_that_are_installed():
    versions = package_versions()
    assert versions["numpy"] == np.__version__
    assert {"python", "torch", "ray"} <= set(versions)
    assert None not in versions.values()


def _card(**changes: object) -> RunCard:
    content: dict[str, object] = {
        "name": "ssd-run",
        "status": "done",
        "code": GitInfo("a" * 40, dirty=True),
        "config_digest": "c" * 64,
        "data_digest": "d" * 64,
        "seeds": (1,),
        "hardware": Hardware("A CPU", 2, 24.0, ()),
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "metrics": {"AP": 0.47654, "APs": -1.0, "AR100": 0.0},
        "facts": {"steps": 1281, "images/s": "24.1"},
        "files": {"best checkpoint": "ckpt/00001281"},
    }
    return RunCard(**{**content, **changes})


def test_everything_is_on_the_card(tmp_path):
    path = _card().write(tmp_path)
    assert path.name == "run_card.md"
    text = path.read_text()
    for line in (
        "# ssd-run",
        f"| code | {'a' * 40} with uncommitted changes |",
        f"| configuration | {'c' * 64} |",
        f"| data | {'d' * 64} |",
        "| seed | 1 |",
        "| hardware | A CPU, 2 cores, 24 GiB |",
        "| steps | 1281 |",
        "| AP | 0.4765 |",
        "| APs | - |",
        "| AR100 | 0.0000 |",
        "| best checkpoint | ckpt/00001281 |",
        "| torch | 2.15.0 |",
    ):
        assert line in text.splitlines()


def test_several_seeds_no_code_and_no_numbers():
    lines = _card(code=None, seeds=(1, 2, 3), metrics={}).render().splitlines()
    assert "| code | in no git repository |" in lines
    assert "| seeds | 1, 2, 3 |" in lines
    assert "Not evaluated." in lines


def test_names_cannot_break_the_table():
    lines = _card(files={"a|b": "x\ny"}).render().splitlines()
    assert "| a\\|b | x y |" in lines


def test_the_tables_can_be_read_back(tmp_path):
    assert read_tables(tmp_path) == {"": {}}
    _card(files={"a|b": "c | d", "best checkpoint": "ckpt/00001281"}).write(tmp_path)
    tables = read_tables(tmp_path)
    assert tables["Files"] == {"a|b": "c | d", "best checkpoint": "ckpt/00001281"}
    assert tables["Numbers"] == {"AP": "0.4765", "APs": "-", "AR100": "0.0000"}
    assert tables["Versions"] == {"python": "3.11.7", "torch": "2.15.0"}
    assert tables[""]["status"] == "done"
    assert tables[""]["configuration"] == "c" * 64
