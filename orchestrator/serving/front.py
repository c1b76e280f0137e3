"""What clients connect to: whole request heads are let through, one to a connection.

Ray's own proxy keeps whatever a client sends: the head of a request for as long as it comes, and
its body until the request is answered. So it listens where this machine alone reaches it, and
:class:`FrontDoor` stands before it: a head has a size and a time to arrive in, a body goes no
further without the token, connections are counted, and nothing is held of a body but what is on its
way: for one client a few times ``CHUNK_BYTES``.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from typing_extensions import Self

from orchestrator.errors import ConfigError
from orchestrator.serving.service import Answer, has_token, refusal

#: Bytes of a connection that are read or written at a time.
CHUNK_BYTES: Final = 16 * 2**10
_END: Final = b"\r\n\r\n"
#: Lines about the connection alone, which ends with this request; and those by which Ray's proxy is
#: told how long to wait, whether to go on for nobody, and whom to ask.
_DROPPED: Final = (
    *(b"connection:", b"keep-alive:", b"proxy-connection:", b"upgrade:"),
    *(b"x-request-timeout-seconds:", b"x-request-disconnect-disabled:"),
    b"serve_multiplexed_model_id:",
)
_AUTHORIZATION: Final = b"authorization:"


@dataclass(frozen=True)
class DoorLimits:
    """What is let in.

    Attributes:
        head_bytes: Size of the request line and the headers together.
        head_seconds: Time in which they have to arrive.
        idle_seconds: Time in which a client has to take a part of its answer.
        total_seconds: Time for a request and its answer together.
        connections: Connections at a time; more are answered with 503 at once.
        spare_seconds: Time in which a client that has its answer may still be sending.
        spare_bytes: What it may send in that time; nobody reads it.
        parting: Connections of such clients at a time; more are closed at once.
    """

    head_bytes: int = CHUNK_BYTES
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    total_seconds: float = 400.0
    connections: int = 1024
    spare_seconds: float = 5.0
    spare_bytes: int = 4 * 2**20
    parting: int = 256


class FrontDoor:
    """Listens for clients and connects each whole request to the server behind; a context manager.

    Args:
        host: IP address to listen at.
        port: Port to listen at; 0 for any free one.
        behind: IPv4 address and port of the server that answers.
        limits: What is let in.
        token_sha256: Digest of the token without which no body goes further; None to ask for none.

    Attributes:
        port: Port that is listened at, once entered.
    """

    def __init__(
        self,
        host: str,
        port: int,
        behind: tuple[str, int],
        limits: DoorLimits | None = None,
        *,
        token_sha256: str | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._behind = behind
        self._limits = limits or DoorLimits()
        self._token_sha256 = token_sha256
        # Connections; and those of them whose request is not answered yet.
        self._open = self._asking = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        try:
            self.port = starting.result()
        except OSError as error:
            self._end()
            raise ConfigError(
                f"--host {self.host} --port {self.port}: cannot be listened at "
                f"({error.strerror}). Next: choose another --port; 0 takes any that is free"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._end()

    def drain(self, seconds: float) -> None:
        """Let nobody in any more, and return once those that are in have their answers.

        Args:
            seconds: to wait for them.
        """
        asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(
            self._serve,
            self.host,
            self.port,
            limit=self._limits.head_bytes,
            backlog=self._limits.connections,
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def _drain(self, seconds: float) -> None:
        assert self._server is not None
        self._server.close()
        if self._answering:
            await asyncio.wait(self._answering, timeout=seconds)

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        requests = asyncio.all_tasks() - {asyncio.current_task()}
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _take_little(writer)
        self._open += 1
        try:
            answer = await self._ask(reader, writer)
            if answer is not None:
                _say(writer, answer)
            await self._part(reader, writer)
        except (OSError, asyncio.TimeoutError):
            pass  # The client is gone, or too slow; either way there is nobody to tell.
        except asyncio.CancelledError:
            pass  # The door is closed. asyncio would print what its own callback makes of it.
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer | None:
        """Have a request answered; what to say where the server behind has not."""
        limits = self._limits
        if self._asking >= limits.connections:
            message = f"{limits.connections} connections are open already"
            return refusal(503, "busy", message, Retry_After="1")
        task = asyncio.current_task()
        assert task is not None, "connections are served by tasks"
        self._asking += 1
        try:
            head = await self._head(reader)
            if not isinstance(head, list):
                return head
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return await asyncio.wait_for(
                self._pass_on(head, reader, writer), timeout=limits.total_seconds
            )
        finally:
            self._asking -= 1

    async def _head(self, reader: asyncio.StreamReader) -> list[bytes] | Answer | None:
        """The lines of a request's head, or what is wrong with it; None where there is none."""
        limits = self._limits
        try:
            head = await asyncio.wait_for(reader.readuntil(_END), timeout=limits.head_seconds)
        except asyncio.LimitOverrunError:
            message = f"the head of a request may have {limits.head_bytes} bytes"
            return refusal(431, "long_head", message)
        except asyncio.TimeoutError:
            message = f"the head of the request did not arrive within {limits.head_seconds:g} s"
            return refusal(408, "slow_request", message)
        except asyncio.IncompleteReadError:
            return None
        lines = head[: -len(_END)].split(b"\r\n")
        problem = _head_problem(lines)
        return lines if problem is None else refusal(400, "bad_head", problem)

    async def _part(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End a connection so that its client gets what was said to it.

        Closing a socket from which something can be read resets the connection: a client that
        listens only after sending would learn of that, and not of its answer.
        """
        limits = self._limits
        writer.transport.set_write_buffer_limits(high=0)
        await asyncio.wait_for(writer.drain(), timeout=limits.idle_seconds)
        writer.write_eof()
        if self._open - self._asking <= limits.parting:
            await asyncio.wait_for(_drop(reader, limits.spare_bytes), timeout=limits.spare_seconds)

    async def _pass_on(
        self, head: Sequence[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer | None:
        """Send a request to the server behind, and its answer to the client, as they come.

        Returns:
            What to say where that server does not answer.
        """
        loop = asyncio.get_running_loop()
        kept = [line for line in head[1:] if not line.lower().startswith(_DROPPED)]
        gone = refusal(503, "no_detector", "no server answers; ask again", Retry_After="1")
        # A socket as it is: asyncio's streams forget what has arrived once sending fails, and a
        # server that has answered before it has read everything makes sending fail.
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as behind:
            behind.setblocking(False)
            behind.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await loop.sock_connect(behind, self._behind)
                request = b"\r\n".join([head[0], *kept, b"Connection: close"]) + _END
                await loop.sock_sendall(behind, request)
            except OSError:
                return gone
            takes_body = has_token(_value(head, _AUTHORIZATION), self._token_sha256)
            body = asyncio.ensure_future(_feed(reader, behind, takes_body=takes_body))
            answered = False
            try:
                while chunk := await loop.sock_recv(behind, CHUNK_BYTES):
                    answered = True
                    writer.write(chunk)
                    await asyncio.wait_for(writer.drain(), timeout=self._limits.idle_seconds)
            except ConnectionResetError:
                pass  # By either side, after as much of the answer as there is.
            finally:
                client_is_there = not body.done()
                body.cancel()
                await asyncio.gather(body, return_exceptions=True)
            return gone if client_is_there and not answered else None


def _head_problem(lines: Sequence[bytes]) -> str | None:
    """What servers may understand in different ways, or not at all; None where there is nothing."""
    if not lines[0].strip():
        return "the request line is empty"
    if not lines[0].isascii():
        return "the request line has characters beyond ASCII; write them as %XX"
    for line in lines:
        if b"\n" in line or b"\r" in line or b"\0" in line or line[:1] in (b" ", b"\t"):
            return f"a line of the head cannot be read: {line[:40].decode('latin-1')!r}"
    return None


def _value(head: Sequence[bytes], name: bytes) -> str:
    """Value of the first header of a name in small letters with its colon; empty without one."""
    found = next((line for line in head[1:] if line.lower().startswith(name)), name)
    return found[len(name) :].decode("latin-1").strip()


def _say(writer: asyncio.StreamWriter, answer: Answer) -> None:
    lines = [f"HTTP/1.1 {answer.status} refused", f"Content-Type: {answer.media_type}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    lines += [f"Content-Length: {len(answer.body)}", "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + answer.body)


def _take_little(writer: asyncio.StreamWriter) -> None:
    """Read and hold a chunk at a time; asyncio takes 256 KiB otherwise."""
    writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
    # Not for all transports, but for those of sockets since Python 3.4.
    writer.transport.max_size = CHUNK_BYTES  # type: ignore[attr-defined]


async def _feed(reader: asyncio.StreamReader, behind: socket.socket, *, takes_body: bool) -> None:
    """Hand on what a client sends, and that it has gone; what nobody takes any more is dropped."""
    loop = asyncio.get_running_loop()
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            if takes_body:
                try:
                    await loop.sock_sendall(behind, chunk)
                except OSError:
                    takes_body = False  # It has answered.
    finally:
        # Not where this ends because there is an answer.
        if reader.at_eof() or reader.exception() is not None:
            _hang_up(behind)


def _hang_up(behind: socket.socket) -> None:
    with suppress(OSError):  # It was first.
        behind.shutdown(socket.SHUT_WR)


async def _drop(reader: asyncio.StreamReader, most: int) -> None:
    """Read to the end, or so many bytes."""
    while most > 0 and (chunk := await reader.read(CHUNK_BYTES)):
        most -= len(chunk)
