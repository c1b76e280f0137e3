"""The address that a worker's collectives use, and whether nodes reach each other on it.

Left to themselves, gloo takes the address that the host's own name resolves to, which on Debian and
Ubuntu is 127.0.1.1, and NCCL and HCCL the first interface that looks right. Ray knows an address
by which the nodes do reach each other.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import ray

from orchestrator.cluster.nodes import alive_nodes

#: Seconds in which one node has to accept another one's connection.
CONNECT_SECONDS = 3.0
_AT_ONCE = 32
_POLL_SECONDS = 0.5
#: Pairs that a message names.
_NAMED = 4


class UnreachedError(RuntimeError):
    """Nodes that are to train together do not reach each other."""


def interface_of(address: str) -> str | None:
    """Name of the network interface of this machine that has an address; None if none has."""
    # Ray brings it along, in a folder that it adds to the path.
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        # IPv6 addresses of a link carry the interface behind a percent sign.
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return str(name)
    return None


def bind_collectives() -> None:
    """Have gloo, NCCL and HCCL use this node's address; what the user has set stays.

    Called in a worker before its process group is made. Nothing is set where the address is that
    of no interface, as behind address translation.
    """
    address = ray.util.get_node_ip_address()
    interface = interface_of(address)
    if interface is None:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    # With the equals sign it is the whole name, and no prefix of others.
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    if "HCCL_SOCKET_IFNAME" not in os.environ:
        os.environ.setdefault("HCCL_IF_IP", address)


class Door:
    """A port of this node's address that accepts connections, until it is closed."""

    def __init__(self) -> None:
        self.address = ray.util.get_node_ip_address()
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.bind((self.address, 0))
        self._socket.listen(socket.SOMAXCONN)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            connection.close()


_door: Door | None = None


def open_door() -> tuple[str, int]:
    """Open a door of this process, until :func:`close_door`; its address and port."""
    global _door
    _door = _door or Door()
    return _door.address, _door.port


def close_door() -> None:
    """Close what :func:`open_door` has opened."""
    global _door
    if _door is not None:
        _door.close()
    _door = None


def await_reach(group: Any, seconds: float) -> None:
    """Return once the nodes of a group of workers reach each other.

    A process group that is made before that fails, or waits far longer than the link is cut.

    Args:
        group: of Ray Train.
        seconds: to wait for it.

    Raises:
        UnreachedError: in vain; with nodes and ports.
    """
    doors = group.execute(open_door)
    # One worker of each node speaks for it.
    rank_of = {address: rank for rank, (address, _) in reversed(list(enumerate(doors)))}
    names = {node.address: str(node) for node in alive_nodes()}
    deadline = time.monotonic() + seconds
    while len(rank_of) > 1:
        others = {here: [doors[r] for a, r in rank_of.items() if a != here] for here in rank_of}
        asked = [group.execute_single_async(rank_of[here], knock, others[here]) for here in others]
        lines = [
            f"{names.get(here, here)} does not reach {names.get(there, there)} on port {port} "
            f"({trouble})"
            for here, answers in zip(others, ray.get(asked), strict=True)
            for (there, port), trouble in zip(others[here], answers, strict=True)
            if trouble is not None
        ]
        if not lines:
            break
        if time.monotonic() > deadline:
            raise UnreachedError("; ".join(lines[:_NAMED]))
        time.sleep(_POLL_SECONDS)
    group.execute(close_door)


def knock(doors: Sequence[tuple[str, int]]) -> list[str | None]:
    """Connect from here to other nodes, at once.

    Args:
        doors: address and port of each.

    Returns:
        What was wrong, for each; None for nothing.
    """
    if not doors:
        return []
    with ThreadPoolExecutor(min(_AT_ONCE, len(doors))) as pool:
        return list(pool.map(_connect, doors))


def _connect(door: tuple[str, int]) -> str | None:
    try:
        socket.create_connection(door, timeout=CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None
