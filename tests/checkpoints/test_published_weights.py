"""Weights by name: torchvision's addresses, a server of our own, and files that are not theirs."""

from __future__ import annotations

import hashlib
import io
import resource
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2

from orchestrator.checkpoints import published
from orchestrator.checkpoints.initial_weights import find_initial, load_initial
from orchestrator.checkpoints.published import MIRROR, Published, find_published, is_within_reach
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2}
data: {train: {images: a, annotations: b}, val: {images: a, annotations: b}}
train: {epochs: 1, batch_size: 4, optimizer: {name: sgd, lr: 0.001}}
"""


class Server(ThreadingHTTPServer):
    """Files by name, with the length each is announced with; counts what was asked for."""

    files: dict[str, tuple[bytes, int]]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.asked.append(self.path)
        body, length = server.files.get(self.path, (b"", -1))
        self.send_response(404 if length < 0 else 200)
        self.send_header("Content-Length", str(max(0, length)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror on this machine, and an empty cache."""
    with Server(("127.0.0.1", 0), Handler) as found:
        found.files, found.asked = {}, []
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{found.server_address[1]}/models/")
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ssd300_vgg16", "ssd300_vgg16_coco-b556d3b4.pth"),
        ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        ("resnet50", "resnet50-11ad3fa6.pth"),
        ("resnet50.IMAGENET1K_V1", "resnet50-0676ba61.pth"),
        ("vgg16", "vgg16-397923af.pth"),
        ("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth"),
    ],
)
def test_addresses_are_those_published(name: str, file: str) -> None:
    url = f"https://download.pytorch.org/models/{file}"
    assert find_published(f"torchvision:{name}") == Published(url, file[-12:-4])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ssd300_vgg", "did you mean 'torchvision:ssd300_vgg16'"),
        ("", "allowed after torchvision: are ssd300_vgg16"),
        ("vgg16.IMAGENET1K_FEATURES", "allowed after torchvision:vgg16. are IMAGENET1K_V1$"),
    ],
)
def test_unknown_names_say_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_published(f"torchvision:{name}")


@pytest.mark.parametrize("address", ["https://host/resnet50.pth", "s3://bucket/runs/a"])
def test_an_address_is_no_path(address: str) -> None:
    with pytest.raises(ConfigError, match=f"found '{address}'.*Next: copy it to a folder that"):
        find_initial(address)


def test_a_run_begins_with_what_was_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the published form, of which this program knows the names."""
    torch.manual_seed(3)
    state = mobilenet_v2().state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    sha = hashlib.sha256(body).hexdigest()
    name = f"mobilenet_v2-{sha[:8]}.pth"
    server.files[f"/models/{name}"] = body, len(body)
    there = Published(f"https://download.pytorch.org/models/{name}", sha[:8])
    monkeypatch.setattr(published, "find_published", lambda _: there)

    assert is_within_reach("torchvision:mobilenet_v2")
    found = find_initial("torchvision:mobilenet_v2")
    assert found.path == str(tmp_path / "cache" / "torch" / "hub" / "checkpoints" / name)
    assert (found.sha256, found.kind) == (sha, "file")
    assert find_initial("torchvision:mobilenet_v2") == found
    assert server.asked == [f"/models/{name}"] * 2  # HEAD, GET, and then from the cache
    assert [path.name for path in Path(found.path).parent.iterdir()] == [name]

    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT)
    loaded = load_initial(found, load_experiment(file).experiment, LabelMap(("a", "b"), (0, 1)))
    assert loaded.report.layout == "torchvision_mobilenet_v2"
    stem = loaded.fitted.tensors["backbone.features_1.0.features.0.weight"]
    assert torch.equal(stem, state["features.0.0.weight"])
    target = tmp_path / "converted.safetensors"
    convert = ["convert", "weights", "torchvision:mobilenet_v2", str(target)]
    assert main([*convert, "--to", "ssd300_mobilenet_v2", "--json"]) == 0
    assert target.is_file()

    Path(found.path).write_bytes(body + b"!")
    with pytest.raises(DataError, match=f"published with {sha[:8]}"):
        find_initial("torchvision:mobilenet_v2")


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"other bytes", 11, "has sha256 [0-9a-f]{16}, but .* is published with 7ebf99e0"),
        (b"half", 8, r"(ended after 4 of 8 bytes|IncompleteRead)"),
        (b"", -1, "it answers 404"),
    ],
)
def test_what_is_not_whole_leaves_nothing(
    body: bytes, length: int, message: str, server: Server, tmp_path: Path
) -> None:
    server.files["/models/mobilenet_v2-7ebf99e0.pth"] = body, length
    with pytest.raises(DataError, match=message):
        find_initial("torchvision:mobilenet_v2")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_a_network_it_says_where_the_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")  # discard: nothing listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    assert not is_within_reach("torchvision:resnet50")
    with pytest.raises(DataError) as caught:
        find_initial("torchvision:resnet50")
    assert "from http://127.0.0.1:9/resnet50-11ad3fa6.pth (" in str(caught.value)
    assert f"put it at {place}" in str(caught.value)


def test_a_disk_that_does_not_take_it_is_storage(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"x" * 200_000
    sha = hashlib.sha256(body).hexdigest()
    name = f"mobilenet_v2-{sha[:8]}.pth"
    server.files[f"/models/{name}"] = body, len(body)
    there = Published(f"https://download.pytorch.org/models/{name}", sha[:8])
    monkeypatch.setattr(published, "find_published", lambda _: there)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = r"torch/hub/checkpoints cannot be written to \((.*)\)\. Next: make room there"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(StorageError, match=said) as full:
            find_initial("torchvision:mobilenet_v2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in str(full.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    shutil.rmtree(tmp_path / "cache" / "torch")
    (tmp_path / "cache" / "torch").write_text("in its place")
    with pytest.raises(StorageError, match=said):
        find_initial("torchvision:mobilenet_v2")
