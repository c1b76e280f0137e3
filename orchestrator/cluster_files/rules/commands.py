"""Commands: that they exist, start Ray with a token, and name what the project has."""

from __future__ import annotations

import difflib
import functools
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.cluster_files.project import is_there
from orchestrator.cluster_files.rules.packages import check_apt, check_pip
from orchestrator.cluster_files.rules.words import COMMANDS, VARIABLES
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.cluster_files.shell import Command, ShellError, commands
from orchestrator.config.problems import KeyPath
from orchestrator.credentials import holds_secret, names_secret
from orchestrator.errors import ConfigError, did_you_mean, nearest

MODE = "RAY_AUTH_MODE"
GRACE, GRACE_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 120
#: Of the memory of a container, what Ray takes for its object store.
STORE_SHARE = 0.3
#: What is likely to be meant by a word that is none of these.
_KNOWN = ("ray", "orchestrator", "python", "mlflow", "make", "pip")
_FLAGS_OF_PYTHON = frozenset({"-u", "-O", "-B", "-I", "-E", "-s", "-q"})


@dataclass
class Started:
    """A ``ray start`` or ``ray symmetric-run``.

    Attributes:
        path: of the command.
        options: of it.
        command: with the variables that it sees.
        head: whether it starts a head.
    """

    path: KeyPath
    options: dict[str, str]
    command: Command
    head: bool

    @property
    def env(self) -> Mapping[str, str]:
        """Variables that it sees."""
        return self.command.env


@dataclass
class Found:
    """What commands do.

    Attributes:
        starts: of Ray.
        runs: experiments with their overrides, and the path of the command.
        servers: of MLflow, as option by name.
        all: every command.
    """

    starts: list[Started] = field(default_factory=list)
    runs: list[tuple[KeyPath, str, tuple[str, ...]]] = field(default_factory=list)
    servers: list[dict[str, str]] = field(default_factory=list)
    all: list[Command] = field(default_factory=list)


def examine(
    sheet: Sheet,
    path: KeyPath,
    text: str,
    *,
    env: Mapping[str, str] | None = None,
    inside: bool = False,
) -> Found:
    """Check a shell text and say what it does.

    Args:
        sheet: takes the problems.
        path: of the text.
        text: of any number of lines.
        env: variables set before it.
        inside: whether it runs in a container, whose ports are looked at elsewhere.
    """
    found = Found()
    try:
        found.all = list(commands(text, env))
    except ShellError as error:
        sheet.report(path, f"no shell reads this: {error}; close the quotes")
        return found
    for command in found.all:
        _command(sheet, path, command, found, inside=inside)
    return found


def _command(sheet: Sheet, path: KeyPath, command: Command, found: Found, *, inside: bool) -> None:
    name, words = command.name, command.words
    _secrets(sheet, path, command)
    _hidden(sheet, path, command)
    if name == "ray":
        _ray(sheet, path, command, found, inside=inside)
    elif name in ("python", "python3"):
        _python(sheet, path, words[1:], found)
    elif name == "orchestrator":
        _orchestrator(sheet, path, words[1:], found)
    elif name == "make":
        _make(sheet, path, words[1:])
    elif name in ("pip", "pip3", "uv"):
        check_pip(sheet, path, words[1:])
    elif name in ("apt", "apt-get"):
        check_apt(sheet, path, command)
    elif name == "mlflow":
        if words[1:2] == ("server",):
            found.servers.append(command.options())
            _mlflow(sheet, path, command)
    elif not _is_command(name):
        guess = nearest(name, _KNOWN) or nearest(name, COMMANDS)
        if guess is not None:
            sheet.report(path, f"{name!r} is no command here; did you mean {guess!r}?", name)


def check_mode(sheet: Sheet, path: KeyPath, name: str, value: str | None) -> None:
    """Report a way of authentication that is none."""
    if name == MODE and value is not None and value.lower() != "token" and "$" not in value:
        sheet.report(path, f"{MODE} is {value!r}, allowed is token", name)


def _is_command(name: str) -> bool:
    return name in COMMANDS or "$" in name or re.fullmatch(r"(python|pip)3\.\d+", name) is not None


def check_name(sheet: Sheet, path: KeyPath, name: str) -> None:
    """Report a variable whose name is nearly that of one that programs read."""
    if name in VARIABLES:
        return
    guess = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.88)
    if guess:
        sheet.report(path, f"nothing reads {name}; did you mean {guess[0]}?", name)


def _hidden(sheet: Sheet, path: KeyPath, command: Command) -> None:
    """Report variables that are set for a program and not exported to it."""
    if command.name not in _KNOWN and command.name != "python3":
        return
    for name in command.variables:
        if name in VARIABLES and name not in command.env:
            sheet.report(
                path,
                f"{name} is not exported, so `{command.name}` does not see it; write export "
                f"{name}=…",
                f"{name}=",
            )


def _secrets(sheet: Sheet, path: KeyPath, command: Command) -> None:
    every = {**command.variables, **command.env}
    for name in every:
        check_name(sheet, path, name)
    pairs = [*every.items()]
    pairs += [(name.lstrip("-"), value) for name, value in command.options().items()]
    for name, value in pairs:
        if value and "$" not in value and not value.startswith("/") and names_secret(name):
            sheet.report(
                path,
                f"{name} is given in the file, which others read; take it from a file or a "
                "variable that is set outside",
                name,
            )


@functools.cache
def _ray_start() -> tuple[dict[str, bool], frozenset[str]]:
    """Options of ``ray start``, each with whether it takes no value, and Ray's subcommands."""
    from ray.scripts.scripts import cli, start

    options = {
        name: bool(getattr(each, "is_flag", False))
        for each in start.params
        for name in (*each.opts, *each.secondary_opts)
    }
    return options, frozenset(cli.commands)


def start_options() -> dict[str, bool]:
    """Options of ``ray start``, each with whether it takes no value."""
    return _ray_start()[0]


def _ray(sheet: Sheet, path: KeyPath, command: Command, found: Found, *, inside: bool) -> None:
    options, verbs = _ray_start()
    verb = next((word for word in command.words[1:] if not word.startswith("-")), "")
    if verb not in verbs:
        if verb and "$" not in verb:
            hint = did_you_mean(verb, verbs, like="'ray {}'")
            sheet.report(path, f"Ray has no command {verb!r}{hint}", f"ray {verb}")
        return
    if verb not in ("start", "symmetric-run"):
        return
    known = {**options, **({"--min-nodes": False} if verb == "symmetric-run" else {})}
    given = command.options(frozenset(name for name, flag in known.items() if flag))
    for name, value in given.items():
        _start_option(sheet, path, verb, name, value, known)
    if command.env.get(MODE, "").lower() != "token":
        sheet.report(
            path,
            f"`ray {verb}` without a token lets anyone who reaches it run commands; write "
            f"{MODE}=token before it",
            command.env.get(MODE) or f"ray {verb}",
        )
    if verb == "symmetric-run":
        _symmetric(sheet, path, command, found, given)
        return
    head = "--head" in given
    if not head and "--address" not in given:
        sheet.report(path, "a worker needs the head's address; write --address=HOST:6379")
    if head and command.env.get(GRACE, "") and "$" not in command.env[GRACE]:
        grace(sheet, path, command.env[GRACE])
    elif head and GRACE not in command.env:
        grace(sheet, path, None)
    host = given.get("--dashboard-host", "127.0.0.1")
    if not inside and _everywhere(host):
        sheet.report(
            path,
            f"--dashboard-host={host} listens on every network of the machine; write the address "
            "that the nodes use, or 127.0.0.1",
            "--dashboard-host",
        )
    found.starts.append(Started(path, given, command, head))


def grace(sheet: Sheet, path: KeyPath, value: str | None) -> None:
    """Whether a head gives a job time to finish its step when it is to stop."""
    if value is None:
        sheet.report(
            path,
            "`ray job stop` kills a job after 3 s, in which few steps and commits fit; set "
            f"{GRACE}={GRACE_SECONDS} for the head",
        )
    elif not value.isdecimal() or int(value) < GRACE_SECONDS:
        sheet.report(
            path,
            f"{GRACE} is {value}; allowed are {GRACE_SECONDS} seconds and more, for a step and "
            "its commit",
            GRACE,
        )


def _everywhere(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host in ("*", "")


def _start_option(
    sheet: Sheet, path: KeyPath, verb: str, name: str, value: str, known: Mapping[str, bool]
) -> None:
    if name not in known:
        hint = did_you_mean(name, known, like="{}")
        sheet.report(path, f"`ray {verb}` has no option {name}{hint}", name)
        return
    message = option_problem(name, value)
    if message is not None:
        sheet.report(path, message, name)


_WHOLE = re.compile(r"--(?:num-[cg]pus|memory|object-store-memory|min-nodes|.*port)")


def option_problem(name: str, value: str) -> str | None:
    """What is wrong with the value of an option of ``ray start``; None for nothing."""
    if "$" in value:
        return None
    if name == "--resources":
        return resources_of(value)[1]
    if name == "--redis-password":
        return "--redis-password is of Ray's past; leave it out, a token guards the cluster"
    if _WHOLE.fullmatch(name):
        if not value.isdecimal():
            return f"{name} is {value!r}, allowed is a whole number"
        if name.endswith("port") and int(value) > 65535:
            return f"{name} is {value}, ports end at 65535"
    if name == "--address" and not re.fullmatch(r"\S+:\d{1,5}|auto", value):
        return f"--address is {value!r}, allowed is HOST:PORT"
    return None


def resources_of(text: str) -> tuple[dict[str, float], str | None]:
    """The resources that ``--resources`` declares, and what is wrong with its text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"--resources is no JSON ({error}); write '{{\"NPU\": 8}}'"
    if not isinstance(found, dict):
        return {}, f"--resources is {text}, allowed is a mapping such as '{{\"NPU\": 8}}'"
    for name, number in found.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or number < 0:
            return {}, f"--resources gives {name} the value {number!r}, allowed is a number"
        if name in ("CPU", "GPU"):
            return {}, f"--resources names {name}; write --num-{name.lower()}s instead"
        guess = nearest(name, ["NPU"])
        if name != "NPU" and (guess or name.upper() == "NPU"):
            return {}, f"--resources names {name!r}; did you mean 'NPU'?"
    return {name: float(number) for name, number in found.items()}, None


def _symmetric(
    sheet: Sheet,
    path: KeyPath,
    command: Command,
    found: Found,
    given: dict[str, str],
) -> None:
    if "--address" not in given:
        sheet.report(path, "`ray symmetric-run` needs --address=HOST:PORT of the head")
    if "--" not in command.words:
        sheet.report(path, "`ray symmetric-run` needs ' -- ' before the command of the head")
        return
    found.starts.append(Started(path, given, command, head=True))
    rest = command.words[command.words.index("--") + 1 :]
    if rest:
        inner = Command(rest, command.env, command.variables)
        _command(sheet, path, inner, found, inside=True)


def _python(sheet: Sheet, path: KeyPath, words: tuple[str, ...], found: Found) -> None:
    while words and words[0] in _FLAGS_OF_PYTHON:
        words = words[1:]
    if len(words) < 2 or words[0] != "-m":
        return
    module, rest = words[1], words[2:]
    top = module.partition(".")[0]
    if top in ("pip", "venv", "mlflow", "ray", "http"):
        if top == "pip":
            check_pip(sheet, path, rest)
        return
    ours = ("orchestrator", "detectors", "native")
    if top not in ours:
        if hint := did_you_mean(top, ours, like="{}"):
            sheet.report(path, f"there is no module {module!r}{hint}", module)
        return
    root = sheet.project.root
    if root is not None:
        base = root.joinpath(*module.split("."))
        if not is_there(base.with_suffix(".py")) and not is_there(base / "__main__.py"):
            siblings = [each.stem for each in base.parent.glob("*.py")]
            hint = did_you_mean(base.name, siblings, like=f"{module.rpartition('.')[0]}.{{}}")
            sheet.report(path, f"there is no module {module!r}{hint}", module)
            return
    if module == "orchestrator.run":
        _run(sheet, path, rest, found)


def _orchestrator(sheet: Sheet, path: KeyPath, words: tuple[str, ...], found: Found) -> None:
    if not words:
        return
    verbs = sheet.project.verbs
    if verbs and words[0] not in verbs and not words[0].startswith("-"):
        hint = did_you_mean(words[0], verbs, like="'orchestrator {}'")
        sheet.report(path, f"orchestrator has no command {words[0]!r}{hint}", words[0])
        return
    if words[0] in ("run", "submit"):
        _run(sheet, path, words[1:], found)


def _run(sheet: Sheet, path: KeyPath, words: tuple[str, ...], found: Found) -> None:
    """Check an experiment and its overrides as the command will take them."""
    plain = [word for word in words if not word.startswith("-")]
    if not plain or "$" in plain[0]:
        return
    name, *overrides = plain
    file = sheet.project.file(name)
    if file is None:
        return
    if not (is_there(file) and file.is_file()):
        root = sheet.project.root
        known = [] if root is None else (root / "experiments").glob("*.yaml")
        hint = did_you_mean(name, [f"experiments/{each.name}" for each in known], like="{}")
        sheet.report(path, f"there is no experiment {name}{hint}", name)
        return
    kept = tuple(word for word in overrides if "$" not in word)
    for word in kept:
        if holds_secret(word):
            sheet.report(path, "an override holds a key or a password; set it outside", name)
            return
    try:
        sheet.project.experiment(name, kept)
    except ConfigError as error:
        for line in str(error).splitlines()[1:-1]:
            key = re.match(r"override '([^=']+)=", line)
            sheet.report(path, f"{name} refuses this: {line}", key[1] if key else name)
        return
    found.runs.append((path, name, kept))


def _make(sheet: Sheet, path: KeyPath, words: tuple[str, ...]) -> None:
    targets = sheet.project.targets
    for word in words:
        if not targets or word.startswith("-") or "=" in word or "$" in word or word in targets:
            continue
        hint = did_you_mean(word, targets, like="'make {}'")
        sheet.report(path, f"the Makefile has no target {word!r}{hint}", f"make {word}")


def _mlflow(sheet: Sheet, path: KeyPath, command: Command) -> None:
    options = command.options()
    if options.get("--app-name") != "basic-auth":
        sheet.report(
            path,
            "MLflow answers anyone who reaches it; write --app-name basic-auth",
            "--app-name" if "--app-name" in options else "mlflow server",
        )
