"""The launcher files pass Ray's own validation and our rules; damaged copies do not."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster_rules
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = sorted((ROOT / "clusters").glob("*.yaml"))


def load(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "clusters" / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_there_is_a_local_and_an_on_premise_cluster() -> None:
    assert {path.name for path in CLUSTERS} >= {"local.yaml", "onprem.yaml"}


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_no_problem_in(path: Path, pins: dict[str, str]) -> None:
    assert cluster_rules.problems_of(load(path.name), pins) == []


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_only_a_local_cluster_listens_on_loopback_and_none_on_every_interface(path: Path) -> None:
    config = load(path.name)
    text = path.read_text()
    assert "0.0.0.0" not in text
    assert config["provider"]["head_ip"].startswith("127.") == (path.name == "local.yaml")


def edit(key: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """Replace in every string of a list of commands, as a slip of the pen would."""

    def apply(config: dict[str, Any]) -> None:
        changed = [command.replace(old, new) for command in config[key]]
        assert changed != config[key]
        config[key] = changed

    return apply


def put(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return apply


def drop(path: str) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        *parents, last = path.split("|")
        for parent in parents:
            config = config[parent]
        del config[last]

    return apply


HEAD, WORKER, SETUP = "head_start_ray_commands", "worker_start_ray_commands", "setup_commands"
MISTAKES = {
    "misspelt key": (put("idle_timeout_minuts", 5), "refused by Ray"),
    "misspelt auth key": (put("auth/ssh_usr", "ray"), "refused by Ray"),
    "no provider": (drop("provider"), "refused by Ray"),
    "no head": (drop("provider|head_ip"), "refused by Ray"),
    "workers as a string": (put("provider/worker_ips", "192.168.1.11"), "refused by Ray"),
    "commands as a string": (put("setup_commands", "make install"), "refused by Ray"),
    "key of another provider": (put("worker_nodes", {"a": 1}), "refused by Ray"),
    "host name with a typo": (put("provider/worker_ips", ["192.168.1"]), "not an address"),
    "head among the workers": (put("provider/worker_ips", ["192.168.1.10"]), "given twice"),
    "open head": (edit(HEAD, "RAY_AUTH_MODE=token ", ""), "starts without a token"),
    "open worker": (edit(WORKER, "RAY_AUTH_MODE=token ", ""), "starts without a token"),
    "auth switched off": (edit(HEAD, "MODE=token", "MODE=disabled"), "starts without a token"),
    "dashboard for everyone": (
        edit(HEAD, "--dashboard-host=192.168.1.10", "--dashboard-host=0.0.0.0"),
        "--dashboard-host is 0.0.0.0",
    ),
    "head moved in one place": (put("provider/head_ip", "192.168.1.20"), "head_ip is 192.168.1.20"),
    "other port": (edit(WORKER, ":6379", ":6380"), "the head listens at"),
    "no autoscaling config": (
        edit(HEAD, "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
        "no worker is started",
    ),
    "second autoscaler": (edit(HEAD, "RAY_enable_autoscaler_v2=0 ", ""), "second autoscaler"),
    "no stop first": (put(WORKER, ["ray start"]), "a second `ray up` fails"),
    "workers without token": (drop("file_mounts|~/.ray/auth_token"), "workers get no token"),
    "readable token": (edit(SETUP, "chmod 600", "chmod 644"), "readable for everyone"),
    "token in the file": (edit(HEAD, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN=x RAY_AUTH_MODE"), "a token"),
    "other ray": (edit(SETUP, "make install", "make install; pip install ray==2.54.0"), "2.54.0"),
    "other image": (
        put("docker", {"image": "rayproject/ray:2.9.0-gpu", "container_name": "ray"}),
        "ray 2.9.0",
    ),
    "versions not installed": (edit(SETUP, "make install", "pip install ray"), "do not install"),
    "history copied": (put("rsync_exclude", []), "whole history"),
    "data room excluded": (put("rsync_exclude", ["/.git", "data"]), "not anchored"),
}


@pytest.mark.parametrize(("mistake", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found(
    mistake: Callable[[dict[str, Any]], None], expected: str, pins: dict[str, str]
) -> None:
    config = copy.deepcopy(load("onprem.yaml"))
    mistake(config)
    found = cluster_rules.problems_of(config, pins)
    assert any(expected in problem for problem in found), found


def test_a_local_cluster_needs_a_token_too(pins: dict[str, str]) -> None:
    config = load("local.yaml")
    config["setup_commands"] = config["setup_commands"][:1]
    assert "setup_commands: no token is made" in cluster_rules.problems_of(config, pins)


def commands_of(page: Path) -> list[str]:
    """The lines of the shell blocks of a page, with continuations joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def test_the_page_starts_ray_exactly_as_the_local_file_does() -> None:
    written = cluster_rules.options(load("local.yaml")[HEAD][-1])
    starts = [line for line in commands_of(ROOT / "clusters/README.md") if "ray start" in line]
    assert starts
    for line in starts:
        assert "RAY_AUTH_MODE=token" in line.split("ray start")[0]
        assert cluster_rules.options(line) == written


def test_the_page_names_files_that_exist() -> None:
    text = (ROOT / "clusters/README.md").read_text()
    named = set(re.findall(r"\b(?:experiments|clusters)/[\w.-]+\.(?:yaml|md)", text))
    assert any(name.startswith("experiments/") for name in named)
    assert {name for name in named if not (ROOT / name).is_file()} == set()
