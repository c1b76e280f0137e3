"""The door before the server: what it lets through, and what it holds of those it does not."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from orchestrator.serving.front import DoorLimits, FrontDoor

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the head that was sent and the body that follows it."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = dict(line.split(b": ") for line in head.split(b"\r\n")[1:] if line)
    body = await reader.readexactly(int(lines.get(b"Content-Length", b"0")))
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head + body)
    await writer.drain()
    writer.close()


@contextmanager
def echoing(answer: Answering = echo) -> Iterator[tuple[str, int]]:
    """A server that answers in its own way; its address."""

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


def test_a_client_that_is_still_sending_gets_its_answer() -> None:
    """The server behind answers as soon as it has the head, and closes with bytes to read."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 405 no\r\n\r\nno")
        writer.close()

    limits = DoorLimits(spare_bytes=2**26)
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % 2**24
    with echoing(refuse) as behind, FrontDoor("127.0.0.1", 0, behind, limits) as door:
        for _ in range(20):
            with connect(door) as client:
                client.sendall(head)
                flood(client, 2**24)
                assert everything(client) == b"HTTP/1.1 405 no\r\n\r\nno"


def test_a_client_too_many_hears_of_it_after_its_image() -> None:
    with echoing() as behind:
        limits = DoorLimits(connections=1, spare_bytes=2**26)
        with FrontDoor("127.0.0.1", 0, behind, limits) as door, connect(door) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n")
            with connect(door) as client:
                client.sendall(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % 2**24)
                flood(client, 2**24)
                answer = everything(client)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in answer


def test_a_body_without_the_token_goes_no_further() -> None:
    received: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received.append(0)
        # A server that takes its time, and whatever comes meanwhile.
        while received[-1] < 2**23:
            try:
                received[-1] += len(await asyncio.wait_for(reader.read(2**16), timeout=0.5))
            except asyncio.TimeoutError:
                break
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    digest = hashlib.sha256(b"0123456789abcdef").hexdigest()
    head = b"POST / HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n"
    with (
        echoing(count) as behind,
        FrontDoor("127.0.0.1", 0, behind, token_sha256=digest) as door,
    ):
        for line in (
            b"",
            b"Authorization: Bearer 0\r\n",
            b"X-Authorization: Bearer 0123456789abcdef\r\n",
            b"authorization:  bearer 0123456789abcdef \r\n",
        ):
            with connect(door) as client:
                client.sendall(head % (line, 2**23))
                flood(client, 2**23)
                assert everything(client) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert received == [0, 0, 0, 2**23]


@pytest.mark.parametrize("accepts", [False, True], ids=["nobody listens", "hangs up"])
def test_a_server_that_is_not_there_is_said(accepts: bool) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    with echoing(hang_up) as behind, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = behind if accepts else closed.getsockname()
        with FrontDoor("127.0.0.1", 0, place) as door, connect(door) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"reason": "no_detector"' in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\nHost: a\n\nGET /second HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\r\n Connection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        b"GET /predict?name=gr\xc3\xb6n HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
    ],
    ids=["two heads", "bare line end", "folded", "null", "beyond ASCII", "empty"],
)
def test_a_head_that_can_be_read_in_two_ways_is_refused(door: FrontDoor, head: bytes) -> None:
    with connect(door) as client:
        client.sendall(head)
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"reason": "bad_head"' in answer


def test_who_is_in_gets_an_answer_and_nobody_else_comes_in() -> None:
    asked = threading.Event()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nyes")
        writer.close()

    with echoing(slowly) as behind, FrontDoor("127.0.0.1", 0, behind) as door:
        # One who says nothing is not waited for.
        with connect(door), connect(door) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert asked.wait(30)
            answers: list[bytes] = []
            reader = threading.Thread(target=lambda: answers.append(everything(client)))
            reader.start()
            started = time.monotonic()
            door.drain(30.0)
            took = time.monotonic() - started
            with pytest.raises(ConnectionRefusedError):
                connect(door)
            reader.join()
        assert answers == [b"HTTP/1.1 200 OK\r\n\r\nyes"]
        assert took < 8
