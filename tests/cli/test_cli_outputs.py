"""Where verbs are to write: what cannot be is said before their work, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.errors import ConfigError, StorageError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "a.jpg", "--output", "there"], "is a folder. Next: name a file"),
        (["predict", "RUN", "a.jpg", "--draw", "file"], "is a file, where a folder is to be"),
        (["predict", "RUN", "--camera", "0", "--output", "file/p.json"], "file: is a file, where"),
        (["evaluate", "RUN", "--output", "file/new"], "file: is a file, where"),
        (["compare", "RUN", "--html", "there"], "is a folder. Next: name a file"),
        (["draw", "p.json", "--output", "file"], "is a file, where a folder is to be"),
    ],
)
def test_what_cannot_be_written_is_said_first(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").touch()
    # RUN is missing, which nobody has come to yet.
    assert main(words) == StorageError.exit_code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["predict", "evaluate", "draw"])
def test_a_bucket_does_not_become_a_folder(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [verb, "x", *(["y"] if verb == "predict" else []), "--output", "s3://bucket/p.json"]
    assert main(words) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("s3://bucket/p.json: is no path of this machine")
    assert list(tmp_path.iterdir()) == []
