"""``orchestrator serve``: the answers of ``predict``, over HTTP, whatever else is asked."""

from __future__ import annotations

import asyncio
import builtins
import importlib.util
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.cli.main import main
from orchestrator.data.tiling import Tiles
from orchestrator.errors import ConfigError, SecurityError
from orchestrator.predict.loading import load_detector
from orchestrator.predict.predictor import DetectOptions
from orchestrator.serving.service import Limits, Query
from orchestrator.serving.serving import BatchDetector, ServeJob

TOKEN = "a-token-for-tests-0123"

needs_serve = pytest.mark.skipif(
    importlib.util.find_spec("grpc_reflection") is None,
    reason="Ray Serve is not installed: pip install -e '.[serve]'",
)


@pytest.fixture(scope="module")
def pictures(small_run) -> list[Path]:
    return sorted((small_run.parent / "squares" / "images").glob("*.png"))


@pytest.fixture(scope="module")
def predicted(small_run, pictures, tmp_path_factory) -> dict:
    """What ``orchestrator predict`` writes."""
    out = tmp_path_factory.mktemp("predicted") / "p.json"
    words = [str(path) for path in pictures]
    assert main(["predict", str(small_run), *words, "--output", str(out), "--batch", "4"]) == 0
    return json.loads(out.read_text())


def job(small_run: Path, **limits: int) -> ServeJob:
    loaded = load_detector(small_run)
    return ServeJob(
        loaded=loaded,
        how=DetectOptions(loaded.resolved.experiment.detector.postprocess),
        batch_size=4,
        wait_seconds=0.0,
        threads=1,
        limits=Limits(**limits),
        token_sha256=None,
    )


def test_answers_are_those_of_predict_whoever_shares_the_batch(small_run, pictures, predicted):
    detector = BatchDetector(job(small_run))
    rng = np.random.default_rng(3)
    queries = [Query(str(path), path.read_bytes()) for path in pictures]
    for count in (1, 2, 3, 4, 4, 4):
        chosen = [queries[i] for i in rng.choice(len(queries), count)]
        answers = detector.answer(chosen, detector.read(chosen))
        for query, answer in zip(chosen, answers, strict=True):
            assert answer.status == 200
            assert answer.batch == count
            assert json.loads(answer.body) == {query.name: predicted[query.name]}
            assert answer.detections == len(predicted[query.name]["predictions"])


def test_a_damaged_image_spoils_no_neighbour(small_run, pictures, predicted):
    good = Query(str(pictures[0]), pictures[0].read_bytes())
    # The header is whole, so only decoding shows that the pixels are missing.
    torn = Query("torn", good.data[:600])
    large = Query("large", cv2.imencode(".png", np.zeros((300, 300, 3), np.uint8))[1].tobytes())
    detector = BatchDetector(job(small_run, max_pixels=200 * 200))
    for queries in ([torn, good, large], [torn]):
        answers = detector.answer(queries, detector.read(queries))
        status = {query.name: answer.status for query, answer in zip(queries, answers, strict=True)}
        expected = {"torn": 422, "large": 413, good.name: 200}
        assert status == {query.name: expected[query.name] for query in queries}
    answer = detector.answer([good], detector.read([good]))[0]
    assert json.loads(answer.body) == {good.name: predicted[good.name]}
    # The good one is a tile, the large one far more than are allowed.
    tiny = job(small_run)
    how = replace(tiny.how, tiles=Tiles((160, 160), 159))
    detector = BatchDetector(replace(tiny, how=how))
    answers = detector.answer([good, large], detector.read([good, large]))
    assert [answer.status for answer in answers] == [200, 413]


def test_other_machines_need_a_token(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ORCHESTRATOR_SERVE_TOKEN", raising=False)
    # Refused before the detector is even looked for.
    assert main(["serve", "no-such-run", "--host", "0.0.0.0"]) == SecurityError.exit_code
    assert "it has no token" in capsys.readouterr().err
    (tmp_path / "token").write_text("short\n")
    words = ["serve", "no-such-run", "--token-file", str(tmp_path / "token")]
    for mode, said in ((0o640, "chmod 600"), (0o604, "chmod 600"), (0o600, "has 5 characters")):
        (tmp_path / "token").chmod(mode)
        assert main(words) == SecurityError.exit_code
        assert said in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "nothing")]) == ConfigError.exit_code


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b"], "expected one detector, found 2"),
        (["a", "--port", "70000"], "--port: found 70000, allowed"),
        (["a", "--max-image-mib", "0"], "--max-image-mib: found 0"),
        (["a", "--wait-ms", "nan"], "--wait-ms: found nan"),
        (["a", "--host", "example.org"], "expected an IP address"),
    ],
)
def test_arguments_that_are_refused(words, message, capsys):
    assert main(["serve", *words]) == ConfigError.exit_code
    assert message in capsys.readouterr().err


def test_without_the_extra_it_says_which_one(small_run, monkeypatch, capsys):
    true = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "ray.serve":
            raise ModuleNotFoundError("No module named 'watchfiles'", name="watchfiles")
        return true(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["serve", str(small_run)]) == ConfigError.exit_code
    assert "watchfiles" in (message := capsys.readouterr().err)
    assert "pip install -c constraints.txt -e '.[serve]'" in message


@contextmanager
def serving(
    run: Path,
    home: Path,
    *words: str,
    ending: Callable[[subprocess.Popen[str]], None] = lambda server: server.terminate(),
    code: int = 0,
    patience: float = 240,
) -> Iterator[str]:
    """``orchestrator serve`` in a process of its own, ended in some way; its address."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "ORCHESTRATOR_SERVE_TOKEN": TOKEN,
    }
    environment.pop("RAY_ADDRESS", None)
    options = ("--port", "0", "--batch", "4")
    log = home / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", "serve", str(run), *options, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        watchdog = threading.Timer(patience, server.kill)
        watchdog.start()
        try:
            assert server.stdout is not None
            lines = iter(server.stdout.readline, "")
            url = next(
                (m[1] for m in (re.match("at (http:.*)", line) for line in lines) if m), None
            )
            assert url is not None, log.read_text()
            yield url
            ending(server)
            assert server.wait(60) == code, log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            watchdog.cancel()
            server.kill()
            server.wait()


def malformed(good: bytes, number: int) -> tuple[bytes, int]:
    """A body that cannot be answered, and the status that says so."""
    big = cv2.imencode(".png", np.zeros((1001, 1001), np.uint8))[1].tobytes()
    kinds = [
        (b"", 400),
        (b"no image %d" % number, 422),
        (good[: len(good) // 2], 422),
        (good[:40], 422),
        (big, 413),
        (bytes(2 * 2**20), 413),
        (b"GIF89a" + bytes(number % 50), 422),
    ]
    return kinds[number % len(kinds)]


async def ask_all(url: str, good: dict[str, bytes], count: int) -> list[tuple[str, int, int, str]]:
    """Name, expected status, status and body of requests that are all made at once."""
    import aiohttp

    names = list(good)
    header = {"Authorization": f"Bearer {TOKEN}"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=500)
    async with aiohttp.ClientSession(connector=connector, headers=header, timeout=timeout) as own:

        async def ask(number: int) -> tuple[str, int, int, str]:
            name = names[number % len(names)]
            body, expected = good[name], 200
            if number % 10 == 7:
                body, expected = malformed(good[name], number // 10)
            async with own.post(f"{url}/predict", params={"name": name}, data=body) as response:
                return name, expected, response.status, await response.text()

        return await asyncio.gather(*(ask(number) for number in range(count)))


def require_right(found: list[tuple[str, int, int, str]], predicted: dict) -> None:
    wrong = [(name, expected, status) for name, expected, status, _ in found if expected != status]
    assert wrong == []
    for name, _, status, body in found:
        tree = json.loads(body)
        if status == 200:
            assert tree == {name: predicted[name]}
        else:
            assert tree["error"]["status"] == status
            assert tree["error"]["message"]


@needs_serve
@pytest.mark.ray
def test_served_answers_health_metrics_and_refusals(small_run, pictures, predicted, tmp_path):
    good = {str(path): path.read_bytes() for path in pictures}
    with serving(small_run, tmp_path, "--max-image-mib", "1", "--max-megapixels", "1") as url:
        require_right(asyncio.run(ask_all(url, good, 60)), predicted)
        asyncio.run(require_the_rest(url))
        # A client that goes away in the middle of its image.
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
                b"Authorization: Bearer %s\r\n\r\nabc" % TOKEN.encode()
            )
        require_right(asyncio.run(ask_all(url, good, 9)), predicted)


@needs_serve
@pytest.mark.ray
def test_who_is_in_is_answered_before_the_end(small_run, pictures, predicted, tmp_path):
    good = {str(path): path.read_bytes() for path in pictures}
    found: list[tuple[str, int, int, str]] = []

    def end_under_load(server: subprocess.Popen[str]) -> None:
        asking = threading.Thread(target=lambda: found.extend(asyncio.run(ask_all(url, good, 40))))
        asking.start()
        time.sleep(0.5)
        server.terminate()
        asking.join()

    with serving(small_run, tmp_path, "--max-image-mib", "1", ending=end_under_load) as url:
        require_right(asyncio.run(ask_all(url, good, 1)), predicted)
    assert len(found) == 40
    require_right(found, predicted)


@needs_serve
@pytest.mark.ray
def test_without_its_ray_it_ends_and_says_so(small_run, tmp_path):
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; extra `dev`")

    def kill_head(server: subprocess.Popen[str]) -> None:
        children = psutil.Process(server.pid).children(recursive=True)
        (head,) = (one for one in children if "gcs_server" in Path(one.cmdline()[0]).name)
        head.kill()

    with serving(small_run, tmp_path, ending=kill_head, code=75):
        pass
    assert (
        "the Ray that answers is gone: its head has ended" in (tmp_path / "serve.log").read_text()
    )


async def require_the_rest(url: str) -> None:
    import aiohttp

    header = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession() as own:
        async with own.get(f"{url}/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with own.get(f"{url}/metrics") as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
        async with own.get(f"{url}/metrics", headers=header) as response:
            text = await response.text()
            assert 'orchestrator_requests_total{status="200"} 5' in text
            assert "orchestrator_predict_seconds_count 54.0" in text
        async with own.get(f"{url}/about", headers=header) as response:
            about = await response.json()
            assert [kind["category_id"] for kind in about["classes"]] == [3, 70]
            assert about["max_bytes"] == 2**20
        async with own.post(f"{url}/health") as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        form = aiohttp.FormData()
        form.add_field("image", b"bytes", filename="a.png")
        async with own.post(f"{url}/predict", data=form, headers=header) as response:
            assert response.status == 415


@needs_serve
@pytest.mark.ray
@pytest.mark.slow
def test_two_thousand_at_once_a_tenth_of_them_malformed(small_run, pictures, predicted, tmp_path):
    good = {str(path): path.read_bytes() for path in pictures}
    limits = ["--max-image-mib", "1", "--max-megapixels", "1"]
    with serving(small_run, tmp_path, *limits, "--workers", "2") as url:
        found = asyncio.run(ask_all(url, good, 2000))
        require_right(found, predicted)
        assert sum(status != 200 for _, _, status, _ in found) == 200
        require_right(asyncio.run(ask_all(url, good, 50)), predicted)


@needs_serve
@pytest.mark.ray
@pytest.mark.slow
def test_rude_clients_cost_little_and_others_are_answered(small_run, pictures, predicted, tmp_path):
    psutil = pytest.importorskip("psutil", reason="psutil is not installed; extra `dev`")
    seconds = float(os.environ.get("RUDE_SECONDS", "300"))
    good = {str(path): path.read_bytes() for path in pictures}

    def memory(server: subprocess.Popen[str]) -> float:
        """MiB of the server and all processes of its Ray; what they share counts once."""
        found = 0
        for process in [one := psutil.Process(server.pid), *one.children(recursive=True)]:
            with suppress(psutil.Error):
                found += process.memory_full_info().pss
        return found / 2**20

    def be_rude(server: subprocess.Popen[str]) -> None:
        require_right(asyncio.run(ask_all(url, good, 60)), predicted)
        before = memory(server)
        words = [url.rpartition(":")[2], "500", str(seconds)]
        rude = subprocess.Popen(
            [sys.executable, "-m", "tests.support.rude_clients", *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        taken, most = [], 0.0
        while rude.poll() is None:
            began = time.monotonic()
            require_right(asyncio.run(ask_all(url, good, 1)), predicted)
            taken.append(time.monotonic() - began)
            if len(taken) % 10 == 0:
                most = max(most, memory(server))
            time.sleep(0.2)
        made = int(rude.communicate()[0])
        print(
            f"{made} rude connections, 500 at a time, {seconds:g} s: memory {most - before:+.0f} "
            f"MiB from {before:.0f}; {len(taken)} others answered after "
            f"{statistics.median(taken):.2f} s at the median, {max(taken):.2f} s at most"
        )
        assert made > 500
        assert most - before <= 100
        assert statistics.median(taken) <= 1
        server.terminate()

    limits = ["--max-image-mib", "1", "--max-megapixels", "1"]
    with serving(small_run, tmp_path, *limits, ending=be_rude, patience=seconds + 240) as url:
        pass
