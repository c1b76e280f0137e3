"""Which interface collectives use, and whether nodes reach each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster import network, survey
from orchestrator.cluster.network import (
    Door,
    UnreachedError,
    await_reach,
    bind_collectives,
    close_door,
    interface_of,
    knock,
    open_door,
)
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.survey import Needed, _require_seen
from orchestrator.errors import ConfigError

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME", "HCCL_IF_IP")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Surroundings that say nothing, on a node that Ray knows by the loopback address."""
    for name in VARIABLES:
        # Set first, so that what the code sets is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    return monkeypatch


def surroundings() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_an_interface_is_found_by_its_address() -> None:
    names = [name for _, name in socket.if_nameindex()]
    assert interface_of("127.0.0.1") in names
    # TEST-NET-3 of RFC 5737: nobody's.
    assert interface_of("203.0.113.7") is None


def test_collectives_use_the_address_that_ray_knows(here: pytest.MonkeyPatch) -> None:
    bind_collectives()
    loopback = interface_of("127.0.0.1")
    assert surroundings() == {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
        "HCCL_IF_IP": "127.0.0.1",
    }


def test_what_the_user_has_set_stays(here: pytest.MonkeyPatch) -> None:
    told = {
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "ib",
        "HCCL_SOCKET_IFNAME": "enp",
    }
    for name, value in told.items():
        here.setenv(name, value)
    bind_collectives()
    assert surroundings() == told


def test_behind_address_translation_nothing_is_set(here: pytest.MonkeyPatch) -> None:
    here.setattr(network.ray.util, "get_node_ip_address", lambda: "203.0.113.7")
    bind_collectives()
    assert surroundings() == {}


def test_a_closed_door_is_told_from_an_open_one(here: pytest.MonkeyPatch) -> None:
    door, closed = Door(), Door()
    closed.close()
    try:
        found = knock([(door.address, door.port), (closed.address, closed.port)] * 3)
    finally:
        door.close()
    assert found == [None, "connection refused"] * 3
    assert knock([]) == []


class Group:
    """Workers of Ray Train, by their doors; their functions run here."""

    def __init__(self, doors: list[tuple[str, int]]) -> None:
        self.doors = doors
        self.asked: list[int] = []
        self.closed = False

    def execute(self, function: Callable[..., Any]) -> list[Any]:
        self.closed = function is close_door
        return self.doors if function is open_door else []

    def execute_single_async(self, rank: int, function: Callable[..., Any], *words: Any) -> Any:
        self.asked.append(rank)
        return function(*words)


@pytest.fixture
def two_nodes(here: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    nodes = [Node(f"n{i}", f"host{i}", f"127.0.0.{i}", {"CPU": 1.0}) for i in (1, 2)]
    here.setattr(network, "alive_nodes", lambda: nodes)
    here.setattr(network.ray, "get", lambda answers: answers)
    return here


def door_at(monkeypatch: pytest.MonkeyPatch, address: str) -> Door:
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: address)
    return Door()


def test_one_worker_of_each_node_speaks_for_it(two_nodes: pytest.MonkeyPatch) -> None:
    doors = [door_at(two_nodes, f"127.0.0.{i}") for i in (1, 1, 2)]
    group = Group([(door.address, door.port) for door in doors])
    await_reach(group, 0.0)
    assert (sorted(group.asked), group.closed) == ([0, 2], True)
    alone = Group(group.doors[:2])
    await_reach(alone, 0.0)
    assert (alone.asked, alone.closed) == ([], True)
    for door in doors:
        door.close()


def test_a_link_that_comes_back_is_waited_for(two_nodes: pytest.MonkeyPatch) -> None:
    first, second = (door_at(two_nodes, f"127.0.0.{i}") for i in (1, 2))
    second.close()
    group = Group([(door.address, door.port) for door in (first, second)])
    with pytest.raises(UnreachedError) as caught:
        await_reach(group, 0.0)
    port = second.port
    text = f"host1 (127.0.0.1) does not reach host2 (127.0.0.2) on port {port} (connection refused)"
    assert str(caught.value) == text

    back = socket.socket()

    def repair(seconds: float) -> None:
        back.bind(("127.0.0.2", port))
        back.listen()

    two_nodes.setattr(network.time, "sleep", repair)
    await_reach(group, 60.0)
    assert group.closed
    back.close()
    first.close()


def test_a_node_that_does_not_answer_is_said_and_asked_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its disk hangs, for instance, and so does whatever looks there."""
    nodes = [Node(f"n{i}", f"host{i}", f"10.0.0.{i}", {"CPU": 1.0}) for i in (1, 2)]
    asked: list[str] = []

    class Scout:
        def __init__(self, node: Node) -> None:
            self.node = node

        def __getattr__(self, what: str) -> Any:
            def remote(*arguments: Any) -> tuple[str, str]:
                asked.append(f"{what} {self.node.id}")
                return what, self.node.id

            return SimpleNamespace(remote=remote)

    answers = {"look": [True], "kernels": "native", "door": ("10.0.0.1", 1), "knock": []}
    fake = SimpleNamespace(
        wait=lambda all, **_: (
            [each for each in all if each != ("look", "n2")],
            [each for each in all if each == ("look", "n2")],
        ),
        get=lambda reference: answers[reference[0]],
        kill=lambda actor: None,
    )
    monkeypatch.setattr(survey, "ray", fake)
    monkeypatch.setattr(survey, "_scouts", lambda nodes: {node: Scout(node) for node in nodes})
    assert survey.survey(nodes, [Needed("data.train.images", "/data")]) == []
    assert "no answer within 30 s from host2 (10.0.0.2)" in caplog.text
    assert asked == ["look n1", "look n2", "kernels n1", "door n1", "knock n1"]


def test_what_a_node_does_not_see_is_named() -> None:
    nodes = [Node(f"n{i}", f"host{i}", f"10.0.0.{i}", {"CPU": 1.0}) for i in range(1, 8)]
    needed = [Needed("data.train.images", "/data/a"), Needed("train.init_from", "/w/b.pth")]
    _require_seen(needed, {node: [True, True] for node in nodes})
    with pytest.raises(ConfigError) as caught:
        _require_seen(needed, {node: [True, node is nodes[0]] for node in nodes})
    text = str(caught.value)
    assert text.startswith("train.init_from: /w/b.pth is there on the driver's node and cannot be")
    assert "on host2 (10.0.0.2), host3 (10.0.0.3), host4 (10.0.0.4), host5 (10.0.0.5) and 2" in text
