"""What must hold in SkyPilot's tasks, in batch scripts of Slurm and in Dockerfiles."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping

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

#: Options of sbatch that have a short form.
_SHORT = {
    "-A": "--account",
    "-a": "--array",
    "-B": "--extra-node-info",
    "-b": "--begin",
    "-C": "--constraint",
    "-c": "--cpus-per-task",
    "-D": "--chdir",
    "-d": "--dependency",
    "-e": "--error",
    "-F": "--nodefile",
    "-G": "--gpus",
    "-H": "--hold",
    "-h": "--help",
    "-i": "--input",
    "-J": "--job-name",
    "-k": "--no-kill",
    "-L": "--licenses",
    "-M": "--clusters",
    "-m": "--distribution",
    "-N": "--nodes",
    "-n": "--ntasks",
    "-O": "--overcommit",
    "-o": "--output",
    "-p": "--partition",
    "-Q": "--quiet",
    "-q": "--qos",
    "-S": "--core-spec",
    "-s": "--oversubscribe",
    "-t": "--time",
    "-V": "--version",
    "-v": "--verbose",
    "-W": "--wait",
    "-w": "--nodelist",
    "-x": "--exclude",
}
_SBATCH = frozenset(_SHORT.values()) | frozenset(
    re.findall(
        r"\S+",
        """
    --acctg-freq --batch --bb --bbf --cluster-constraint --comment --consolidate-segments
    --container --container-id --contiguous --cores-per-socket --cpu-freq --cpus-per-gpu
    --deadline --delay-boot --exclusive --export --export-file --extra --get-user-env --gid
    --gpu-bind --gpu-freq --gpus-per-node --gpus-per-socket --gpus-per-task --gres --gres-flags
    --hint --ignore-pbs --kill-on-invalid-dep --mail-type --mail-user --mcs-label --mem
    --mem-bind --mem-per-cpu --mem-per-gpu --mincpus --network --nice --no-requeue
    --ntasks-per-core --ntasks-per-gpu --ntasks-per-node --ntasks-per-socket --oom-kill-step
    --open-mode --parsable --power --prefer --priority --profile --propagate --reboot --requeue
    --reservation --resv-ports --segment --signal --sockets-per-node --spread-job
    --spread-segments --stepmgr --switches --test-only --thread-spec --threads-per-core
    --time-min --tmp --tres-bind --tres-per-task --uid --usage --use-min-nodes
    --wait-all-nodes --wckey --wrap
    """,
    )
)
#: How alike an unknown option has to be to one of these, to be a slip and not a plugin's.
_SLIP = 0.88
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
    options, lines = _batch_options(sheet)
    found_commands = examine(sheet, (), "\n".join(sheet.lines))
    # Of `2-4`, what the job is sure to get.
    count = re.match(r"\d+", options.get("--nodes", ""))
    nodes = int(count[0]) if count else 1
    if options.get("--ntasks-per-node", "1") != "1":
        message = "Ray is started once on each node; write 1"
        sheet.report((), message, lines["--ntasks-per-node"])
    each, given = {}, {}
    for key, option, found in _batch_resources(options):
        number = found.rpartition(":")[2]
        if key not in each and number.isdigit():
            each[key] = int(number) / (nodes if option == "--gpus" else 1)
            given[key] = lines[option]
    kinds = Nodes("nodes", nodes, each or None)
    sheet.nodes.append(kinds)
    _starts(sheet, (), found_commands, nodes, (), lines.get("--nodes", ""))
    warned = re.fullmatch(r"(?:B:)?(?:SIG)?([A-Z]+\d?)@(\d+)", options.get("--signal", ""))
    if "--signal" in options and (warned is None or int(warned[2]) < GRACE_SECONDS):
        sheet.report(
            (),
            f"--signal is {options['--signal']}, allowed is TERM@{GRACE_SECONDS} and more, in "
            "which a step and its commit fit",
            lines["--signal"],
        )
    for start in found_commands.starts:
        for key, option in (("CPU", "--num-cpus"), ("GPU", "--num-gpus")):
            told = start.options.get(option, "")
            if told.isdigit() and float(told) != each.get(key, 0.0):
                has = f"a node gets {each.get(key, 0):g}"
                sheet.report((), f"{option} is {told}, {has}", option)
                sheet.report((), f"{has}, {option} is {told}", given.get(key, ""))
    sheet.runs += [Run((), name, kept, (kinds,)) for _, name, kept in found_commands.runs]


def _batch_options(sheet: Sheet) -> tuple[dict[str, str], dict[str, str]]:
    """Values of a batch script's options, and the lines that give them, by the long names."""
    options: dict[str, str] = {}
    lines: dict[str, str] = {}
    for line in sheet.lines:
        if line.startswith(("#SBTACH", "#SBACTH", "# SBATCH", "#sbatch")):
            sheet.report((), "Slurm passes over this line; write #SBATCH", line)
        if re.match(r"#SBATCH\s", line) is None:
            continue
        try:
            words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
        except ValueError as error:
            sheet.report((), f"sbatch cannot read this: {error}; close the quotes", line)
            continue
        for name, value in _given(words):
            if name not in _SBATCH:
                _unknown(sheet, name, line)
            if name in options:
                sheet.report((), f"{name} is given twice", line)
            options[name], lines[name] = value, line
    return options, lines


def _given(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options by their long names, in each of the forms `--nodes=8`, `--nodes 8`, `-N8`, `-N 8`."""
    rest = iter([*words, ""])
    word = next(rest)
    while word:
        following = next(rest)
        if not word.startswith("-"):
            word = following
            continue
        name, mark, value = word.partition("=")
        if not word.startswith("--"):
            name, value = _SHORT.get(word[:2], word[:2]), word[2:]
            mark = value
        if not mark and not following.startswith("-"):
            value, following = following, next(rest, "")
        yield name, value
        word = following


def _unknown(sheet: Sheet, name: str, line: str) -> None:
    guess = difflib.get_close_matches(name, _SBATCH, n=1, cutoff=_SLIP)
    if guess:
        sheet.report((), f"sbatch has no option {name}; did you mean {guess[0]}?", line)
    else:
        sheet.note((), f"the option {name} of sbatch is not known here and was passed over", line)


def _batch_resources(options: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What a node is given: the resource, the option, and its value, whose last part counts."""
    yield "CPU", "--cpus-per-task", options.get("--cpus-per-task", "")
    for option in ("--gpus-per-node", "--gpus-per-task", "--gpus"):
        yield "GPU", option, options.get(option, "")
    for each in options.get("--gres", "").split(","):
        if each.partition(":")[0] == "gpu":
            yield "GPU", "--gres", each if each.rpartition(":")[2].isdigit() else "1"


def check_dockerfile(sheet: Sheet) -> None:
    """Report everything that is wrong with a Dockerfile."""
    user, user_at, arguments = "", "", dict[str, str]()
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
            _base(sheet, start, image)
            user_at = user_at or start
        elif word == "COPY":
            _copy(sheet, start, rest)
        elif word == "USER":
            user, user_at = rest.strip(), start
        elif word == "WORKDIR" and not rest.startswith(("/", "$")):
            sheet.report((), f"{rest} is relative; write the whole path", start)
        elif word == "RUN":
            text = _FLAGS.sub("", rest)
            listed = _listed(text)
            text = text if listed is None else shlex.join(listed)
            for name, value in arguments.items():
                if value:
                    text = re.sub(rf"\$\{{?{name}\b\}}?", value, text)
            _pins(sheet, text, arguments)
            examine(sheet, (), text, inside=True)
    if user in ("", "root", "0"):
        sheet.report((), "the container runs as root; write USER", user_at)


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
    except ValueError:
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
        if file is not None and not file.exists():
            sheet.report((), f"{source} does not exist in the project's folder", source)
