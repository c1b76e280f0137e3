"""``orchestrator predict`` when the mount of its images is lost: no image is skipped."""

from __future__ import annotations

import errno
import json
import shutil

import pytest

from orchestrator.cli.main import main
from orchestrator.data import decode, files
from orchestrator.errors import StorageError
from orchestrator.predict import prediction


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch):
    monkeypatch.setattr(prediction, "_SHARE_BATCHES", 1)


@pytest.mark.parametrize("lost", ["emptied", "gone", "failing"])
def test_a_mount_that_is_lost_skips_nothing(small_run, images, tmp_path, monkeypatch, capsys, lost):
    shutil.copytree(images, tmp_path / "images")
    folder, aside, out = tmp_path / "images", tmp_path / "aside", tmp_path / "p.json"
    arguments = ["predict", str(small_run), str(folder), "--output", str(out), "--batch", "4"]
    true = prediction.ShareWorker.run

    def losing(self, number):
        if number == 2 and lost == "failing":
            monkeypatch.setattr(decode, "open_regular", stale)
            monkeypatch.setattr(files, "_WAITS", ())
        elif number == 2:
            folder.rename(aside)
            if lost == "emptied":
                folder.mkdir()
        return true(self, number)

    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(prediction.ShareWorker, "run", losing)
        assert main(arguments) == StorageError.exit_code
    said = capsys.readouterr().err
    assert "Stale file handle" in said if lost == "failing" else "is gone or empty" in said
    if lost == "failing":
        monkeypatch.undo()
        monkeypatch.setattr(prediction, "_SHARE_BATCHES", 1)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    assert main(arguments) == 0
    assert len(json.loads(out.read_text())) == 19
    assert "skipped" not in capsys.readouterr().err
