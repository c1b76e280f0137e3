"""What must hold in batch scripts of Slurm."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping

from orchestrator.cluster_files.rules.commands import GRACE_SECONDS, Found, examine
from orchestrator.cluster_files.rules.starts import check_starts
from orchestrator.cluster_files.sheet import Nodes, Run, Sheet
from orchestrator.cluster_files.shell import Command

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


def check_batch(sheet: Sheet) -> None:
    """Report everything that is wrong with a batch script of Slurm."""
    options, lines = _batch_options(sheet)
    found_commands = examine(sheet, (), "\n".join(sheet.lines))
    # Of `2-4`, what the job is sure to get.
    count = re.match(r"\d+", options.get("--nodes", ""))
    nodes = int(count[0]) if count else 1
    if count is None and "--nodes" in options:
        message = f"--nodes is {options['--nodes']!r}, allowed is a number or a range such as 2-4"
        sheet.report((), message, lines["--nodes"])
    if options.get("--ntasks-per-node", "1") != "1":
        message = "Ray is started once on each node; write 1"
        sheet.report((), message, lines["--ntasks-per-node"])
    tasks = options.get("--ntasks", "")
    if tasks.isdecimal() and int(tasks) != nodes:
        message = f"Ray is started once on each node; write --ntasks={nodes}, or leave it out"
        sheet.report((), message, lines["--ntasks"])
    each, given = {}, {}
    for key, option, found in _batch_resources(options):
        number = found.rpartition(":")[2]
        if key not in each and number.isdecimal():
            each[key] = int(number) / (nodes if option == "--gpus" else 1)
            given[key] = lines[option]
    kinds = Nodes("nodes", nodes, each or None)
    sheet.nodes.append(kinds)
    check_starts(sheet, (), found_commands, nodes, (), lines.get("--nodes", ""))
    _time_and_memory(sheet, options, lines)
    _ending(sheet, options, lines, found_commands)
    for start in found_commands.starts:
        if "--cpus-per-task" in options and _lacks_cpus(start.command):
            sheet.report(
                (),
                "a step does not inherit --cpus-per-task (Slurm 22.05 and newer), and Ray would "
                'share one CPU; write export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
                "ray start" if start.command.words[1] == "start" else "srun",
            )
        for key, option in (("CPU", "--num-cpus"), ("GPU", "--num-gpus")):
            told = start.options.get(option, "")
            if told.isdecimal() and float(told) != each.get(key, 0.0):
                has = f"a node gets {each.get(key, 0):g}"
                sheet.report((), f"{option} is {told}, {has}", option)
                sheet.report((), f"{has}, {option} is {told}", given.get(key, ""))
    sheet.runs += [Run((), name, kept, (kinds,)) for _, name, kept in found_commands.runs]


def _batch_options(sheet: Sheet) -> tuple[dict[str, str], dict[str, str]]:
    """Values of a batch script's options, and the lines that give them, by the long names."""
    options: dict[str, str] = {}
    lines: dict[str, str] = {}
    begun = False
    if not sheet.lines or not sheet.lines[0].startswith("#!"):
        sheet.report((), "sbatch takes no script without a first line such as #!/bin/bash")
    for line in sheet.lines:
        begun = begun or line.strip()[:1] not in ("", "#")
        if line.startswith(("#SBTACH", "#SBACTH", "# SBATCH", "#sbatch")):
            sheet.report((), "Slurm passes over this line; write #SBATCH", line)
        if re.match(r"#SBATCH\s", line) is None:
            continue
        if begun:
            sheet.report((), "Slurm reads no options behind the first command; move it up", line)
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
            yield "GPU", "--gres", each if each.rpartition(":")[2].isdecimal() else "1"


def _lacks_cpus(command: Command) -> bool:
    """Whether a step is started without a word on its CPUs."""
    if command.launcher[:1] != ("srun",) or "SRUN_CPUS_PER_TASK" in command.env:
        return False
    return not any(re.match(r"-c|--cpus-per-task", word) for word in command.launcher)


_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_ENDLESS = ("UNLIMITED", "INFINITE", "infinite", "unlimited")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_POWERS = {"K": 1, "": 2, "M": 2, "G": 3, "T": 4}


def _time_and_memory(sheet: Sheet, options: Mapping[str, str], lines: Mapping[str, str]) -> None:
    """Times and sizes whose units are others than they look."""
    time = options.get("--time", "")
    found = _TIME.fullmatch(time)
    if time and found is None and time not in _ENDLESS and "$" not in time:
        allowed = "allowed is minutes, HH:MM:SS, or DAYS-HH:MM:SS"
        sheet.report((), f"--time is {time!r}; {allowed}", lines["--time"])
    elif found and found[3] and not found[1] and not found[4] and int(found[2]) < 60:
        sheet.report(
            (),
            f"--time={time} is {int(found[2])} minutes; write {time}:00 for hours, or "
            f"00:{found[2]}:{found[3]}",
            lines["--time"],
        )
    memory = options.get("--mem", "")
    size = _MEMORY.fullmatch(memory)
    if memory and size is None and "$" not in memory:
        sheet.report((), f"--mem is {memory!r}; allowed is a size such as 128G", lines["--mem"])
    elif size and 0 < int(size[1]) * 1024 ** _POWERS[size[2].upper()] < 1 << 30:
        sheet.report(
            (),
            f"--mem={memory} is {size[1]} {size[2].upper() or 'M'}B; is a unit missing? Write "
            f"--mem={size[1]}G",
            lines["--mem"],
        )


def _ending(
    sheet: Sheet, options: Mapping[str, str], lines: Mapping[str, str], found: Found
) -> None:
    """Whether the driver is asked to end, in time, and the job is put back into the queue."""
    if "--no-requeue" in options and any(
        each.words[:2] == ("scontrol", "requeue") for each in found.all
    ):
        sheet.report((), "`scontrol requeue` is refused; write --requeue", lines["--no-requeue"])
    signal = options.get("--signal")
    if signal is None:
        return
    warned = re.fullmatch(r"(B:)?(?:SIG)?([A-Z]+\d?)@(\d+)", signal)
    if warned is None or int(warned[3]) < GRACE_SECONDS:
        sheet.report(
            (),
            f"--signal is {signal}, allowed is B:TERM@{GRACE_SECONDS} and more, in which a step "
            "and its commit fit",
            lines["--signal"],
        )
        return
    name = warned[2]
    if any(each.launcher[:1] == ("srun",) and _is_driver(each) for each in found.all):
        return
    if warned[1] is None:
        sheet.report(
            (),
            f"without B: the steps are asked to end, which are Ray, and not this script, which "
            f"runs the driver; write --signal=B:{name}@{warned[3]}",
            lines["--signal"],
        )
    elif not any(
        each.name == "trap" and {name, f"SIG{name}"}.intersection(each.words[2:])
        for each in found.all
    ):
        sheet.report(
            (),
            f"nothing here traps {name}, so the script ends and the driver is killed; write trap "
            f"'kill -TERM \"$driver\"' {name}",
            lines["--signal"],
        )


def _is_driver(command: Command) -> bool:
    return command.name == "orchestrator" or "orchestrator.run" in command.words
