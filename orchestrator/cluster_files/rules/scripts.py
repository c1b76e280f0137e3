"""What must hold in SkyPilot's tasks, in batch scripts of Slurm and in Dockerfiles."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.cluster_files.models.sky import SkyTask
from orchestrator.cluster_files.rules.commands import (
    GRACE_SECONDS,
    MODE,
    Found,
    check_name,
    examine,
)
from orchestrator.cluster_files.sheet import Nodes, Run, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean

_SBATCH = re.findall(
    r"\S+",
    """
    --account --array --chdir --constraint --cpus-per-gpu --cpus-per-task --error --exclusive
    --export --gpus --gpus-per-node --gpus-per-task --gres --hint --job-name --kill-on-bad-
    exit --mail-type --mail-user --mem --mem-per-cpu --mem-per-gpu --no-requeue --nodes
    --ntasks --ntasks-per-node --open-mode --output --partition --qos --requeue --reservation
    --signal --time --tmp --wait-all-nodes
    """,
)
_INSTRUCTIONS = re.findall(
    r"\S+",
    """
    FROM ARG ENV RUN COPY ADD WORKDIR USER ENTRYPOINT CMD EXPOSE LABEL HEALTHCHECK STOPSIGNAL
    SHELL VOLUME ONBUILD
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
    _starts(sheet, ("run",), found, task.num_nodes, ("num_nodes",))
    for start in found.starts:
        told, have = start.options.get("--num-gpus", ""), (resources or {}).get("GPU", 0.0)
        if told.isdigit() and float(told) != have:
            sheet.report(start.path, f"--num-gpus is {told}, a node has {have:g}", "--num-gpus")
            if task.resources.accelerators is not None:
                at = ("resources", "accelerators")
                sheet.report(at, f"a node has {have:g} devices, --num-gpus is {told}")
    sheet.runs += [Run(at, name, kept, (nodes,)) for at, name, kept in found.runs]


def _sky_resources(sheet: Sheet, task: SkyTask) -> dict[str, float] | None:
    text = task.resources.accelerators
    cpus = re.fullmatch(r"(\d+)\+?", str(task.resources.cpus or ""))
    if task.resources.cpus is not None and cpus is None:
        sheet.report(("resources", "cpus"), f"found {task.resources.cpus!r}, allowed is 8 or 8+")
    found = {"CPU": float(cpus[1])} if cpus else {}
    if text is not None:
        name, _, count = text.partition(":")
        if count and not count.isdigit():
            sheet.report(("resources", "accelerators"), f"found {text!r}, allowed is NAME:COUNT")
        elif name:
            found["GPU"] = float(count or 1)
    return found or None


def _starts(
    sheet: Sheet, path: KeyPath, found: Found, nodes: int, key: KeyPath, needle: str = ""
) -> None:
    if not found.starts:
        sheet.report(path, "no command starts Ray; write ray start or ray symmetric-run")
    _joins(sheet, found)
    for start in found.starts:
        wanted = start.options.get("--min-nodes", "")
        if wanted.isdigit() and int(wanted) != nodes:
            sheet.report(start.path, f"--min-nodes is {wanted}, there are {nodes}", "--min-nodes")
            sheet.report(key, f"there are {nodes} nodes, --min-nodes is {wanted}", needle)


def _joins(sheet: Sheet, found: Found) -> None:
    """Workers look for the head at the port that it listens at."""
    heads = [start for start in found.starts if start.head and "--port" in start.options]
    for worker in (start for start in found.starts if not start.head):
        address = worker.options.get("--address", "")
        variable = re.fullmatch(r"\$\{?(\w+)\}?", address)
        if variable is not None:
            address = worker.env.get(variable[1], "")
        port = re.search(r":(\d+)$", address)
        for head in heads:
            listens = head.options["--port"]
            if port is not None and port[1] != listens:
                message = f"the head listens at {listens}, workers look for {port[1]}"
                sheet.report(head.path, message, f"--port={listens}")
                sheet.report(worker.path, message, f":{port[1]}")


def check_batch(sheet: Sheet) -> None:
    """Report everything that is wrong with a batch script of Slurm."""
    text = "\n".join(sheet.lines)
    options: dict[str, str] = {}
    for line in sheet.lines:
        found = re.match(r"#SBATCH\s+(--[\w-]+)(?:[= ](\S+))?", line)
        if found is None:
            if line.startswith(("#SBTACH", "#SBACTH", "# SBATCH", "#sbatch")):
                sheet.report((), "Slurm passes over this line; write #SBATCH", line)
            continue
        if found[1] not in _SBATCH:
            hint = did_you_mean(found[1], _SBATCH, like="{}")
            sheet.report((), f"sbatch has no option {found[1]}{hint}", line)
        if found[1] in options:
            sheet.report((), f"{found[1]} is given twice", line)
        options[found[1]] = found[2] or ""
    found_commands = examine(sheet, (), text)
    count = options.get("--nodes", "1")
    nodes = int(count) if count.isdigit() else 1
    if options.get("--ntasks-per-node", "1") != "1":
        sheet.report((), "Ray is started once on each node; write 1", "--ntasks-per-node")
    each = {}
    for key, option in (("CPU", "--cpus-per-task"), ("GPU", "--gpus-per-node")):
        if options.get(option, "").rpartition(":")[2].isdigit():
            each[key] = float(options[option].rpartition(":")[2])
    kinds = Nodes("nodes", nodes, each or None)
    sheet.nodes.append(kinds)
    _starts(sheet, (), found_commands, nodes, (), "--nodes")
    warned = re.fullmatch(r"(?:B:)?(?:SIG)?([A-Z]+\d?)@(\d+)", options.get("--signal", ""))
    if "--signal" in options and (warned is None or int(warned[2]) < GRACE_SECONDS):
        sheet.report(
            (),
            f"--signal is {options['--signal']}, allowed is TERM@{GRACE_SECONDS} and more, in "
            "which a step and its commit fit",
            "--signal",
        )
    for start in found_commands.starts:
        for key, option in (("CPU", "--num-cpus"), ("GPU", "--num-gpus")):
            told = start.options.get(option, "")
            if told.isdigit() and float(told) != each.get(key, 0.0):
                sheet.report((), f"{option} is {told}, a node gets {each.get(key, 0):g}", option)
                sbatch = "--cpus-per-task" if key == "CPU" else "--gpus-per-node"
                sheet.report((), f"a node gets {each.get(key, 0):g}, {option} is {told}", sbatch)
    sheet.runs += [Run((), name, kept, (kinds,)) for _, name, kept in found_commands.runs]


def check_dockerfile(sheet: Sheet) -> None:
    """Report everything that is wrong with a Dockerfile."""
    user, arguments = "", dict[str, str]()
    for start, word, rest in _instructions(sheet.lines):
        if word not in _INSTRUCTIONS:
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
            image = re.sub(r"\$\{?(\w+)\}?", lambda m: arguments.get(m[1], ""), rest.split()[0])
            _base(sheet, start, image)
        elif word == "COPY":
            _copy(sheet, start, rest)
        elif word == "USER":
            user = rest.strip()
        elif word == "WORKDIR" and not rest.startswith(("/", "$")):
            sheet.report((), f"{rest} is relative; write the whole path", start)
        elif word == "RUN":
            text = re.sub(r"--mount=\S+", "", rest).strip()
            for name, value in arguments.items():
                if value:
                    text = re.sub(rf"\$\{{?{name}\b\}}?", value, text)
            _pins(sheet, text, arguments)
            examine(sheet, (), text, inside=True)
    if user in ("", "root", "0"):
        sheet.report(
            (), "the container runs as root; write USER", f"USER {user}" if user else "FROM"
        )


def _pins(sheet: Sheet, text: str, arguments: dict[str, str]) -> None:
    """Versions that an ARG gives and the project pins."""
    for name, value in arguments.items():
        pinned = sheet.project.pins.get(name.lower())
        if pinned is not None and f"=={value}" in text and value != pinned:
            sheet.report((), f"{name} is {value}, constraints.txt pins {pinned}", f"ARG {name}=")


def _instructions(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """First line, word and rest of every instruction."""
    kept = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    rest: list[str] = []
    for line in kept:
        rest.append(line)
        if line.endswith("\\"):
            continue
        text = "\n".join(rest)
        word, _, arguments = text.strip().partition(" ")
        yield rest[0], word, arguments
        rest = []


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
    words = [word for word in rest.split() if not word.startswith("--")]
    if "--from" in rest:
        return
    for source in words[:-1]:
        file = sheet.project.file(source)
        if file is not None and "*" not in source and not file.exists():
            sheet.report((), f"{source} does not exist in the project's folder", source)
