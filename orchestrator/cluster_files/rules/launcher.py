"""What must hold in a file of Ray's cluster launcher.

Ray's own schema checks types alone: it takes a cluster that anyone may command, workers that never
start and a project that arrives without its data room.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from orchestrator.cluster_files.models.launcher import (
    AwsLauncher,
    GcpLauncher,
    Launcher,
    LocalLauncher,
)
from orchestrator.cluster_files.project import is_there
from orchestrator.cluster_files.rules.commands import Found, Started, examine
from orchestrator.cluster_files.rules.launcher_clouds import check_cloud
from orchestrator.cluster_files.sheet import Nodes, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import nearest

HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
_TOKEN = "~/.ray/auth_token"
_BOOTSTRAP = "~/ray_bootstrap_config.yaml"


def check(sheet: Sheet, file: LocalLauncher | AwsLauncher | GcpLauncher) -> None:
    """Report everything that is wrong with a launcher file."""
    found = {
        key: [
            (index, examine(sheet, (key, index), text)) for index, text in enumerate(commands or [])
        ]
        for key, commands in _commands(file)
    }
    has_workers = bool(file.provider.worker_ips) if isinstance(file, LocalLauncher) else True
    _start_commands(sheet, file, found, has_workers)
    _token_file(sheet, file, has_workers)
    _mounts(sheet, file)
    if not any("make install" in text for text in file.setup_commands):
        sheet.report(
            ("setup_commands",),
            "nodes do not install what constraints.txt pins; write `make install` in the "
            "project's folder",
        )
    _environments(sheet, file)
    _images(sheet, file)
    key = file.auth.ssh_private_key
    if key is not None and key.endswith(".pub"):
        sheet.report(("auth", "ssh_private_key"), f"{key} is the public half; write the other")
    if isinstance(file, LocalLauncher):
        _addresses(sheet, file)
        _local_start(sheet, file, _head_start(found))
    else:
        check_cloud(sheet, file)


def _commands(file: Launcher) -> Iterator[tuple[str, list[str]]]:
    for key in (
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        HEAD,
        WORKER,
    ):
        yield key, getattr(file, key)


def _head_start(found: dict[str, list[tuple[int, Found]]]) -> Started | None:
    return next((start for _, each in found[HEAD] for start in each.starts), None)


def _start_commands(
    sheet: Sheet,
    file: Launcher,
    found: dict[str, list[tuple[int, Found]]],
    has_workers: bool,
) -> None:
    for key in (HEAD, WORKER):
        if not getattr(file, key) and not (key == WORKER and has_workers):
            continue
        everything = [command for _, each in found[key] for command in each.all]
        starts = [start for _, each in found[key] for start in each.starts]
        words = [each.words[:2] for each in everything]
        if ("ray", "start") in words and ("ray", "stop") not in words[
            : words.index(("ray", "start"))
        ]:
            sheet.report((key,), "a second `ray up` fails without `ray stop` first")
        if len(starts) != 1:
            sheet.report(
                (key,),
                f"{len(starts)} commands say `ray start`, one is needed"
                if getattr(file, key)
                else "required key is missing: no worker would join",
            )
    head = _head_start(found)
    workers = [start for _, each in found[WORKER] for start in each.starts]
    if head is None or not has_workers:
        return
    if not head.head:
        sheet.report(head.path, "the head is started without --head", "ray start")
    if "--autoscaling-config" not in head.options:
        sheet.report(
            head.path,
            "without --autoscaling-config=~/ray_bootstrap_config.yaml no worker is started",
            "ray start",
        )
    elif head.options["--autoscaling-config"] != _BOOTSTRAP:
        sheet.report(
            head.path,
            f"`ray up` puts what the head reads into {_BOOTSTRAP}, and --autoscaling-config is "
            f"{head.options['--autoscaling-config']}",
            "--autoscaling-config",
        )
    for worker in workers:
        wanted = f"$RAY_HEAD_IP:{head.options.get('--port', '6379')}"
        asked = re.sub(r"\$\{(\w+)\}", r"$\1", worker.options.get("--address", ""))
        if asked != wanted:
            sheet.report(
                worker.path,
                f"--address is {worker.options.get('--address')}, the head listens at {wanted}",
                "--address",
            )
            sheet.report(
                head.path,
                f"the head listens at {wanted}, workers look for {worker.options.get('--address')}",
                "--port",
            )
        if "--head" in worker.options:
            sheet.report(worker.path, "a worker is started with --head", "--head")


def _token_file(sheet: Sheet, file: Launcher, has_workers: bool) -> None:
    setup = file.setup_commands
    made = any("ray get-auth-token --generate" in text for text in setup)
    if has_workers and file.file_mounts.get(_TOKEN) != _TOKEN:
        near = _TOKEN if _TOKEN in file.file_mounts else nearest(_TOKEN, file.file_mounts)
        sheet.report(
            ("file_mounts",) if near is None else ("file_mounts", near),
            f"workers get no token; write {_TOKEN}: {_TOKEN}",
        )
    if not has_workers and not made:
        index = next((n for n, text in enumerate(setup) if "auth-token" in text), None)
        sheet.report(
            ("setup_commands",) if index is None else ("setup_commands", index),
            "no token is made; write `ray get-auth-token --generate`",
        )
    if not any(f"chmod 600 {_TOKEN}" in text for text in setup):
        index = next((n for n, text in enumerate(setup) if _TOKEN in text), None)
        sheet.report(
            ("setup_commands",) if index is None else ("setup_commands", index),
            f"the token stays readable for everyone; write `chmod 600 {_TOKEN}`",
        )


def _mounts(sheet: Sheet, file: Launcher) -> None:
    for target, source in file.file_mounts.items():
        path: KeyPath = ("file_mounts", target)
        if not target.startswith(("/", "~/")):
            sheet.report(path, f"{target!r} is relative; write the path on the node in full")
        here = sheet.project.file(source)
        if not source.startswith(("/", "~")) and here is not None and not is_there(here):
            sheet.report(path, f"{source} does not exist in the project's folder")
    if not {".", "./"} & set(file.file_mounts.values()):
        if any("cd ~/" in text and "make install" in text for text in file.setup_commands) and (
            file.file_mounts
        ):
            sheet.report(("file_mounts",), "the project itself is not copied; write FOLDER: .")
        return
    target = next(name for name, source in file.file_mounts.items() if source in (".", "./"))
    for index, text in enumerate(file.setup_commands):
        if "make install" in text and f"cd {target}" not in text:
            sheet.report(
                ("setup_commands", index),
                f"the project is copied to {target}, and another folder is installed",
            )
    if "/.git" not in file.rsync_exclude:
        sheet.report(
            ("rsync_exclude",), "the whole history would be copied to every node; write /.git"
        )
    if ".gitignore" not in file.rsync_filter:
        near = nearest(".gitignore", file.rsync_filter)
        sheet.report(
            ("rsync_filter", *(() if near is None else (file.rsync_filter.index(near),))),
            "data and runs, all that git ignores, would be copied to every node; write .gitignore",
        )
    # rsync matches a name without a slash in front at any depth: `data` is orchestrator/data too.
    for index, pattern in enumerate(file.rsync_exclude):
        if not pattern.startswith("/"):
            sheet.report(
                ("rsync_exclude", index),
                f"{pattern!r} is not anchored and leaves out folders of that name at any depth; "
                f"write /{pattern}",
            )


def _environments(sheet: Sheet, file: Launcher) -> None:
    """The environment that is installed is the one that is used."""
    made = re.search(r"cd (~/\S+) && make install", "\n".join(file.setup_commands))
    if made is None:
        return
    for key, commands in _commands(file):
        for index, text in enumerate(commands):
            for used in re.findall(r"((?:~|\$HOME|\$\{HOME\})/[^\s'\":]*)/\.venv/bin", text):
                if re.sub(r"^\$\{?HOME\}?", "~", used) != made[1]:
                    sheet.report(
                        (key, index),
                        f"{used}/.venv is used, and the project is installed in {made[1]}",
                        used,
                    )


def _images(sheet: Sheet, file: Launcher) -> None:
    if file.docker is None:
        return
    names = ("image", "head_image", "worker_image")
    given = {name: getattr(file.docker, name) for name in names if getattr(file.docker, name)}
    for name, image in given.items():
        message = sheet.project.image_problem(image)
        if message:
            sheet.report(("docker", name), message)
    tags = {_python_and_ray(image) for image in given.values()}
    if len(tags) > 1:
        last = list(given)[-1]
        sheet.report(("docker", last), f"head and workers have different images: {given}")


def _python_and_ray(image: str) -> str:
    return image.rpartition(":")[2].removesuffix("-gpu").removesuffix("-cpu")


def _addresses(sheet: Sheet, file: LocalLauncher) -> None:
    provider = file.provider
    every: list[tuple[KeyPath, str]] = [
        (("provider", "head_ip"), provider.head_ip),
        *(
            (("provider", "worker_ips", index), address)
            for index, address in enumerate(provider.worker_ips)
        ),
    ]
    seen: dict[str, KeyPath] = {}
    for path, address in every:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            sheet.report(path, f"{address!r} is not an address; write one such as 192.168.1.10")
        if address in seen:
            sheet.report(path, f"{address} is given twice")
        seen[address] = path
    least, most = file.min_workers, file.max_workers
    count = len(provider.worker_ips)
    if most is not None and most > count:
        sheet.report(("max_workers",), f"max_workers is {most}, worker_ips names {count}")
    if least is not None and least > (count if most is None else min(most, count)):
        sheet.report(
            ("min_workers",),
            f"min_workers is {least}, and there are at most {min(most or count, count)}",
        )


def _local_start(sheet: Sheet, file: LocalLauncher, head: Started | None) -> None:
    if head is None:
        return
    head_ip = file.provider.head_ip
    for option in ("--node-ip-address", "--dashboard-host"):
        found = head.options.get(option)
        if found != head_ip:
            sheet.report(("provider", "head_ip"), f"head_ip is {head_ip}, {option} {found}")
            sheet.report(
                head.path,
                f"{option} is {found}, provider.head_ip is {head_ip}",
                option if found else "ray start",
            )
    if file.provider.worker_ips and head.env.get("RAY_enable_autoscaler_v2") != "0":
        sheet.report(
            head.path,
            "the second autoscaler starts no worker by address; write RAY_enable_autoscaler_v2=0",
            "RAY_enable_autoscaler_v2" if "RAY_enable_autoscaler_v2" in head.env else "ray start",
        )
    number = head.options.get("--num-cpus"), head.options.get("--num-gpus")
    described = any(number)
    resources = {
        name: float(value)
        for name, value in zip(("CPU", "GPU"), number, strict=True)
        if value and value.isdecimal()
    }
    sheet.nodes.append(Nodes("head", 1, resources if described else None))
    if file.provider.worker_ips:
        sheet.nodes.append(Nodes("workers", len(file.provider.worker_ips), None))
