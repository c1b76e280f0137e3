"""The door before the server: what it lets through, and what it holds of those it does not."""

from __future__ import annotations

import asyncio
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orchestrator.serving.front import DoorLimits, FrontDoor


@contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    """A server that answers with the head it was sent and the body that follows it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = dict(line.split(b": ") for line in head.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(lines.get(b"Content-Length", b"0")))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head + body)
        await writer.drain()
        writer.close()

    async def listen() -> tuple[str, int]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address: tuple[str, int] = server.sockets[0].getsockname()
        return address

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(listen(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture
def door() -> Iterator[FrontDoor]:
    limits = DoorLimits(head_bytes=4096, head_seconds=0.5, connections=8)
    with echoing() as behind, FrontDoor("127.0.0.1", 0, behind, limits) as front:
        yield front


def connect(door: FrontDoor) -> socket.socket:
    return socket.create_connection(("127.0.0.1", door.port), timeout=60)


def everything(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    while chunk := client.recv(65536):
        found += chunk
    return found


def flood(client: socket.socket, size: int) -> None:
    part = b"a" * 2**16
    for _ in range(0, size, len(part)):
        client.sendall(part)


def test_a_request_and_its_answer_pass_whole_and_the_connection_ends(door: FrontDoor) -> None:
    body = bytes(range(256)) * 20_000
    head = b"POST /predict?name=x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n"
    with connect(door) as client:
        sender = threading.Thread(
            target=client.sendall,
            args=(head + b"Content-Length: %d\r\n\r\n" % len(body) + body,),
        )
        sender.start()
        answer = everything(client)
        sender.join()
    status, _, rest = answer.partition(b"\r\n\r\n")
    passed, _, came_back = rest.partition(b"\r\n\r\n")
    assert status == b"HTTP/1.1 200 OK"
    assert b"keep-alive" not in passed
    assert passed.endswith(b"Connection: close")
    assert came_back == body


def test_a_head_without_end_is_cut_off(door: FrontDoor) -> None:
    tracemalloc.start()
    try:
        with connect(door) as client:
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            # Reset or broken pipe, as it happens, long before all is sent.
            with pytest.raises(ConnectionError):
                flood(client, 2**26)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    with connect(door) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 5000)
        assert everything(client).startswith(b"HTTP/1.1 431 ")


def test_a_head_has_a_time_to_arrive_in(door: FrontDoor) -> None:
    with connect(door) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost:")
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"reason": "slow_request"' in answer


def test_connections_are_counted_and_places_come_free(door: FrontDoor) -> None:
    idle = [connect(door) for _ in range(8)]
    with connect(door) as client:
        assert everything(client).startswith(b"HTTP/1.1 503 ")
    for waiting in idle:
        everything(waiting)
        waiting.close()
    with connect(door) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 200 ")
