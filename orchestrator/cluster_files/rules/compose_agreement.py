"""What the services of a compose file say of each other: secrets, Ray, addresses, databases."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster_files.models.compose import Compose, ServiceFile
from orchestrator.cluster_files.rules.commands import Found, Started
from orchestrator.cluster_files.sheet import Nodes, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean, nearest

_DATABASE = "/var/lib/postgresql/data"


def check_agreement(sheet: Sheet, file: Compose, found: dict[str, Found]) -> None:
    """Report where parts of a compose file contradict each other.

    Args:
        sheet: takes the problems.
        file: the whole of it.
        found: what the command of each service says.
    """
    _secrets(sheet, file)
    _ray(sheet, file, found)
    _hosts(sheet, file, found)
    _database(sheet, file)
    _kept(sheet, file, found)


def _secrets(sheet: Sheet, file: Compose) -> None:
    used = {name for service in file.services.values() for name in service.secrets}
    for name, secret in file.secrets.items():
        at = ("secrets", name)
        if not (secret.file or secret.environment or secret.external):
            sheet.report(at, "nothing says where it comes from; write file or environment")
        if name not in used:
            sheet.report(at, f"secret {name!r} is given to no service")
    mounted = {text.partition(":")[0] for each in file.services.values() for text in each.volumes}
    _made(sheet, file)
    _ignored(sheet, file)
    joined = {name for service in file.services.values() for name in service.networks}
    for name in file.networks:
        if name not in joined and name != "default":
            sheet.report(("networks", name), f"network {name!r} is joined by no service")
    for name in file.volumes:
        if name not in mounted:
            sheet.report(("volumes", name), f"volume {name!r} is mounted nowhere")


def _made(sheet: Sheet, file: Compose) -> None:
    """Files of secrets are those that ``secrets.sh`` makes, where it stands beside."""
    maker = Path(sheet.source).parent / "docker" / "secrets.sh"
    found = None
    if maker.is_file():
        found = re.search(r"for name in ([\w ]+);", maker.read_text(encoding="utf-8"))
    names = found[1].split() if found else []
    for name, secret in file.secrets.items():
        place = Path(secret.file or "")
        if names and place.parent == Path("secrets") and place.name not in names:
            hint = did_you_mean(place.name, names)
            sheet.report(("secrets", name, "file"), f"secrets.sh makes no {place.name!r}{hint}")


def _ignored(sheet: Sheet, file: Compose) -> None:
    """Files of secrets lie where git does not look."""
    root = sheet.project.root
    if root is None or not (root / ".gitignore").is_file():
        return
    lines = (root / ".gitignore").read_text(encoding="utf-8").split()
    for name, secret in file.secrets.items():
        if secret.file is None or secret.file.startswith(("/", "~", "$")):
            continue
        place = (Path(sheet.source).parent / secret.file).absolute()
        try:
            inside = os.path.normpath(place.relative_to(root.absolute()))
        except ValueError:
            continue
        if not any(f"{inside}".startswith(line.strip("/")) for line in lines if line.strip("/")):
            sheet.report(
                ("secrets", name, "file"),
                f"{secret.file} is not in .gitignore, and would be committed; add its folder",
            )


def _ray(sheet: Sheet, file: Compose, found: dict[str, Found]) -> None:
    heads = [(name, start) for name, each in found.items() for start in each.starts if start.head]
    if len(heads) > 1:
        sheet.report(heads[1][1].path, f"a second head, beside {heads[0][0]!r}", "--head")
    for name, each in found.items():
        service = file.services[name]
        for start in each.starts:
            resources = {
                key: float(start.options[option])
                for key, option in (("CPU", "--num-cpus"), ("GPU", "--num-gpus"))
                if start.options.get(option, "").isdecimal()
            }
            sheet.nodes.append(Nodes(name, service.deploy.replicas, resources or None))
            if not heads or name == heads[0][0]:
                continue
            _joins(sheet, heads[0], start)
            head = file.services[heads[0][0]]
            variant = service.build.dockerfile if service.build else ""
            theirs = head.build.dockerfile if head.build else ""
            if service.image != head.image or (not service.image and variant != theirs):
                sheet.report(
                    ("services", name, "image"),
                    f"image is {service.image!r}, of {heads[0][0]!r} {head.image!r}; Ray, Python "
                    "and the project have to be the same on all nodes",
                )
                sheet.report(
                    ("services", heads[0][0], "image"),
                    f"image is {head.image!r}, of {name!r} {service.image!r}",
                )
            _same_storage(sheet, name, service, head)


def _same_storage(sheet: Sheet, name: str, service: ServiceFile, head: ServiceFile) -> None:
    theirs = dict(text.split(":")[:2] for text in head.volumes if ":" in text)
    for index, text in enumerate(service.volumes):
        source, _, target = text.partition(":")
        target = target.partition(":")[0]
        if source in theirs and theirs[source] != target:
            sheet.report(
                ("services", name, "volumes", index),
                f"{source} is at {target}, on the head at {theirs[source]}; runs name one path",
            )
    missing = [source for source in theirs if source not in "".join(service.volumes)]
    for source in missing:
        sheet.report(
            ("services", name, "volumes") if service.volumes else ("services", name),
            f"the head has {source} at {theirs[source]}, and this node lacks it",
        )
    for key, value in service.environment.items():
        if head.environment.get(key, value) != value:
            sheet.report(
                ("services", name, "environment", key),
                f"{key} is {value!r}, on the head {head.environment[key]!r}",
            )


def _joins(sheet: Sheet, head: tuple[str, Started], start: Started) -> None:
    host, _, port = start.options.get("--address", "").rpartition(":")
    wanted = head[1].options.get("--port", "6379")
    if start.head or "$" in host or not host:
        return
    if host != head[0] or port != wanted:
        sheet.report(
            start.path,
            f"--address is {host}:{port}, the head is {head[0]}:{wanted}",
            f"{host}:{port}",
        )
        sheet.report(
            head[1].path,
            f"the head is {head[0]}:{wanted}, workers look for {host}:{port}",
            "--port",
        )


def _hosts(sheet: Sheet, file: Compose, found: dict[str, Found]) -> None:
    """Addresses in variables name services of the file, at ports that these listen at."""
    ports = {
        name: server.get("--port", "5000")
        for name, each in found.items()
        for server in each.servers
    }
    for name, service in file.services.items():
        for key, value in service.environment.items():
            try:
                parts = urlsplit(value)
                host, port = parts.hostname, parts.port
            except ValueError as error:
                sheet.report(("services", name, "environment", key), f"no address: {error}")
                continue
            if parts.scheme == "" or not host or "$" in host:
                continue
            at = ("services", name, "environment", key)
            if host not in file.services and "." not in host:
                hint = did_you_mean(host, file.services)
                sheet.report(at, f"{key} names {host!r}, which is no service of this file{hint}")
            elif host in ports and str(port or 80) != ports[host]:
                sheet.report(at, f"{key} names port {port}, {host} listens at {ports[host]}")
                server = ("services", host, "command")
                sheet.report(server, f"listens at {ports[host]}, {key} names {port}", "--port")


def _kept(sheet: Sheet, file: Compose, found: dict[str, Found]) -> None:
    """What the database and MLflow write is on volumes."""
    for name, service in file.services.items():
        targets = [text.split(":")[1] for text in service.volumes if ":" in text]
        at: KeyPath = ("services", name, "volumes") if targets else ("services", name)
        base = (service.image or "").partition(":")[0].rpartition("/")[2]
        if base == "postgres" and not {_DATABASE, _DATABASE.rpartition("/")[0]} & set(targets):
            sheet.report(
                at, f"the database is lost with the container; mount a volume at {_DATABASE}"
            )
        version = re.match(r"\d+", (service.image or "").rpartition(":")[2])
        if base == "postgres" and version and int(version[0]) >= 18 and _DATABASE in targets:
            sheet.report(
                at,
                f"PostgreSQL {version[0]} keeps its data in a folder of its version's name and "
                f"refuses a volume there; mount it at {_DATABASE.rpartition('/')[0]}",
                _DATABASE,
            )
        for server in found[name].servers:
            place = server.get("--artifacts-destination", "")
            if place.startswith("/") and place not in targets:
                sheet.report(at, f"artifacts go to {place}, where nothing is mounted")
                sheet.report(("services", name, "command"), f"nothing is mounted at {place}", place)
        for index, option in enumerate(service.security_opt):
            guess = nearest(option, ["no-new-privileges:true"])
            if guess is not None and option != guess and option != "no-new-privileges":
                sheet.report(
                    ("services", name, "security_opt", index),
                    f"there is no option {option!r}; did you mean {guess!r}?",
                )


def _database(sheet: Sheet, file: Compose) -> None:
    """The database of MLflow is asked as it was made."""
    for name, service in file.services.items():
        if "POSTGRES_USER" not in service.environment:
            continue
        wanted = service.environment
        for other, client in file.services.items():
            for key, value in client.environment.items():
                parts = urlsplit(value)
                if not parts.scheme.startswith("postgresql") or parts.hostname != name:
                    continue
                at = ("services", other, "environment", key)
                asked = {"POSTGRES_USER": parts.username, "POSTGRES_DB": parts.path.strip("/")}
                for variable, given in asked.items():
                    made = wanted.get(variable, wanted["POSTGRES_USER"])
                    if given != made:
                        sheet.report(at, f"{given} is asked for, {variable} is {made}")
                        sheet.report(
                            ("services", name, "environment", variable),
                            f"{variable} is {made}, {other} asks for {given}",
                        )
