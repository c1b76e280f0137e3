"""Slips of the pen in the shipped cluster files, and what is said of them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from orchestrator.cli.main import VERBS
from orchestrator.cluster_files.check import FileReport, check_files

ROOT = Path(__file__).resolve().parents[2]


class Mistake(NamedTuple):
    """A slip of the pen.

    Attributes:
        file: below ``clusters``.
        old: text that is replaced.
        new: text that replaces it.
        says: pattern of the message.
        nth: which of the places where ``old`` stands, from 0.
        at: text on the line that is to be named; the new text's first line by default.
    """

    file: str
    old: str
    new: str
    says: str
    nth: int = 0
    at: str = ""


ONPREM, AWS, GCP, COMPOSE = "onprem.yaml", "aws.yaml", "gcp.yaml", "compose.yaml"
CLUSTER, JOB, NPU = (
    f"kuberay/{name}.yaml" for name in ("raycluster-gpu", "rayjob-gpu", "rayjob-npu")
)
SKY, TRAIN, SLURM, IMAGE = "skypilot.yaml", "trainjob.yaml", "slurm.sbatch", "docker/Dockerfile.gpu"


def edited(mistake: Mistake) -> tuple[str, int]:
    """The text with the mistake, and the line that has to be named."""
    text = (ROOT / "clusters" / mistake.file).read_text()
    # Comments tell how files are used, and are no place for these mistakes.
    body = re.search(r"(?m)^(?!#(?!SBATCH))", text)
    start = body.start() if body else 0
    for _ in range(mistake.nth + 1):
        start = text.index(mistake.old, start) + 1
    start -= 1
    changed = text[:start] + mistake.new + text[start + len(mistake.old) :]
    if mistake.at:
        position = changed.index(mistake.at, body.start() if body else 0)
    else:
        position = start + len(mistake.new) - len(mistake.new.lstrip())
    return changed, changed[:position].count("\n") + 1


def report_of(text: str, name: str, folder: Path) -> FileReport:
    """What is said of a file below ``clusters`` with this text.

    Files that it names stand beside it, as they do in the project.
    """
    for each in ("setup.cfg", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / each, folder / each)
    for each in (
        "experiments", "orchestrator", "detectors", "native", "setup.py", "pyproject.toml",
        "README.md", "LICENSE",
    ):  # fmt: skip
        (folder / each).symlink_to(ROOT / each)
    shutil.copytree(ROOT / "clusters", folder / "clusters")
    path = folder / "clusters" / name
    path.write_text(text)
    (report,) = check_files([path], verbs=frozenset(VERBS))
    return report


def require_found(mistake: Mistake, folder: Path) -> None:
    """Fail unless a mistake is found with its line."""
    text, line = edited(mistake)
    report = report_of(text, mistake.file, folder)
    found = [(each.place.line, each.message) for each in report.problems]
    assert any(number == line and re.search(mistake.says, message) for number, message in found), (
        line,
        [str(problem) for problem in report.problems],
    )
    path = str(folder / "clusters" / mistake.file)
    assert all(problem.place.source == path for problem in report.problems)
