"""What a server of detections answers: who may ask, what is let in, and how each refusal is called.

Nothing here knows a web framework or Ray: :class:`Gate` takes anything that looks like a request
and returns an :class:`Answer`. A body is measured while it arrives and its image header is read
before anything is decoded, so that what is malformed costs the detector nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from orchestrator.data.decode import BadImageError, TooManyPixelsError, require_sound
from orchestrator.errors import ConfigError, SecurityError

#: Shortest token: 16 characters drawn from 64 are 96 bits.
MIN_TOKEN: Final = 16
_MAX_NAME = 1024
#: Digits of a length that is looked at; no body is that long.
_LENGTH_DIGITS = 20
#: Times the allowed size that are read from a client to which no was said already.
SWALLOWED: Final = 4
_JSON: Final = "application/json"
_PATHS: Final = {"/predict": "POST", "/health": "GET", "/metrics": "GET", "/about": "GET"}


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_bytes: of one image file.
        max_pixels: height * width of one image, looked up in its header.
        max_pending: requests to detect that are in the house at a time.
        max_pending_bytes: of their image files together.
        read_seconds: for a request to arrive.
        answer_seconds: for the detector to answer, waiting in line included.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 32_000_000
    max_pending: int = 4096
    max_pending_bytes: int = 512 * 2**20
    read_seconds: float = 30.0
    answer_seconds: float = 300.0


@dataclass(frozen=True)
class Query:
    """One image to detect in.

    Attributes:
        name: what the answer calls it.
        data: bytes of the image file.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What a client is told.

    Attributes:
        status: of HTTP.
        body: in ``media_type``.
        media_type: of the body.
        headers: beside length and type.
        batch: images the network saw together with this one; 0 where it saw none.
        detections: in the body.
    """

    status: int
    body: bytes
    media_type: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    batch: int = 0
    detections: int = 0


class Request(Protocol):
    """What :class:`Gate` needs of a request; ``starlette.requests.Request`` is one."""

    @property
    def method(self) -> str:
        """Of HTTP, in capitals."""

    @property
    def url(self) -> Any:
        """With the attribute ``path``."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By name in small letters."""

    @property
    def query_params(self) -> Mapping[str, str]:
        """What follows the question mark."""

    def stream(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""


def refusal(status: int, reason: str, message: str, **headers: str) -> Answer:
    """An answer that says why there is no other one.

    Args:
        status: of HTTP.
        reason: a word for programs.
        message: a sentence for people.
        headers: with underscores for dashes.
    """
    tree = {"error": {"status": status, "reason": reason, "message": message}}
    body = json.dumps(tree, indent=1, ensure_ascii=False).encode("utf-8", "replace")
    return Answer(status, body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def refuse_image(error: BadImageError) -> Answer:
    """The answer to an image that cannot be used."""
    if isinstance(error, TooManyPixelsError):
        return refusal(413, "too_many_pixels", str(error))
    return refusal(422, "bad_image", str(error))


def token_digest(token: str | None, host: str) -> str | None:
    """SHA-256 of a token, which is all that is kept of it; None where none is asked for.

    Args:
        token: clients have to send it as ``Authorization: Bearer TOKEN``.
        host: address that is listened at.

    Raises:
        SecurityError: other machines can reach that address, and there is no token; or the token
            is so short that it could be guessed.
    """
    if token is None:
        if is_loopback(host):
            return None
        raise SecurityError(
            f"--host {host}: other machines could ask this server, and it has no token. Next: put "
            "one into a file and name it with --token-file, or leave --host out"
        )
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise SecurityError(
            f"the token has {len(token)} characters; needed are at least {MIN_TOKEN} of ASCII, "
            "without blanks. Next: make one with `openssl rand -hex 24`"
        )
    return hashlib.sha256(token.encode()).hexdigest()


def has_token(authorization: str, token_sha256: str | None) -> bool:
    """Whether a request may be answered.

    Args:
        authorization: value of its header of that name; empty without one.
        token_sha256: digest of the token; None where none is asked for.
    """
    if token_sha256 is None:
        return True
    scheme, _, token = authorization.partition(" ")
    digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(digest, token_sha256)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    Raises:
        ConfigError: neither an IP address nor ``localhost``.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigError(
            f"--host {host}: expected an IP address or localhost; 0.0.0.0 is every address"
        ) from error


class Metrics:
    """Counters in the form that Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "orchestrator_requests", "Requests by answer.", ["status"], registry=self._registry
        )
        self.seconds = Histogram(
            "orchestrator_predict_seconds",
            "From the first byte of a request to its detections.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self._registry,
        )
        self.batch = Histogram(
            "orchestrator_batch_images",
            "Images that went through the network together, once for each of them.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        self.detections = Counter(
            "orchestrator_detections", "Boxes answered with.", registry=self._registry
        )
        self.pending = Gauge(
            "orchestrator_pending_requests", "Requests being answered.", registry=self._registry
        )
        self.pending_bytes = Gauge(
            "orchestrator_pending_bytes", "Of their image files.", registry=self._registry
        )

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class Gate:
    """Answers requests; it alone decides what reaches the detector.

    Args:
        ask: has the detector answer a query.
        alive: returns when a detector is there, and raises or waits when none is.
        limits: what is taken.
        token_sha256: digest of the token clients have to send; None to ask for none.
        about: what ``/about`` tells.
    """

    def __init__(
        self,
        ask: Callable[[Query], Awaitable[Answer]],
        alive: Callable[[], Awaitable[object]],
        *,
        limits: Limits,
        token_sha256: str | None,
        about: Mapping[str, Any],
    ) -> None:
        self._ask = ask
        self._alive = alive
        self._limits = limits
        self._token_sha256 = token_sha256
        self._about = json.dumps(about, indent=1, ensure_ascii=False).encode()
        self._pending = 0
        self.metrics = Metrics()
        self._ledger = _Ledger(limits.max_pending_bytes, self.metrics.pending_bytes)

    async def answer(self, request: Request) -> Answer:
        """Answer a request; whatever it holds, this returns."""
        answer = await self._route(request)
        self.metrics.requests.labels(str(answer.status)).inc()
        if request.method == "HEAD":
            answer = replace(answer, body=b"")
        return answer

    async def _route(self, request: Request) -> Answer:
        path = request.url.path
        method = _PATHS.get(path)
        if method is None:
            known = ", ".join(f"{verb} {name}" for name, verb in _PATHS.items())
            return refusal(404, "no_such_path", f"there are {known}")
        allowed = ("GET", "HEAD") if method == "GET" else (method,)
        if request.method not in allowed:
            message = f"{path} takes {' or '.join(allowed)}"
            return refusal(405, "wrong_method", message, Allow=", ".join(allowed))
        # Whoever watches over the service asks for its health and is given no secrets.
        if path == "/health":
            return await self._health()
        if not has_token(request.headers.get("authorization", ""), self._token_sha256):
            message = "send the header Authorization: Bearer TOKEN"
            return refusal(401, "no_token", message, WWW_Authenticate="Bearer")
        if path == "/metrics":
            return Answer(200, self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
        if path == "/about":
            return Answer(200, self._about)
        return await self._predict(request)

    async def _health(self) -> Answer:
        try:
            await asyncio.wait_for(self._alive(), timeout=5)
        # Ray has a class for each way in which a process can be gone; the answer is the same.
        except Exception as error:
            return refusal(503, "no_detector", f"no detector answers ({type(error).__name__})")
        return Answer(200, b'{"status": "ok"}')

    async def _predict(self, request: Request) -> Answer:
        if self._pending >= self._limits.max_pending:
            message = f"{self._pending} requests are waiting already; ask again later"
            return refusal(503, "busy", message, Retry_After="1")
        started = time.perf_counter()
        body = _Body(request, self._limits.max_bytes, self._ledger)
        self._pending += 1
        self.metrics.pending.set(self._pending)
        try:
            answer = await self._detections(request, body)
        finally:
            body.release()
            self._pending -= 1
            self.metrics.pending.set(self._pending)
        if answer.status == 200:
            self.metrics.seconds.observe(time.perf_counter() - started)
            self.metrics.batch.observe(answer.batch)
            self.metrics.detections.inc(answer.detections)
        return answer

    async def _detections(self, request: Request, body: _Body) -> Answer:
        limits = self._limits
        try:
            data = await asyncio.wait_for(body.read(), timeout=limits.read_seconds)
        except asyncio.TimeoutError:
            message = f"the image did not arrive within {limits.read_seconds:g} s"
            return refusal(408, "slow_request", message)
        if isinstance(data, Answer):
            return data
        name = request.query_params.get("name", "image")
        if len(name) > _MAX_NAME:
            message = f"the name has {len(name)} characters, allowed are {_MAX_NAME}"
            return refusal(400, "long_name", message)
        try:
            # Header parsers are quick but not instant, and others wait for this loop.
            await asyncio.to_thread(require_sound, data, max_pixels=limits.max_pixels)
        except BadImageError as error:
            return refuse_image(error)
        try:
            return await asyncio.wait_for(
                self._ask(Query(name, data)), timeout=limits.answer_seconds
            )
        except asyncio.TimeoutError:
            message = f"no answer within {limits.answer_seconds:g} s; ask again later"
            return refusal(504, "slow_detector", message)
        # The detector's process is gone, or torch refused; the reason is in its log, and a client
        # is not shown what this machine looks like inside.
        except Exception as error:
            message = f"the detector failed ({type(error).__name__}); ask again"
            return refusal(503, "no_detector", message, Retry_After="1")


class _Ledger:
    """Bytes of all image files that are in the house."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        self._limit = limit
        self._gauge = gauge
        self._held = 0

    def take(self, count: int) -> bool:
        """Count bytes that arrived, or say that they are too many."""
        if self._held + count > self._limit:
            return False
        self._held += count
        self._gauge.set(self._held)
        return True

    def give(self, count: int) -> None:
        """Bytes that are gone."""
        self._held -= count
        self._gauge.set(self._held)


class _Body:
    """The body of a request while it arrives."""

    def __init__(self, request: Request, limit: int, ledger: _Ledger) -> None:
        self._headers = request.headers
        self._chunks = request.stream()
        self._limit = limit
        self._ledger = ledger
        self._count = 0

    async def read(self) -> bytes | Answer:
        """The whole body, or why it is refused."""
        if self._headers.get("content-type", "").startswith("multipart/"):
            message = "send the bytes of the image as the body: curl --data-binary @image.jpg"
            return await self._refuse(refusal(415, "form", message))
        if self._headers.get("content-encoding", "identity") != "identity":
            message = "send the image as it is; it is compressed already"
            return await self._refuse(refusal(415, "encoded", message))
        declared = self._headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit() and len(declared) < _LENGTH_DIGITS):
            return refusal(400, "bad_length", f"Content-Length is {declared[:30]!r}, no length")
        too_long = refusal(413, "too_many_bytes", f"allowed are {self._limit} bytes")
        if int(declared) > self._limit:
            return await self._refuse(too_long)
        chunks = []
        async for chunk in self._chunks:
            if self._count + len(chunk) > self._limit:
                return await self._refuse(too_long)
            if not self._ledger.take(len(chunk)):
                message = "the images that are waiting take all the memory there is for them"
                return await self._refuse(refusal(503, "busy", message, Retry_After="1"))
            self._count += len(chunk)
            chunks.append(chunk)
        if self._count == 0:
            return refusal(400, "empty", "the body is empty; send the bytes of an image")
        return b"".join(chunks)

    async def _refuse(self, answer: Answer) -> Answer:
        """Swallow what is still coming, within reason: many clients listen only after sending."""
        spare = SWALLOWED * self._limit
        async for chunk in self._chunks:
            spare -= len(chunk)
            if spare < 0:
                break
        return answer

    def release(self) -> None:
        """Forget the bytes."""
        self._ledger.give(self._count)
        self._count = 0
