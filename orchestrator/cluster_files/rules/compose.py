"""What must hold in a file of Docker Compose."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cluster_files.models.compose import Compose, ServiceFile
from orchestrator.cluster_files.project import is_there
from orchestrator.cluster_files.quantities import QuantityError, compose_bytes, gib
from orchestrator.cluster_files.rules.commands import (
    GRACE,
    GRACE_SECONDS,
    STORE_SHARE,
    Found,
    Started,
    check_mode,
    check_name,
    examine,
    grace,
)
from orchestrator.cluster_files.rules.compose_agreement import check_agreement
from orchestrator.cluster_files.rules.compose_network import check_network
from orchestrator.cluster_files.sheet import Sheet, texts_of
from orchestrator.config.problems import KeyPath
from orchestrator.config.yaml_loader import UnreadableError, read_text
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean

_SECRET_FILE = re.compile(r"/run/secrets/([\w.-]+)")
#: Folders of the machine that no container has to see as a whole.
_OF_MACHINE = ("", "/etc", "/root", "/home", "/proc", "/sys", "/dev", "/var", "/var/run", "/run")
_POWERS = ("ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF", "NET_ADMIN")
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def check(sheet: Sheet, file: Compose) -> None:
    """Report everything that is wrong with a compose file."""
    found: dict[str, Found] = {}
    for name, service in file.services.items():
        path: KeyPath = ("services", name)
        found[name] = _commands(sheet, path, service)
        _image(sheet, path, service)
        _references(sheet, path, service, file)
        _environment(sheet, path, service)
        _ports(sheet, path, service, _listening(found[name]))
        _permissions(sheet, path, service)
        _sizes(sheet, path, service, found[name])
    check_agreement(sheet, file, found)
    check_network(sheet, file, found, {name: _listening(each) for name, each in found.items()})


def _commands(sheet: Sheet, path: KeyPath, service: ServiceFile) -> Found:
    entry, command = service.entrypoint or [], service.command or []
    key = "command" if command else "entrypoint"
    if isinstance(command, str):
        return _examined(sheet, (*path, key), command, service)
    words = ([entry] if isinstance(entry, str) else list(entry)) + list(command)
    if not words:
        return Found()
    for index, word in enumerate(words[:2]):
        if re.fullmatch(r"-[a-z]*c", word) and len(words) > index + 1:
            offset = index + 1 - (len(words) - len(command))
            at = (*path, "command", offset) if offset >= 0 and command else (*path, key)
            return _examined(sheet, at, words[index + 1], service)
    return _examined(sheet, (*path, key), shlex.join(words), service)


def _examined(sheet: Sheet, path: KeyPath, text: str, service: ServiceFile) -> Found:
    plain = text.replace("$$", "$")
    for name in re.findall(r"(?<!\$)\$\{?([A-Za-z_]\w*)", text):
        if name in service.environment:
            sheet.report(
                path,
                f"${name} is expanded by Compose, before the container has it; write $${name}",
                f"${name}",
            )
    odd = re.search(r"(?<!\$)(?:\$\$)*(\$(?![$A-Za-z_{]).?)", text)
    if odd is not None:
        sheet.report(path, f"Compose takes no {odd[1]!r}; write ${odd[1]} for the shell", odd[1])
    return examine(sheet, path, plain, env=service.environment, inside=True)


def _image(sheet: Sheet, path: KeyPath, service: ServiceFile) -> None:
    if service.image is None and service.build is None:
        sheet.report(path, "required key is missing; allowed is image or build")
    if service.image is not None:
        message = sheet.project.image_problem(service.image)
        if message:
            sheet.report((*path, "image"), message)
    build = service.build
    if build is None:
        return
    context = Path(sheet.source).parent / build.context
    if not (is_there(context) and context.is_dir()):
        sheet.report((*path, "build", "context"), f"there is no folder {context}")
        return
    dockerfile = context / build.dockerfile
    if not (is_there(dockerfile) and dockerfile.is_file()):
        near = dockerfile.parent.glob("*") if is_there(dockerfile.parent) else ()
        hint = did_you_mean(dockerfile.name, [each.name for each in near], like="{}")
        sheet.report(
            (*path, "build", "dockerfile"),
            f"there is no file {build.dockerfile} in {context}{hint}",
        )
        return
    try:
        text = read_text(dockerfile, "Dockerfile")
    except UnreadableError as error:
        sheet.report((*path, "build", "dockerfile"), str(error.problem))
        return
    arguments = re.findall(r"(?im)^\s*ARG\s+(\w+)", text)
    for name in build.args:
        if name not in arguments:
            hint = did_you_mean(name, arguments, like="{}")
            sheet.report(
                (*path, "build", "args", name), f"{build.dockerfile} has no ARG {name}{hint}"
            )


def _known(sheet: Sheet, path: KeyPath, name: str, known: Mapping[str, Any], what: str) -> bool:
    if name in known:
        return True
    hint = did_you_mean(name, known)
    sheet.report(path, f"no {what} {name!r} in this file{hint}")
    return False


def _references(sheet: Sheet, path: KeyPath, service: ServiceFile, file: Compose) -> None:
    for key, known in (
        ("secrets", file.secrets),
        ("configs", file.configs),
        ("networks", {"default": None, **file.networks}),
    ):
        for index, name in enumerate(getattr(service, key)):
            _known(sheet, (*path, key, index), name, known, key.removesuffix("s"))
    for name, depends in service.depends_on.items():
        at = (*path, "depends_on", name)
        if not _known(sheet, at, name, file.services, "service"):
            continue
        if depends.condition == "service_healthy" and file.services[name].healthcheck is None:
            sheet.report(at, f"service {name!r} has no healthcheck, so it is never healthy")
    targets: set[str] = set()
    for index, text in enumerate(service.volumes):
        at = (*path, "volumes", index)
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not target:
            sheet.report(at, f"{text!r} is lost with the container; write NAME:/PATH")
            continue
        if not target.startswith("/"):
            sheet.report(at, f"{target!r} is no path of the container")
        if target in targets:
            sheet.report(at, f"{target} is mounted twice")
        targets.add(target)
        if mode not in ("", "ro", "rw", "z", "Z"):
            sheet.report(at, f"found {mode!r} behind the path, allowed are ro and rw")
        if source.startswith(("/var/run/docker.sock", "/run/docker.sock")):
            sheet.report(at, "who reaches the socket of Docker is root on the machine")
        if source.rstrip("/") in _OF_MACHINE:
            sheet.report(at, f"the container has the machine's own {source}; mount what it needs")
        here = Path(sheet.source).parent / source
        if source.startswith(".") and not is_there(here):
            sheet.report(at, f"there is no {here}")
        if not source.startswith((".", "/", "~", "$")):
            _known(sheet, at, source, file.volumes, "volume")
    _durations(sheet, path, service)
    if service.healthcheck is not None and service.healthcheck.test[0] not in (
        "CMD",
        "CMD-SHELL",
        "NONE",
    ):
        sheet.report((*path, "healthcheck", "test"), "the first word is CMD, CMD-SHELL or NONE")


def _durations(sheet: Sheet, path: KeyPath, service: ServiceFile) -> None:
    check = service.healthcheck
    given: dict[tuple[str, ...], str | None] = {("stop_grace_period",): service.stop_grace_period}
    for key in ("interval", "timeout", "start_period", "start_interval"):
        given["healthcheck", key] = None if check is None else getattr(check, key)
    for keys, text in given.items():
        if text is not None and _seconds(text) is None:
            sheet.report((*path, *keys), f"found {text!r}, allowed is a time such as 1m30s")


def _environment(sheet: Sheet, path: KeyPath, service: ServiceFile) -> None:
    for name, value in service.environment.items():
        at = (*path, "environment", name)
        if names_secret(name) and value and not value.startswith(("${", "/")):
            sheet.report(
                at, f"{name} is a secret in plain text; give it as a file by `secrets`", name
            )
        if re.search(r"\$\{[^}]*:?-[^}]+\}", value) and names_secret(name):
            sheet.report(at, f"{name} has a default, which everybody knows; write ${{{name}:?}}")
        check_name(sheet, at, name)
        check_mode(sheet, at, name, value)
        if name == GRACE and "$" not in value:
            grace(sheet, at, value)
        targets = [text.split(":")[1] for text in service.volumes if ":" in text]
        if (
            name.endswith(("_PATH", "_FILE"))
            and value.startswith("/")
            and not (
                value.startswith("/run/secrets/")
                or any(f"{value}/".startswith(f"{target.rstrip('/')}/") for target in targets)
            )
        ):
            sheet.report(at, f"nothing is mounted at {value}")
        if name == "POSTGRES_HOST_AUTH_METHOD" and value == "trust":
            sheet.report(at, "the database asks nobody for a password; remove this")
    services = sheet.tree.get("services") if isinstance(sheet.tree, dict) else None
    own = services.get(str(path[-1])) if isinstance(services, dict) else None
    for at, text in texts_of(own, path):
        for name in _SECRET_FILE.findall(text):
            if name not in service.secrets:
                hint = did_you_mean(name, service.secrets)
                sheet.report(
                    at, f"the service is given no secret {name!r}{hint}", f"/run/secrets/{name}"
                )


def _listening(found: Found) -> dict[str, str]:
    """Ports at which a service listens, as far as its command says; what at each."""
    ports = {server.get("--port", "5000"): "MLflow" for server in found.servers}
    for start in found.starts:
        if start.head:
            ports[start.options.get("--port", "6379")] = "control store"
            ports[start.options.get("--dashboard-port", "8265")] = "dashboard"
            ports[start.options.get("--ray-client-server-port", "10001")] = "client"
            ports[start.options.get("--metrics-export-port", "8080")] = "metrics"
    return ports


def _ports(sheet: Sheet, path: KeyPath, service: ServiceFile, listening: dict[str, str]) -> None:
    seen: dict[str, int] = {}
    for index, text in enumerate(service.ports):
        at = (*path, "ports", index)
        found = re.fullmatch(
            r"(?:(\[[0-9a-fA-F:]+\]|\d+(?:\.\d+){3}):)?(?:(\d+)(?:-\d+)?:)?(\d+)(?:-\d+)?(?:/(?:tcp|udp))?",
            text,
        )
        if found is None:
            sheet.report(at, f"{text!r} is no port; write 127.0.0.1:HOST:CONTAINER")
            continue
        address = (found[1] or "0.0.0.0").strip("[]")
        try:
            loopback = ipaddress.ip_address(address).is_loopback
        except ValueError:
            sheet.report(at, f"{address!r} is no address; write 127.0.0.1")
            continue
        if not loopback:
            sheet.report(
                at,
                f"port {found[3]} is open to every network of the machine, without encryption; "
                f"write 127.0.0.1:{found[2] or found[3]}:{found[3]} and use a tunnel",
            )
        if listening and found[3] not in listening:
            known = ", ".join(f"{number} ({what})" for number, what in listening.items())
            sheet.report(at, f"the service does not listen at {found[3]}; its ports are {known}")
        elif listening.get(found[3]) == "metrics":
            sheet.report(at, f"port {found[3]} is that of the metrics, which ask nobody; remove it")
        if any(number and int(number) > 65535 for number in (found[2], found[3])):
            sheet.report(at, "ports end at 65535")
        if found[2] and found[2] in seen:
            sheet.report(at, f"port {found[2]} is published twice")
        seen[found[2] or ""] = index


def _permissions(sheet: Sheet, path: KeyPath, service: ServiceFile) -> None:
    if service.privileged:
        sheet.report((*path, "privileged"), "a privileged container is root on the machine")
    if service.network_mode == "host":
        sheet.report(
            (*path, "network_mode"),
            "every port of the container is one of the machine; use a network of this file",
        )
    for index, name in enumerate(service.cap_add):
        if name.upper().removeprefix("CAP_") in _POWERS:
            sheet.report(
                (*path, "cap_add", index), f"with {name} the container rules the machine; remove it"
            )
    for index, option in enumerate(service.security_opt):
        if option.endswith(("unconfined", "disable")):
            sheet.report((*path, "security_opt", index), f"{option} takes a guard away; remove it")
    for name, limit in service.ulimits.items():
        if 0 <= limit.hard < limit.soft:
            sheet.report(
                (*path, "ulimits", name, "soft"),
                f"soft is {limit.soft}, hard {limit.hard}, and Docker starts nothing so",
            )
    if service.user in ("root", "0", "0:0"):
        sheet.report((*path, "user"), "the container runs as root; leave the image's own user")


def _size(sheet: Sheet, path: KeyPath, text: str | None) -> float | None:
    if text is None or text.startswith("$"):
        return None
    try:
        return compose_bytes(text)
    except QuantityError as error:
        sheet.report(path, str(error))
        return None


def _sizes(sheet: Sheet, path: KeyPath, service: ServiceFile, found: Found) -> None:
    resources = service.deploy.resources
    base: KeyPath = (*path, "deploy", "resources")
    memory = _size(sheet, (*base, "limits", "memory"), resources.limits.memory)
    reserved = _size(sheet, (*base, "reservations", "memory"), resources.reservations.memory)
    if memory is not None and memory < 64 << 20:
        sheet.report(
            (*base, "limits", "memory"), f"{resources.limits.memory} hold no program; write 1gb"
        )
    if memory is not None and reserved is not None and reserved > memory:
        sheet.report(
            (*base, "reservations", "memory"),
            f"{gib(reserved)} are reserved, the limit is {gib(memory)}",
        )
    cpus, least = resources.limits.cpus, resources.reservations.cpus
    if cpus is not None and least is not None and float(least) > float(cpus):
        sheet.report(
            (*base, "reservations", "cpus"), f"{least} CPUs are reserved, the limit is {cpus}"
        )
    shm = _size(sheet, (*path, "shm_size"), service.shm_size)
    if memory is not None and shm is not None and shm >= memory:
        sheet.report(
            (*path, "shm_size"), f"shm_size is {gib(shm)}, the limit of memory {gib(memory)}"
        )
    for start in found.starts:
        _start_sizes(sheet, path, service, start, shm, memory)


def _start_sizes(
    sheet: Sheet,
    path: KeyPath,
    service: ServiceFile,
    start: Started,
    shm: float | None,
    memory: float | None,
) -> None:
    given = start.options.get("--object-store-memory", "")
    store = float(given) if given.isdecimal() else (memory or 0.0) * STORE_SHARE
    if service.shm_size is None:
        sheet.report(
            path,
            "containers have 64 MiB of shared memory, and Ray's object store needs more; "
            "write shm_size",
        )
    elif shm is not None and shm < store:
        sheet.report(
            (*path, "shm_size"),
            f"shm_size is {gib(shm)}, Ray's object store takes {gib(store)}"
            + ("" if given else f", {STORE_SHARE:.0%} of the memory"),
        )
    if memory is None:
        sheet.report(path, "no limit of memory: Ray would take the machine's for its own")
    most = start.options.get("--memory", "")
    if memory is not None and most.isdecimal() and float(most) > memory:
        sheet.report(
            start.path, f"--memory is {gib(float(most))}, the limit {gib(memory)}", "--memory"
        )
    limit = service.deploy.resources.limits.cpus
    number = start.options.get("--num-cpus", "")
    if limit is not None and number.isdecimal() and float(number) > float(limit):
        sheet.report(start.path, f"--num-cpus is {number}, the limit {limit}", "--num-cpus")
    if limit is not None and not number:
        sheet.report(
            start.path,
            f"Ray counts the machine's CPUs, not the {limit} of the container; write --num-cpus",
            "ray start",
        )
    devices = _gpus(service)
    gpus = start.options.get("--num-gpus", "")
    if gpus.isdecimal() and devices is not None and float(gpus) != devices:
        sheet.report(start.path, f"--num-gpus is {gpus}, {devices} are reserved", "--num-gpus")
    seconds = _seconds(service.stop_grace_period)
    if seconds is None or seconds < GRACE_SECONDS:
        sheet.report(
            (*path, "stop_grace_period") if service.stop_grace_period else path,
            f"the container is killed {10 if seconds is None else seconds} s after it was asked to "
            f"end; write stop_grace_period: {GRACE_SECONDS}s or more, for a step and its commit",
        )


def _gpus(service: ServiceFile) -> int | None:
    """Devices that are reserved; None where that is all there are."""
    total = 0
    for device in service.deploy.resources.reservations.devices:
        if "gpu" not in device.capabilities:
            continue
        if not isinstance(device.count, int) and not device.device_ids:
            return None
        total += len(device.device_ids) or int(device.count or 0)
    return total


def _seconds(text: str | None) -> int | None:
    found = _DURATION.fullmatch(text or "")
    if found is None or not text:
        return None
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
