"""Images in a bucket without shards, against the same images in a folder."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.cli._shared.source import read_source
from orchestrator.cli.main import main
from orchestrator.config.schema import DataConfig
from orchestrator.data import bucket_images
from orchestrator.data.bucket_images import BucketImages
from orchestrator.data.dataset import Dataset
from orchestrator.data.decoded_cache import DecodedCache
from orchestrator.data.doctor.examine import require_usable
from orchestrator.data.images import image_header
from orchestrator.data.readers.split import read_split
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.tiling import Tiles, tiled
from orchestrator.errors import DataError, SecurityError, StorageError
from tests.support.data_cases import assert_same_batch, make_plan, write_coco
from tests.support.s3_server import S3Server
from tests.support.shard_cases import shard_here

BUCKET = "photographs"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.buckets[BUCKET] = {}
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images, two of them below a folder with an umlaut, here and in the bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    folder = tmp_path / "set"
    write_coco(folder, 12)
    tree = json.loads((folder / "instances.json").read_text())
    (folder / "images" / "my dir").mkdir()
    for index, name in ((3, "my dir/ä 1.jpg"), (4, "my dir/100%.jpg")):
        (folder / "images" / f"{index:03d}.jpg").rename(folder / "images" / name)
        tree["images"][index]["file_name"] = name
    (folder / "instances.json").write_text(json.dumps(tree))
    objects = server.buckets[BUCKET] = {}
    for path in (folder / "images").rglob("*.jpg"):
        objects[f"train/{path.relative_to(folder / 'images').as_posix()}"] = path.read_bytes()
    objects["train-of-another/000.jpg"] = b"not this one"
    return folder


@pytest.fixture
def address(server: S3Server) -> str:
    host, port = server.server_address[:2]
    return f"s3://{BUCKET}/train?region=us-east-1&scheme=http&endpoint_override={host!s}:{port}"


def config(folder: Path, images: str, **fields: Any) -> DataConfig:
    split = {"images": images, "annotations": "instances.json"}
    tree = {"root": str(folder), "train": split, "val": split} | fields
    return DataConfig.model_validate_json(json.dumps(tree))


def read(folder: Path, images: str, **fields: Any) -> Dataset:
    section = config(folder, images, **fields)
    return read_split(section, section.train).dataset


def plan_of(folder: Path, data: Dataset) -> BatchPlan:
    return replace(make_plan(folder), train=data, val=data)


def assert_same_batches(one: BatchPlan, other: BatchPlan) -> None:
    for step in range(4):
        assert_same_batch(one.train_batch(step, 0, 1), other.train_batch(step, 0, 1))
    for index in range(one.eval_batch_count(1)):
        assert_same_batch(one.eval_batch_at(index, 0, 1), other.eval_batch_at(index, 0, 1))


def test_batches_are_those_of_the_same_images_in_a_folder(folder: Path, address: str) -> None:
    there, here = read(folder, address), read(folder, "images")
    assert (there.digest, there.content_digest) == (here.digest, here.content_digest)
    assert there.root == f"s3://{BUCKET}/train"
    assert_same_batches(plan_of(folder, there), plan_of(folder, here))
    assert require_usable(there, "train", 0.0) == require_usable(here, "train", 0.0)
    assert image_header(there, 3) == image_header(here, 3)


def test_tiles_and_decoded_images_that_are_kept(folder: Path, address: str) -> None:
    there, here = (tiled(read(folder, at), Tiles((32, 32), 8)) for at in (address, "images"))
    kept = replace(there, decoded=DecodedCache(str(folder.parent / "cache"), 10**8))
    plan = plan_of(folder, here)
    schedule = replace(plan.schedule, sample_ids=np.arange(len(here)))
    for data in (there, kept, kept):
        plans = (plan_of(folder, one) for one in (data, here))
        assert_same_batches(*(replace(one, schedule=schedule) for one in plans))


def test_what_the_node_keeps_is_not_fetched_again(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    request = BucketImages._request
    monkeypatch.setattr(
        BucketImages, "_request", lambda self, name: (asked.append(name), request(self, name))[1]
    )
    data = read(folder, address, cache=str(folder.parent / "cache"), keep_decoded=0.1)
    plan = plan_of(folder, data)
    plan.train_batch(0, 0, 1)
    assert sorted(asked) == sorted(data.files[i] for i in plan.schedule.samples(0).tolist())
    asked.clear()
    plan.train_batch(0, 0, 1)
    assert asked == []


def test_shards_of_them_are_those_of_the_folder(folder: Path, address: str, tmp_path: Path) -> None:
    places = []
    for name, images in (("there", address), ("here", "images")):
        places.append(tmp_path / name)
        assert shard_here(read(folder, images), str(places[-1])).found == 0
    files = [{path.name: path.read_bytes() for path in place.iterdir()} for place in places]
    assert files[0] == files[1]


def test_an_experiment_with_images_in_a_bucket_is_sharded_and_converted(
    folder: Path, address: str, tmp_path: Path
) -> None:
    section = config(folder, address).model_dump(mode="json", include={"root", "train", "val"})
    tree = {
        "name": "e",
        "detector": {"name": "ssd"},
        "data": section,
        "train": {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
    }
    experiment = tmp_path / "e.yaml"
    experiment.write_text(json.dumps(tree))
    arguments = argparse.Namespace(
        source=experiment, overrides=[], kind=None, split=[], classes=None, orientation=None
    )
    here = read(folder, "images")
    for name, result in read_source(arguments, from_files=True).items():
        written = shard_here(result.dataset, str(tmp_path / "shards" / name))
        assert (written.index.digest, written.unsound) == (here.digest, ())
    assert main(["convert", "data", str(experiment), str(tmp_path / "out"), "--to", "coco"]) == 0
    for name in here.files:
        original = folder / "images" / name
        (copy,) = (tmp_path / "out").rglob(name)
        assert copy.read_bytes() == original.read_bytes()


def test_images_that_are_not_there_are_named_with_what_may_be_meant(
    folder: Path, address: str, server: S3Server
) -> None:
    objects = server.buckets[BUCKET]
    objects["train/002.JPG"] = objects.pop("train/002.jpg")
    del objects["train/005.jpg"]
    section = config(folder, address)
    result = read_split(section, section.train)
    (finding,) = (one for one in result.findings if one.kind == "missing_image")
    assert finding.count == 2
    assert finding.examples == ("002.jpg (002.JPG is there, with capitals elsewhere)", "005.jpg")
    plan = plan_of(folder, result.dataset)
    replaced = {
        (sample, reason)
        for step in range(3)
        for _, sample, reason in plan.train_batch(step, 0, 1).replaced
    }
    gone = "there is no such object"
    assert replaced == {(n, f"s3://{BUCKET}/train/{n:03d}.jpg: {gone}") for n in (2, 5)}


def test_none_of_them_is_there(folder: Path, address: str) -> None:
    with pytest.raises(DataError, match=rf"none of the 12 images .* is in s3://{BUCKET}/tain;"):
        read(folder, address.replace("/train?", "/tain?"))


@pytest.mark.parametrize("name", ["../000.jpg", "/000.jpg", "a/../../000.jpg"])
def test_a_name_that_leads_out_is_refused(folder: Path, address: str, name: str) -> None:
    tree = json.loads((folder / "instances.json").read_text())
    tree["images"][7]["file_name"] = name
    (folder / "instances.json").write_text(json.dumps(tree))
    with pytest.raises(SecurityError, match="of the image folder s3://"):
        read(folder, address)


def test_a_store_that_fails_puts_no_other_image_in_the_place(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Down:
        def open_input_file(self, path: str) -> None:
            raise OSError("the network is unreachable")

    plan = plan_of(folder, read(folder, address))
    monkeypatch.setattr(bucket_images, "open_store", lambda location: (Down(), f"{BUCKET}/train"))
    with pytest.raises(StorageError, match=rf"s3://{BUCKET}/train/.*network is unreachable"):
        plan.train_batch(0, 0, 1)


@pytest.mark.parametrize(
    ("images", "fields", "said"),
    [
        ("ftp://host/images", {}, "allowed are a folder, s3://bucket/prefix or gs://"),
        ("s3:///images", {}, "allowed are a folder, s3://bucket/prefix or gs://"),
        ("s3://b/images", {"format": "yolo"}, r"convert them .* --to coco"),
        (
            "s3://b/images",
            {"sources": [{"images": "i", "annotations": "a"}]},
            "data.train.images is in a bucket",
        ),
        (
            "images",
            {"sources": [{"images": "s3://b/i", "annotations": "a"}]},
            r"data.sources.0.images is s3://b/i; allowed is a folder",
        ),
    ],
)
def test_where_they_cannot_be(images: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(Path("data"), images, **fields)
