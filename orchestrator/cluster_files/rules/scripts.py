"""What must hold in SkyPilot's tasks and in Dockerfiles."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

from orchestrator.cluster_files.models.sky import SkyTask
from orchestrator.cluster_files.project import is_there
from orchestrator.cluster_files.rules.commands import MODE, Found, check_name, examine
from orchestrator.cluster_files.rules.launcher_clouds import LEAST_GB, too_small
from orchestrator.cluster_files.rules.starts import check_starts, check_token
from orchestrator.cluster_files.sheet import Nodes, Run, Sheet
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean

#: The mark of a document that follows an instruction.
_DOCUMENT = re.compile(r"(?<!<)<<(-?)(['\"]?)(\w+)\2")
#: Options of an instruction, which stand before everything else.
_FLAGS = re.compile(r"^(?:--[a-z-]+(?:=\S+)?[\s\\]+)+")
_INSTRUCTIONS = re.findall(
    r"\S+",
    """
    FROM ARG ENV RUN COPY ADD WORKDIR USER ENTRYPOINT CMD EXPOSE LABEL HEALTHCHECK STOPSIGNAL
    SHELL VOLUME ONBUILD MAINTAINER
    """,
)


def check_sky(sheet: Sheet, task: SkyTask) -> None:
    """Report everything that is wrong with a task of SkyPilot."""
    for key in ("secrets", "envs"):
        for name, value in getattr(task, key).items():
            if value and (key == "secrets" or names_secret(name)):
                sheet.report(
                    (key, name),
                    f"{name} is a secret in plain text; write `{name}: null` below secrets and "
                    f"give it by `sky launch --secret {name}`",
                )
    if task.resources.ports is not None:
        sheet.report(
            ("resources", "ports"), "the ports are open to the internet; use `ssh -L` instead"
        )
    env = {name: value or f"${name}" for name, value in {**task.envs, **task.secrets}.items()}
    if task.setup is not None:
        examine(sheet, ("setup",), task.setup, env=env)
    found = examine(sheet, ("run",), task.run, env=env)
    resources = _sky_resources(sheet, task)
    nodes = Nodes("nodes", task.num_nodes, resources)
    sheet.nodes.append(nodes)
    check_starts(sheet, ("run",), found, task.num_nodes, ("num_nodes",))
    check_token(sheet, ("run",), found, env)
    if task.workdir is None and "make install" in (task.setup or ""):
        sheet.report(("setup",), "the project is not there; write workdir: .", "make install")
    for start in found.starts:
        told, have = start.options.get("--num-gpus", ""), (resources or {}).get("GPU", 0.0)
        if told.isdecimal() and float(told) != have:
            sheet.report(start.path, f"--num-gpus is {told}, a node has {have:g}", "--num-gpus")
            if task.resources.accelerators is not None:
                at = ("resources", "accelerators")
                sheet.report(at, f"a node has {have:g} devices, --num-gpus is {told}")
    sheet.runs += [Run(at, name, kept, (nodes,)) for at, name, kept in found.runs]
    for where, name, kept in found.runs:
        experiment = sheet.project.experiment(name, kept)
        place = "" if experiment is None else experiment.storage
        if place and not place.startswith(tuple(task.file_mounts)) and "://" not in place:
            needle = next((word for word in kept if word.startswith("storage=")), name)
            sheet.report(
                where, f"storage is {place!r}, which goes with the machine; name a bucket", needle
            )


def _sky_resources(sheet: Sheet, task: SkyTask) -> dict[str, float] | None:
    text = task.resources.accelerators
    cpus = re.fullmatch(r"(\d+)\+?", str(task.resources.cpus or ""))
    if task.resources.cpus is not None and cpus is None:
        sheet.report(("resources", "cpus"), f"found {task.resources.cpus!r}, allowed is 8 or 8+")
    found = {"CPU": float(cpus[1])} if cpus else {}
    if task.resources.disk_size is not None and task.resources.disk_size < LEAST_GB:
        sheet.report(("resources", "disk_size"), too_small(task.resources.disk_size))
    if text is not None:
        name, _, count = text.partition(":")
        if count and not count.isdecimal():
            sheet.report(("resources", "accelerators"), f"found {text!r}, allowed is NAME:COUNT")
        elif name:
            found["GPU"] = float(count or 1)
    return found or None


def check_dockerfile(sheet: Sheet) -> None:
    """Report everything that is wrong with a Dockerfile."""
    user, user_at, arguments = "", "", dict[str, str]()
    #: Names of stages with their users, and those of the present one.
    stages, names = {"scratch": ""}, list[str]()
    made = set[str]()
    for start, word, rest in _instructions(sheet.lines):
        if not rest:
            sheet.report((), f"{word} says nothing; write what it is to do behind it", start)
        elif word not in _INSTRUCTIONS:
            hint = did_you_mean(word, _INSTRUCTIONS, like="{}")
            sheet.report((), f"there is no instruction {word}{hint}", start)
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name.strip()] = value.strip()
            if names_secret(name.strip()):
                sheet.report((), f"{name} stays in the image for everybody; use a secret", start)
        elif word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                check_name(sheet, (), name)
                if name == MODE and value != "token":
                    sheet.report((), f"{MODE} is {value}, allowed is token", f"{MODE}={value}")
                if names_secret(name) and "$" not in value:
                    sheet.report((), f"{name} stays in the image for everybody", start)
        elif word == "FROM":
            named = next((each for each in rest.split() if not each.startswith("--")), "")
            image = re.sub(r"\$\{?(\w+)\}?", lambda m: arguments.get(m[1], ""), named)
            if image not in stages:
                _base(sheet, start, image)
            user, user_at = stages.get(image, ""), start
            names = re.findall(r"(?i)\sas\s+(\S+)", rest)
            stages |= dict.fromkeys(names, user)
        elif word == "COPY":
            _copy(sheet, start, rest)
        elif word == "USER":
            user, user_at = rest.strip(), start
            stages |= dict.fromkeys(names, user)
        elif word == "WORKDIR" and not rest.startswith(("/", "$")):
            sheet.report((), f"{rest} is relative; write the whole path", start)
        elif word == "RUN":
            text = _FLAGS.sub("", rest)
            listed = _listed(text)
            text = text if listed is None else shlex.join(listed)
            for name, value in arguments.items():
                if value:
                    told = value.replace("\\", r"\\")
                    text = re.sub(rf"\$\{{?{re.escape(name)}\b\}}?", told, text)
            _pins(sheet, text, arguments)
            found = examine(sheet, (), text, inside=True)
            _layer(sheet, start, found)
            made |= {
                value
                for each in found.all
                for name, value in (each.options().items() if each.name == "useradd" else ())
                if name in ("--uid", "-u")
            }
    number = user.partition(":")[0]
    if number.isdecimal() and made and number not in made:
        sheet.report(
            (),
            f"user {number} has no home, those that are made are {', '.join(sorted(made))}",
            user_at,
        )
    if user in ("", "root", "0"):
        sheet.report((), "the container runs as root; write USER", user_at)


def _layer(sheet: Sheet, start: str, found: Found) -> None:
    """Packages of Debian come from lists that are of this very layer."""
    apt = [each for each in found.all if each.name in ("apt", "apt-get")]
    installing = [each for each in apt if "install" in each.words]
    if installing and not any("update" in each.words for each in apt):
        sheet.report(
            (),
            f"there are no lists of packages, or those of an old layer; write {installing[0].name} "
            "update && before it",
            start,
        )


def _pins(sheet: Sheet, text: str, arguments: dict[str, str]) -> None:
    """Versions that an ARG gives and the project pins."""
    for name, value in arguments.items():
        pinned = sheet.project.pins.get(name.lower())
        if pinned is not None and f"=={value}" in text and value != pinned:
            sheet.report((), f"{name} is {value}, constraints.txt pins {pinned}", f"ARG {name}=")


def _instructions(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """First line, word in capitals, and rest of every instruction."""
    rest: list[str] = []
    following = iter(lines)
    for line in following:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        rest.append(line.rstrip())
        if not rest[-1].endswith("\\"):
            yield _instruction(rest, following)
            rest = []
    if rest:
        yield _instruction(rest, following)


def _instruction(lines: list[str], following: Iterator[str]) -> tuple[str, str, str]:
    """The same of one; documents are taken from the lines that follow it.

    What is returned has none, except for a ``RUN`` that is nothing but a document: that one.
    """
    word, _, text = re.sub(r"\s+", " ", "\n".join(lines).strip(), count=1).partition(" ")
    word = word.upper()
    if word in ("RUN", "COPY", "ADD"):
        documents = [
            "\n".join(_until(following, end, tabs=bool(tabs)))
            for tabs, _, end in _DOCUMENT.findall(text)
        ]
        if word == "RUN" and _DOCUMENT.fullmatch(_FLAGS.sub("", text)):
            # The first line may hand the others to a program that is no shell.
            text = ":" if re.match(r"#!(?!.*sh\b)", documents[0]) else documents[0]
    return lines[0], word, text


def _until(lines: Iterator[str], end: str, *, tabs: bool) -> Iterator[str]:
    """The lines of a document up to its end, which tabs may precede."""
    for line in lines:
        if (line.lstrip("\t") if tabs else line) == end:
            return
        yield line


def _listed(text: str) -> list[str] | None:
    """Words that are given as a list of JSON; None where they are not."""
    try:
        words = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return [str(word) for word in words] if isinstance(words, list) else None


def _base(sheet: Sheet, start: str, image: str) -> None:
    host = image.partition("/")[0]
    if "/" in image and ("." in host or ":" in host):
        sheet.report((), f"the registry {host} is written in; take it by ARG", start)
    message = sheet.project.image_problem(image)
    if message:
        sheet.report(
            (), message, f"BASE={image}" if f"BASE={image}" in "\n".join(sheet.lines) else start
        )


def _copy(sheet: Sheet, start: str, rest: str) -> None:
    if "--from" in rest:
        return
    text = _FLAGS.sub("", rest).replace("\\\n", " ")
    words = _listed(text) or text.split()
    for source in words[:-1]:
        file = sheet.project.file(source)
        if source.startswith("<<") or re.search(r"[*?\[$]|://", source):
            continue  # A document, a pattern, a variable or an address.
        if file is not None and not is_there(file):
            sheet.report((), f"{source} does not exist in the project's folder", source)
