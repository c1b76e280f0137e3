"""Packages that commands install, of Python and of Debian."""

from __future__ import annotations

import re
from itertools import pairwise

from orchestrator.cluster_files.project import is_there
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.cluster_files.shell import Command
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean

_PIN = re.compile(r"([A-Za-z][\w.-]*)(?:\[[\w,-]*\])?==([\w.]+)")
_YES = re.compile(r"-[a-z]*y[a-z]*|--yes|--assume-yes|-qq")
#: What apt and apt-get do.
_VERBS = re.findall(
    r"\S+",
    """
    update upgrade full-upgrade dist-upgrade install reinstall remove purge autoremove clean
    autoclean download source build-dep check list search show satisfy edit-sources
    """,
)


def check_apt(sheet: Sheet, path: KeyPath, command: Command) -> None:
    """Report what apt does not know, and questions of its that nobody answers."""
    verb = next((word for word in command.words[1:] if not word.startswith("-")), "")
    if verb and verb not in _VERBS and "$" not in verb:
        hint = did_you_mean(verb, _VERBS, like=f"'{command.name} {{}}'")
        sheet.report(path, f"{command.name} has no command {verb!r}{hint}", f" {verb}")
    elif verb == "install" and not any(_YES.fullmatch(word) for word in command.words):
        sheet.report(
            path, f"{command.name} asks, and nobody answers; write -y", f"{command.name} install"
        )


def check_pip(sheet: Sheet, path: KeyPath, words: tuple[str, ...]) -> None:
    """Report packages in other versions than the project's, and extras that it has not.

    Args:
        sheet: takes the problems.
        path: of the command.
        words: what follows ``pip``.
    """
    if "install" not in words:
        return
    for word in words:
        asked = re.fullmatch(r"\.\[([\w,-]+)\]", word)
        for extra in asked[1].split(",") if asked and sheet.project.extras else ():
            if extra not in sheet.project.extras:
                hint = did_you_mean(extra, sheet.project.extras, like="{}")
                sheet.report(path, f"setup.cfg has no extra {extra!r}{hint}", word)
    pins = sheet.project.pins
    for option, name in pairwise(words):
        file = sheet.project.file(name)
        if (
            option in ("-c", "--constraint", "-r", "--requirement")
            and re.match(r"[$/~]|\w+://", name) is None
            and not (file is None or is_there(file))
        ):
            sheet.report(path, f"{name} does not exist in the project's folder", name)
    constrained = "-c" in words or "--constraint" in words
    editable = [word for word in words if "." in word.partition("[")[0] and word[:1] == "."]
    if editable and not constrained and not any(word.startswith("ray") for word in words):
        sheet.report(
            path,
            "the project is installed with whatever versions are newest, and nodes have to agree; "
            "add -c constraints.txt",
            editable[0],
        )
    for word in words[words.index("install") + 1 :]:
        found = _PIN.fullmatch(word)
        name = (found[1] if found else re.split(r"[\[<>=~!]", word)[0]).lower().replace("_", "-")
        if name not in pins or word.startswith("-") or "$" in word:
            continue
        if found and found[2] != pins[name]:
            sheet.report(
                path, f"{name} {found[2]} is named, constraints.txt pins {pins[name]}", word
            )
        elif not found and not constrained and name in ("ray", "torch", "torchvision", "mlflow"):
            sheet.report(
                path,
                f"{name} is installed in whatever version is newest, and nodes have to agree; "
                f"write {name}=={pins[name]}, or add -c constraints.txt",
                word,
            )
