"""What every launcher file in clusters/ must satisfy beyond Ray's schema, which checks types only.

Ray's schema takes a cluster that anyone may command, workers that never start and a project that
arrives without its data room; each rule here names one such mistake.
"""

from __future__ import annotations

import copy
import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import Any

from ray.autoscaler._private.util import prepare_config, validate_config

Config = dict[str, Any]


def problems_of(config: Config, pins: dict[str, str]) -> list[str]:
    """Everything wrong with a launcher file; ``pins`` are the versions in constraints.txt."""
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:  # Ray raises its own, jsonschema's and click's
        return [f"refused by Ray: {error}"]
    if config["provider"]["type"] != "local":
        return [f"provider.type: no rules for {config['provider']['type']!r} yet"]
    rules = (_addresses, _start_commands, _workers, _token_file, _versions, _mounts)
    return [problem for rule in rules for problem in rule(config, pins)]


def _addresses(config: Config, _: dict[str, str]) -> Iterator[str]:
    provider = config["provider"]
    every = [provider["head_ip"], *provider["worker_ips"]]
    for address in every:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield f"provider: {address!r} is not an address"
    if len(set(every)) != len(every):
        yield "provider: an address is given twice"


def _start_commands(config: Config, _: dict[str, str]) -> Iterator[str]:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = config.get(key, [])
        starts = [command for command in commands if "ray start" in command]
        if commands and "ray stop" not in commands[0]:
            yield f"{key}: a second `ray up` fails without `ray stop` first"
        if len(starts) != 1 and (key.startswith("head") or config["provider"]["worker_ips"]):
            yield f"{key}: {len(starts)} commands say `ray start`"
        for command in starts:
            if "RAY_AUTH_MODE=token" not in command.split("ray start")[0]:
                yield f"{key}: starts without a token"
    head = options(_start(config, "head_start_ray_commands"))
    head_ip = config["provider"]["head_ip"]
    for option in ("--node-ip-address", "--dashboard-host"):
        if head.get(option) != head_ip:
            yield f"head_start_ray_commands: {option} is {head.get(option)}, head_ip is {head_ip}"


def _workers(config: Config, _: dict[str, str]) -> Iterator[str]:
    if not config["provider"]["worker_ips"]:
        return
    head = _start(config, "head_start_ray_commands")
    if "--autoscaling-config" not in options(head):
        yield "head_start_ray_commands: without --autoscaling-config no worker is started"
    if "RAY_enable_autoscaler_v2=0" not in head.split("ray start")[0]:
        yield "head_start_ray_commands: the second autoscaler starts no worker by address"
    wanted = f"$RAY_HEAD_IP:{options(head).get('--port')}"
    found = options(_start(config, "worker_start_ray_commands")).get("--address")
    if found != wanted:
        yield f"worker_start_ray_commands: --address is {found}, the head listens at {wanted}"


def _token_file(config: Config, _: dict[str, str]) -> Iterator[str]:
    setup = config.get("setup_commands", [])
    token = "~/.ray/auth_token"
    made_here = any("ray get-auth-token --generate" in command for command in setup)
    if config["provider"]["worker_ips"] and config.get("file_mounts", {}).get(token) != token:
        yield "file_mounts: workers get no token"
    if not config["provider"]["worker_ips"] and not made_here:
        yield "setup_commands: no token is made"
    if not any(f"chmod 600 {token}" in command for command in setup):
        yield "setup_commands: the token stays readable for everyone"
    if re.search(r"RAY_AUTH_TOKEN=", str(config)):
        yield "a token stands in the file"


def _versions(config: Config, pins: dict[str, str]) -> Iterator[str]:
    text = str(config)
    if not any("make install" in command for command in config.get("setup_commands", [])):
        yield "setup_commands: nodes do not install what constraints.txt pins"
    for found in re.findall(r"\bray(?:\[[\w,]*\])?==([\w.]+)|rayproject/ray:([\w.]+)", text):
        version = "".join(found)
        if version != pins["ray"]:
            yield f"ray {version} is named, constraints.txt pins {pins['ray']}"


def _mounts(config: Config, _: dict[str, str]) -> Iterator[str]:
    if "." not in config.get("file_mounts", {}).values():
        return
    excludes = config.get("rsync_exclude", [])
    if "/.git" not in excludes or ".gitignore" not in config.get("rsync_filter", []):
        yield "file_mounts: the whole history, data and runs would be copied to every node"
    # rsync matches a name without a slash in front at any depth: `data` is orchestrator/data too.
    for pattern in excludes:
        if not pattern.startswith("/"):
            yield f"rsync_exclude: {pattern!r} is not anchored"


def options(command: str) -> dict[str, str]:
    """The ``--option=value`` of the ``ray start`` in a shell command."""
    words = shlex.split(command.partition("ray start")[2])
    return dict(word.split("=", 1) if "=" in word else (word, "") for word in words)


def _start(config: Config, key: str) -> str:
    return next((c for c in config.get(key, []) if "ray start" in c), "")
