"""Which interface collectives use, and whether nodes reach each other."""

from __future__ import annotations

import os
import socket

import pytest

from orchestrator.cluster import network
from orchestrator.cluster.network import Door, bind_collectives, interface_of, knock
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


def test_what_a_node_does_not_see_is_named() -> None:
    nodes = [Node(f"n{i}", f"host{i}", f"10.0.0.{i}", {"CPU": 1.0}) for i in range(1, 8)]
    needed = [Needed("data.train.images", "/data/a"), Needed("train.init_from", "/w/b.pth")]
    _require_seen(needed, {node: [True, True] for node in nodes})
    with pytest.raises(ConfigError) as caught:
        _require_seen(needed, {node: [True, node is nodes[0]] for node in nodes})
    text = str(caught.value)
    assert text.startswith("train.init_from: /w/b.pth is there on the driver's node and cannot be")
    assert "on host2 (10.0.0.2), host3 (10.0.0.3), host4 (10.0.0.4), host5 (10.0.0.5) and 2" in text
