"""Clients of a server that mean it no good: slow, endless and huge heads and bodies, no token.

    python -m tests.support.rude_clients PORT CONNECTIONS SECONDS

keeps so many connections to a port of this machine open for so long, of nine kinds in turns, each
begun again when the server has ended it, and prints how many there were.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress

_POST = b"POST /predict?name=a HTTP/1.1\r\nHost: a\r\n"
_LARGE = bytes(64 * 2**10)


async def _drip(first: bytes, following: bytes, seconds: float) -> AsyncIterator[bytes]:
    yield first
    while True:
        await asyncio.sleep(seconds)
        yield following


async def _nothing() -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(1)
        yield b""


#: What each kind sends, bit by bit.
KINDS = {
    "slow head": lambda: _drip(_POST, b"X", 1.0),
    "endless head": lambda: _drip(_POST, b"X: " + b"a" * 1000 + b"\r\n", 0.2),
    "huge head": lambda: _drip(_POST + b"X: " + _LARGE, _LARGE, 0.2),
    "slow body": lambda: _drip(_POST + b"Content-Length: 1000\r\n\r\n", b"a", 1.0),
    "huge body": lambda: _drip(_POST + b"Content-Length: 9999999999\r\n\r\n", _LARGE, 0.2),
    "endless body": lambda: _drip(
        _POST + b"Transfer-Encoding: chunked\r\n\r\n", b"4000\r\n" + bytes(0x4000) + b"\r\n", 0.2
    ),
    "wrong token": lambda: _drip(
        _POST + b"Authorization: Bearer no\r\nContent-Length: 99999999\r\n\r\n", _LARGE, 0.2
    ),
    "junk": lambda: _drip(bytes(range(256)), bytes(range(256)), 0.2),
    "nothing": _nothing,
}


async def _connect(port: int, kind: str) -> None:
    """One connection, until the server ends it; an answer is read slowly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
    try:
        async for part in KINDS[kind]():
            writer.write(part)
            # A server that does not read is waited for; one that has ended it is seen by both.
            await asyncio.wait_for(writer.drain(), 30)
            if reader.at_eof():
                return
            with suppress(asyncio.TimeoutError):
                if not await asyncio.wait_for(reader.read(16), 0.01):
                    return
    finally:
        writer.transport.abort()


async def _client(port: int, kinds: itertools.cycle[str], until: float) -> int:
    made = 0
    while (left := until - time.monotonic()) > 0:
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(_connect(port, next(kinds)), left)
        made += 1
        await asyncio.sleep(0.2)
    return made


async def _all(port: int, connections: int, seconds: float) -> int:
    kinds = itertools.cycle(KINDS)
    until = time.monotonic() + seconds
    return sum(await asyncio.gather(*(_client(port, kinds, until) for _ in range(connections))))


if __name__ == "__main__":
    print(asyncio.run(_all(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
