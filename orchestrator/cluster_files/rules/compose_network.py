"""Whether the services of a compose file reach each other, and others reach them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from orchestrator.cluster_files.models.compose import Compose, ServiceFile
from orchestrator.cluster_files.rules.commands import Found, examine
from orchestrator.cluster_files.rules.starts import check_token
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Of a service that names none.
_DEFAULT = "default"
_ALLOWED, _ADMIN = "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_AUTH_ADMIN_USERNAME"


def check_network(
    sheet: Sheet, file: Compose, found: Mapping[str, Found], ports: Mapping[str, Mapping[str, str]]
) -> None:
    """Report what keeps services from each other.

    Args:
        sheet: takes the problems.
        file: the whole of it.
        found: what the command of each service says.
        ports: at which each listens, as far as its command says; what at each.
    """
    for name, service in file.services.items():
        path: KeyPath = ("services", name)
        at = (*path, "environment") if service.environment else path
        check_token(sheet, at, found[name], service.environment)
        _listens(sheet, path, service, found[name])
        _health(sheet, path, service, ports)
    _published(sheet, file)
    for name, other, at in _meetings(file, found):
        if not _networks(file.services[name]) & _networks(file.services[other]):
            sheet.report(
                at,
                f"{name} and {other} share no network, so {name} does not reach it; add one of "
                f"{', '.join(sorted(_networks(file.services[other])))}",
            )
    _mlflow(sheet, file, found)
    _circles(sheet, file)


def _networks(service: ServiceFile) -> set[str]:
    return set(service.networks) or {_DEFAULT}


def _meetings(file: Compose, found: Mapping[str, Found]) -> Iterator[tuple[str, str, KeyPath]]:
    """Who asks whom, and where the networks of the one who asks stand."""
    for name, service in file.services.items():
        if service.network_mode is not None:
            continue
        hosts = {_host(value) for value in service.environment.values()}
        hosts |= {
            start.options.get("--address", "").rpartition(":")[0] for start in found[name].starts
        }
        at: KeyPath = ("services", name, *(("networks",) if service.networks else ()))
        for other in file.services:
            if other in hosts and other != name:
                yield name, other, at


def _host(address: str) -> str | None:
    """Of an address; None where it is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _listens(sheet: Sheet, path: KeyPath, service: ServiceFile, found: Found) -> None:
    """Servers that others are to reach listen beyond their own container."""
    for server in found.servers:
        if server.get("--host", _LOOPBACK[0]) in _LOOPBACK:
            sheet.report(
                (*path, "command"),
                "MLflow listens in its own container alone; write --host 0.0.0.0",
                "--host" if "--host" in server else "mlflow server",
            )
    for start in found.starts:
        port = start.options.get("--dashboard-port", "8265")
        shown = start.options.get("--dashboard-host", _LOOPBACK[0])
        published = any(text.rpartition(":")[2] == port for text in service.ports)
        if start.head and published and shown in _LOOPBACK:
            sheet.report(
                start.path,
                f"port {port} is published, and the dashboard listens at {shown} of the container "
                "alone; write --dashboard-host=0.0.0.0",
                "--dashboard-host" if "--dashboard-host" in start.options else "ray start",
            )


def _health(
    sheet: Sheet, path: KeyPath, service: ServiceFile, ports: Mapping[str, Mapping[str, str]]
) -> None:
    """What a container is asked is there to answer."""
    if service.healthcheck is None or len(service.healthcheck.test) < 2:
        return
    at = (*path, "healthcheck", "test")
    kind, *words = service.healthcheck.test
    text = words[0] if kind == "CMD-SHELL" else shlex.join(words)
    examine(sheet, at, text.replace("$$", "$"), env=service.environment, inside=True)
    name = str(path[-1])
    for host, port in re.findall(r"([\w.-]+):(\d{2,5})(?=[/'\"\s]|$)", text):
        asked = name if host in _LOOPBACK else host
        known = ports.get(asked, {})
        if known and port not in known:
            sheet.report(
                at,
                f"{asked} does not listen at {port}; its ports are "
                + ", ".join(f"{number} ({what})" for number, what in known.items()),
                f":{port}",
            )


def _published(sheet: Sheet, file: Compose) -> None:
    """A port of the machine is that of one container."""
    taken: dict[str, str] = {}
    for name, service in file.services.items():
        for index, text in enumerate(service.ports):
            outside = text.rpartition(":")[0].rpartition(":")[2]
            if not outside.isdecimal():
                continue
            at = ("services", name, "ports", index)
            if service.deploy.replicas > 1:
                number = service.deploy.replicas
                sheet.report(at, f"{number} containers cannot share port {outside}")
            if taken.setdefault(outside, name) != name:
                sheet.report(at, f"port {outside} is that of service {taken[outside]!r}")


def _mlflow(sheet: Sheet, file: Compose, found: Mapping[str, Found]) -> None:
    """Clients of MLflow are let in by the name that they use, as the user that there is."""
    servers = [name for name, each in found.items() if each.servers]
    for server in servers:
        environment = file.services[server].environment
        hosts = [each.strip() for each in environment.get(_ALLOWED, "").split(",") if each.strip()]
        for name, service in file.services.items():
            address = service.environment.get("MLFLOW_TRACKING_URI", "")
            if _host(address) != server:
                continue
            parts = urlsplit(address)
            at = ("services", name, "environment", "MLFLOW_TRACKING_URI")
            if parts.scheme == "https":
                sheet.report(at, f"{server} speaks http alone; write http://{parts.netloc}")
            if hosts and "*" not in hosts and parts.netloc not in hosts:
                sheet.report(
                    ("services", server, "environment", _ALLOWED),
                    f"{name} asks for {parts.netloc}, which is not among these, and is refused",
                )
            user = service.environment.get("MLFLOW_TRACKING_USERNAME")
            known = environment.get(_ADMIN)
            if user is not None and known is not None and user != known:
                sheet.report(
                    ("services", name, "environment", "MLFLOW_TRACKING_USERNAME"),
                    f"{user} is nobody that {server} makes; {_ADMIN} is {known}",
                )


def _circles(sheet: Sheet, file: Compose) -> None:
    """Services that wait for each other never start."""
    for name, service in file.services.items():
        waiting, seen = list(service.depends_on), set[str]()
        while waiting:
            other = waiting.pop()
            if other == name:
                sheet.report(
                    ("services", name, "depends_on"), f"{name} waits for itself by way of others"
                )
                break
            if other not in seen and other in file.services:
                seen.add(other)
                waiting += file.services[other].depends_on
