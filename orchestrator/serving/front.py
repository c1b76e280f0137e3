"""What clients connect to: whole request heads are let through, one to a connection.

Ray's own proxy keeps whatever a client sends as the head of a request, for as long as it sends it.
So it listens where this machine alone reaches it, and :class:`FrontDoor` stands before it: a head
has a size and a time to arrive in, connections are counted, and nothing is held of a body but what
is on its way: for one client a few times ``CHUNK_BYTES``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from typing_extensions import Self

from orchestrator.errors import ConfigError
from orchestrator.serving.service import Answer, refusal

#: Bytes of a connection that are read or written at a time.
CHUNK_BYTES: Final = 16 * 2**10
_END: Final = b"\r\n\r\n"
#: Lines about the connection alone, which ends with this request.
_DROPPED: Final = (b"connection:", b"keep-alive:", b"proxy-connection:", b"upgrade:")


@dataclass(frozen=True)
class DoorLimits:
    """What is let in.

    Attributes:
        head_bytes: Size of the request line and the headers together.
        head_seconds: Time in which they have to arrive.
        idle_seconds: Time in which a client has to take a part of its answer.
        total_seconds: Time for a request and its answer together.
        connections: Connections at a time; more are answered with 503 at once.
    """

    head_bytes: int = CHUNK_BYTES
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    total_seconds: float = 400.0
    connections: int = 1024


class FrontDoor:
    """Listens for clients and connects each whole request to the server behind; a context manager.

    Args:
        host: IP address to listen at.
        port: Port to listen at; 0 for any free one.
        behind: Address and port of the server that answers.
        limits: What is let in.

    Attributes:
        port: Port that is listened at, once entered.
    """

    def __init__(
        self, host: str, port: int, behind: tuple[str, int], limits: DoorLimits | None = None
    ) -> None:
        self.host = host
        self.port = port
        self._behind = behind
        self._limits = limits or DoorLimits()
        self._open = 0
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
            if self._open > self._limits.connections:
                message = f"{self._limits.connections} connections are open already"
                await self._refuse(writer, refusal(503, "busy", message, Retry_After="1"))
                return
            head = await self._head(reader, writer)
            if head is not None:
                limit = self._limits.total_seconds
                await asyncio.wait_for(self._pass_on(head, reader, writer), timeout=limit)
        except (OSError, asyncio.TimeoutError):
            pass  # The client is gone, or too slow; either way there is nobody to tell.
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _head(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """The head of a request; None where there is none, which the client was told."""
        limits = self._limits
        try:
            return await asyncio.wait_for(reader.readuntil(_END), timeout=limits.head_seconds)
        except asyncio.LimitOverrunError:
            message = f"the head of a request may have {limits.head_bytes} bytes"
            await self._refuse(writer, refusal(431, "long_head", message))
        except asyncio.TimeoutError:
            message = f"the head of the request did not arrive within {limits.head_seconds:g} s"
            await self._refuse(writer, refusal(408, "slow_request", message))
        except asyncio.IncompleteReadError:
            pass
        return None

    async def _refuse(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status} refused", f"Content-Type: {answer.media_type}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        lines += [f"Content-Length: {len(answer.body)}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + answer.body)
        await asyncio.wait_for(writer.drain(), timeout=self._limits.idle_seconds)
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), timeout=self._limits.idle_seconds)

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send a request to the server behind, and its answer to the client, as they come."""
        first, *lines = head[: -len(_END)].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(_DROPPED)]
        behind_reader, behind = await asyncio.open_connection(*self._behind, limit=CHUNK_BYTES)
        _take_little(behind)
        try:
            behind.write(b"\r\n".join([first, *kept, b"Connection: close"]) + _END)
            body = asyncio.ensure_future(_pump(reader, behind, None, behind.close))
            try:
                await _pump(behind_reader, writer, self._limits.idle_seconds, lambda: None)
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), timeout=self._limits.idle_seconds)
            finally:
                body.cancel()
                await asyncio.gather(body, return_exceptions=True)
        finally:
            behind.transport.abort()


def _take_little(writer: asyncio.StreamWriter) -> None:
    """Read and hold a chunk at a time; asyncio takes 256 KiB otherwise."""
    writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
    # Not for all transports, but for those of sockets since Python 3.4.
    writer.transport.max_size = CHUNK_BYTES  # type: ignore[attr-defined]


async def _pump(
    source: asyncio.StreamReader,
    target: asyncio.StreamWriter,
    seconds: float | None,
    at_end: Callable[[], None],
) -> None:
    """Hand bytes on until there are no more; each part has to be taken within ``seconds``."""
    while chunk := await source.read(CHUNK_BYTES):
        target.write(chunk)
        await asyncio.wait_for(target.drain(), timeout=seconds)
    at_end()
