"""Every file of a run folder damaged in every way, one at a time, and read by the verbs after it.

What comes is what a whole folder gives, or something is said, or it is refused with its place; and
whatever comes, the folder is as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestrator.cli.main import main
from orchestrator.predict import loading
from tests.runs import test_every_file as going_on
from tests.runs.test_every_file import DAMAGE, REFUSALS, copies
from tests.support.chaos_run import small_detector

runs = going_on.runs
#: Files that say other things each time, or that no verb after training reads.
_LEFT_OUT = re.compile(r"lock/|samples/|run_card\.md|per_class\.csv")
#: Verbs, with RUN for the folder, OTHER for a whole copy, IMAGE and OUT.
VERBS = {
    "list": ("list", "BESIDE", "--json"),
    "status": ("status", "RUN", "--json"),
    "compare": ("compare", "OTHER", "RUN", "--json", "--resamples", "100"),
    "predict": ("predict", "RUN", "IMAGE", "--all", "--output", "OUT/found.json"),
    "evaluate": ("evaluate", "RUN", "--json", "--output", "OUT"),
    "scores": ("evaluate", "RUN", "--predictions", "RESULTS", "--json", "--output", "OUT"),
}


class Answer(NamedTuple):
    """What a verb did: exit code, what it found, and what it said."""

    code: int
    found: Any
    said: str


@pytest.fixture
def ask(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[tuple[str, ...], Path], Answer]:
    monkeypatch.setattr(loading, "build_detector", small_detector)
    other = shutil.copytree(runs["finished"], tmp_path / "other")
    root = re.search(r'root: "(.*)"', runs["file"].read_text())
    assert root is not None
    out = tmp_path / "out"

    def call(words: tuple[str, ...], folder: Path) -> Answer:
        shutil.rmtree(out, ignore_errors=True)
        places = {
            "BESIDE": folder.parent,
            "RUN": folder,
            "OTHER": other,
            "IMAGE": next(iter(sorted(Path(root[1], "images").iterdir()))),
            "RESULTS": other / "eval" / "coco_results.json",
        }
        given = [str(places.get(word, word)).replace("OUT", str(out), 1) for word in words]
        printed, said = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger().addHandler(handler)
        try:
            with redirect_stdout(printed), redirect_stderr(said):
                code = main(given)
        finally:
            logging.getLogger().removeHandler(handler)
        return Answer(code, _found(printed.getvalue(), out / "found.json"), said.getvalue())

    return call


def _found(printed: str, file: Path) -> Any:
    if file.is_file():
        return json.loads(file.read_bytes())
    try:
        tree = json.loads(printed)
    except ValueError:
        return None
    for one in tree.get("runs", []):
        one.pop("seconds", None)
    return {key: tree.get(key) for key in ("runs", "contrasts", "metrics")}


def _content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGE, "deep"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_read_is_right_or_said(
    verb: str,
    damage: str,
    runs: dict[str, Path],
    ask: Callable[[tuple[str, ...], Path], Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DAMAGE, "deep", lambda file: file.write_bytes(b"[" * 100_000 + b"\n"))
    place = tmp_path / "runs" / "chaos"
    whole = ask(VERBS[verb], shutil.copytree(runs["finished"], place))
    assert whole.code == 0
    problems: list[str] = []
    for folder, file in copies(runs["finished"], place, damage):
        name = str(file.relative_to(folder))
        if _LEFT_OUT.search(name):
            continue
        before = _content(folder)
        answer = ask(VERBS[verb], folder)
        if _content(folder) != before:
            problems.append(f"{name}: the folder is not as it was")
        if answer.code:
            if answer.code not in REFUSALS or str(folder) not in answer.said:
                problems.append(f"{name}: exit code {answer.code}: {answer.said[-500:]}")
        elif answer.found != whole.found:
            troubles = str(answer.found) + answer.said
            if file.name not in troubles and file.parent.name not in troubles:
                problems.append(f"{name}: something else, and no word")
    assert not problems, "\n".join(problems)
