"""What the gate of ``orchestrator serve`` lets in, and how it says no; no server, no Ray."""

from __future__ import annotations

import asyncio
import json
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from orchestrator.errors import ConfigError, SecurityError
from orchestrator.serving.service import (
    Answer,
    Gate,
    Limits,
    Query,
    is_loopback,
    token_digest,
)

TOKEN = "0123456789abcdef"
LIMITS = Limits(max_bytes=4000, max_pixels=20_000, max_pending=2, max_pending_bytes=6000)


def image(height=40, width=60, suffix=".png", level=7) -> bytes:
    return cv2.imencode(suffix, np.full((height, width, 3), level, np.uint8))[1].tobytes()


def claiming(side: int) -> bytes:
    """A PNG of a few bytes whose header says that it is ``side`` pixels high and wide."""
    data = image()
    header = data[12:16] + side.to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


class Asked:
    """A request as Starlette has it; ``chunks`` may be bytes, or seconds to wait."""

    def __init__(self, body=b"", path="/predict", method="POST", query=None, **headers):
        self.method = method
        self.url = SimpleNamespace(path=path)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.query_params = query or {}
        self.chunks = [body] if isinstance(body, bytes) else body
        self.taken = 0

    async def stream(self):
        for chunk in self.chunks:
            if isinstance(chunk, bytes):
                self.taken += len(chunk)
                yield chunk
            else:
                await asyncio.sleep(chunk)


class Detector:
    """Says which image it saw, once told to."""

    def __init__(self):
        self.seen: list[Query] = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, query: Query) -> Answer:
        self.seen.append(query)
        await self.go.wait()
        return Answer(200, query.name.encode(), batch=2, detections=3)

    async def alive(self) -> bool:
        return True


def gate(detector=None, *, token=None, limits=LIMITS, alive=None) -> Gate:
    detector = detector or Detector()
    digest = token_digest(token, "127.0.0.1")
    return Gate(
        detector, alive or detector.alive, limits=limits, token_sha256=digest, about={"a": 1}
    )


def answer(request: Asked, **options) -> Answer:
    return asyncio.run(gate(**options).answer(request))


def reason(found: Answer) -> tuple[int, str]:
    error = json.loads(found.body)["error"]
    assert error["status"] == found.status
    assert error["message"]
    return found.status, error["reason"]


def test_an_image_reaches_the_detector_whole_and_under_its_name():
    detector = Detector()
    data = image()
    found = answer(Asked([data[:10], b"", data[10:]], query={"name": "a/b.png"}), detector=detector)
    assert (found.status, found.body) == (200, b"a/b.png")
    assert detector.seen == [Query("a/b.png", data)]


BAD_IMAGES = {
    "empty": (b"", 400, "empty"),
    "words": (b"hello", 422, "bad_image"),
    "truncated JPEG": (image(suffix=".jpg")[:-20], 422, "bad_image"),
    "only a signature": (image()[:8], 422, "bad_image"),
    "PostScript, which Pillow would give to another program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        422,
        "bad_image",
    ),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "bad_image"),
    "pickle": (b"\x80\x04cos\nsystem\n.", 422, "bad_image"),
    "zip": (b"PK\x03\x04" + bytes(60), 422, "bad_image"),
    "too many pixels": (image(200, 200), 413, "too_many_pixels"),
    "a header that claims 100,000 x 100,000": (
        claiming(100_000),
        413,
        "too_many_pixels",
    ),
    "too many bytes": (bytes(4001), 413, "too_many_bytes"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_what_is_no_image_never_reaches_the_detector(name):
    body, status, why = BAD_IMAGES[name]
    detector = Detector()
    assert reason(answer(Asked(body), detector=detector)) == (status, why)
    assert detector.seen == []


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content_type": "multipart/form-data; boundary=x"}, (415, "form")),
        ({"content_encoding": "gzip"}, (415, "encoded")),
        ({"content_length": "-1"}, (400, "bad_length")),
        ({"content_length": "1e3"}, (400, "bad_length")),
        ({"content_length": "9" * 5000}, (400, "bad_length")),
        ({"content_length": "4001"}, (413, "too_many_bytes")),
    ],
)
def test_headers_that_are_refused(headers, expected):
    assert reason(answer(Asked(image(), **headers))) == expected


def test_the_type_of_the_content_is_looked_up_in_it():
    plain = Asked(image(), content_type="application/x-www-form-urlencoded")
    assert answer(plain).status == 200


def test_a_name_has_a_limit():
    asked = Asked(image(), query={"name": "n" * 1025})
    assert reason(answer(asked)) == (400, "long_name")


def test_a_body_without_end_is_read_no_further_than_it_has_to_be():
    asked = Asked([bytes(1000)] * 10_000)
    assert reason(answer(asked)) == (413, "too_many_bytes")
    assert asked.taken < 6 * LIMITS.max_bytes


def test_a_client_may_finish_what_is_a_little_too_long():
    asked = Asked([bytes(1000)] * 9, content_length="9000")
    assert reason(answer(asked)) == (413, "too_many_bytes")
    assert asked.taken == 9000


def test_a_slow_client_does_not_keep_its_place():
    limits = Limits(read_seconds=0.05)
    asked = Asked([image()[:10], 5.0, image()[10:]])
    assert reason(answer(asked, limits=limits)) == (408, "slow_request")


def test_a_detector_that_stands_still_is_not_waited_for():
    async def scene():
        detector = Detector()
        detector.go.clear()
        return await gate(detector, limits=Limits(answer_seconds=0.05)).answer(Asked(image()))

    assert reason(asyncio.run(scene())) == (504, "slow_detector")


def test_a_detector_that_fails_is_no_fault_of_the_client():
    class Broken(Detector):
        async def __call__(self, query):
            raise RuntimeError("/a/secret/path")

    found = answer(Asked(image()), detector=Broken())
    assert reason(found) == (503, "no_detector")
    assert found.headers["Retry-After"] == "1"
    assert b"secret" not in found.body


def test_more_than_can_wait_is_turned_away_and_the_places_come_back():
    async def scene():
        detector = Detector()
        detector.go.clear()
        one = gate(detector)
        waiting = [asyncio.ensure_future(one.answer(Asked(image()))) for _ in range(2)]
        while len(detector.seen) < 2:
            await asyncio.sleep(0.001)
        refused = await one.answer(Asked(image()))
        detector.go.set()
        done = await asyncio.gather(*waiting)
        return refused, done, await one.answer(Asked(image()))

    refused, done, later = asyncio.run(scene())
    assert reason(refused) == (503, "busy")
    assert [found.status for found in done] == [200, 200]
    assert later.status == 200


def test_bytes_that_wait_are_counted_and_forgotten():
    noise = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    large = cv2.imencode(".png", noise)[1].tobytes()
    assert 3000 < len(large) <= LIMITS.max_bytes

    async def scene():
        detector = Detector()
        detector.go.clear()
        one = gate(detector)
        first = asyncio.ensure_future(one.answer(Asked(large)))
        while not detector.seen:
            await asyncio.sleep(0.001)
        refused = await one.answer(Asked(large))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        detector.go.set()
        return refused, await one.answer(Asked(large)), one.metrics.text()

    refused, later, text = asyncio.run(scene())
    assert reason(refused) == (503, "busy")
    assert later.status == 200
    assert b"orchestrator_pending_bytes 0.0" in text
    assert b"orchestrator_pending_requests 0.0" in text


@pytest.mark.parametrize("path", ["/predict", "/metrics", "/about"])
def test_the_token_is_asked_for(path):
    method = "POST" if path == "/predict" else "GET"
    good = {"authorization": f"Bearer {TOKEN}"}
    assert answer(Asked(image(), path, method, **good), token=TOKEN).status == 200
    for header in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}0", "Bearer", "Bearer \udcff"):
        refused = answer(Asked(image(), path, method, authorization=header), token=TOKEN)
        assert reason(refused) == (401, "no_token")
        assert refused.headers == {"WWW-Authenticate": "Bearer"}


def test_health_needs_no_token_and_a_detector():
    asked = Asked(path="/health", method="GET")
    found = answer(asked, token=TOKEN)
    assert (found.status, json.loads(found.body)) == (200, {"status": "ok"})
    assert answer(Asked(path="/health", method="HEAD")).body == b""

    async def dead():
        raise RuntimeError("gone")

    assert reason(answer(asked, alive=dead)) == (503, "no_detector")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/predict", (405, "wrong_method")),
        ("PUT", "/predict", (405, "wrong_method")),
        ("POST", "/health", (405, "wrong_method")),
        ("GET", "/", (404, "no_such_path")),
        ("GET", "/predict/../../etc/passwd", (404, "no_such_path")),
    ],
)
def test_other_paths_and_methods(method, path, expected):
    assert reason(answer(Asked(method=method, path=path))) == expected


def test_metrics_count_what_was_answered():
    async def scene():
        one = gate()
        for body in (image(), image(), b"no image"):
            await one.answer(Asked(body))
        return await one.answer(Asked(path="/metrics", method="GET"))

    lines = asyncio.run(scene()).body.decode().splitlines()
    for line in (
        'orchestrator_requests_total{status="200"} 2.0',
        'orchestrator_requests_total{status="422"} 1.0',
        "orchestrator_detections_total 6.0",
        "orchestrator_predict_seconds_count 2.0",
        "orchestrator_batch_images_sum 4.0",
    ):
        assert line in lines


def test_only_loopback_goes_without_a_token():
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert token_digest(None, "127.0.0.1") is None
    for host in ("0.0.0.0", "::", "10.0.0.1"):
        assert not is_loopback(host)
        assert token_digest(TOKEN, host) is not None
        with pytest.raises(SecurityError, match="--token-file"):
            token_digest(None, host)
    with pytest.raises(ConfigError, match="expected an IP address"):
        is_loopback("example.org")


@pytest.mark.parametrize("token", ["", "short", "sixteen chars wi", "ünbequem" * 3, "a\nb" * 9])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    with pytest.raises(SecurityError, match="openssl rand"):
        token_digest(token, "127.0.0.1")
