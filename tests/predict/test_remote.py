"""Images in an object store: a store in memory's place is a folder; one is on a socket."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs
import pytest

from orchestrator.cli.main import main
from orchestrator.data.decode import BadImageError, read_image
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.predict import remote
from orchestrator.predict.draw_predictions import draw_predictions
from orchestrator.predict.inputs import Picture, digest_of, list_pictures, read_pictures
from orchestrator.predict.remote import list_remote
from orchestrator.storage.address import Place, is_remote
from tests.support.buckets import fresh_location


@pytest.fixture
def bucket(small_run, tmp_path, monkeypatch) -> Path:
    """A folder that answers as ``s3://bucket``, with the 19 images below ``images``."""
    folder = tmp_path / "bucket"
    (folder / "images" / "deeper").mkdir(parents=True)
    for path in (small_run.parent / "squares" / "images").iterdir():
        (folder / "images" / path.name).write_bytes(path.read_bytes())
    (folder / "images" / "notes.md").write_text("no image")
    (folder / "images" / "deeper" / "x.png").write_bytes(b"")
    (folder / "images" / "odd%20name #1.png").write_bytes((folder / "images/100.png").read_bytes())
    local = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(remote, "_filesystem", lambda uri: local)
    return folder


def test_a_uri_taken_apart():
    place = Place.of("s3://id:secret@bucket/a%20b/c#1.png?region=x&scheme=http")
    assert (place.scheme, place.account, place.path, place.options) == (
        "s3",
        "id:secret",
        "bucket/a%20b/c#1.png",
        "region=x&scheme=http",
    )
    assert place.plain == "s3://bucket/a%20b/c#1.png"
    assert place.at("bucket/d") == "s3://id:secret@bucket/d?region=x&scheme=http"
    assert [is_remote(word) for word in ("s3://b/k", "gs://b", "http://x/y", "s3:/b", "a.jpg")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_images_folders_and_patterns(bucket):
    options = "?region=x"
    found = list_remote(f"s3://bucket/images/{options}", (".png",))
    assert len(found) == 20
    assert found[0] == f"s3://bucket/images/100.png{options}"
    assert found == sorted(found)
    assert list_remote("s3://bucket/images", (".png",)) == [uri.partition("?")[0] for uri in found]
    assert len(list_remote("s3://bucket/images/20*.png", (".png",))) == 7
    assert list_remote("s3://bucket/images/notes.md", (".png",)) == ["s3://bucket/images/notes.md"]
    for nothing in ("s3://bucket/none", "s3://bucket/images/z*", "s3://bucket/imag"):
        with pytest.raises(DataError, match="no object of this name"):
            list_remote(nothing, (".png",))


def test_pixels_are_those_of_the_file(bucket):
    pictures = list_pictures(["s3://id:secret@bucket/images?region=x", str(bucket / "images")])
    ours = {Path(picture.key).name: pixels for picture, pixels in read_pictures(pictures[:20])}
    for name, pixels in ours.items():
        assert (pixels == read_image(bucket / "images" / name)).all()
    assert "s3://bucket/images/odd%20name #1.png" in [picture.key for picture in pictures]
    assert not any("secret" in picture.key for picture in pictures)


def test_what_cannot_be_used_is_named_without_secrets(bucket):
    (bucket / "images" / "torn.png").write_bytes((bucket / "images/100.png").read_bytes()[:90])
    uris = [f"s3://id:secret@bucket/images/{name}" for name in ("torn.png", "gone.png")]
    for _, problem in read_pictures([Picture(uri) for uri in uris]):
        assert isinstance(problem, BadImageError)
        assert str(problem).startswith("s3://bucket/images/")
        assert "secret" not in str(problem)
    with pytest.raises(DataError, match=r"^s3://bucket/images/gone.png: there is no such object"):
        digest_of([Picture(uris[1])])


def test_an_object_that_changed_is_another_prediction(bucket):
    pictures = list_pictures(["s3://bucket/images"])
    before = digest_of(pictures)
    assert digest_of(pictures) == before
    (bucket / "images" / "100.png").write_bytes(b"other")
    assert digest_of(pictures) != before


def test_predicting_from_a_bucket_is_predicting_from_a_folder(small_run, bucket, tmp_path):
    trees = []
    for number, where in enumerate(("s3://bucket/images/2*?region=x", str(bucket / "images/2*"))):
        out, drawn = tmp_path / f"{number}.json", tmp_path / f"drawn-{number}"
        words = ["--output", str(out), "--draw", str(drawn)]
        assert main(["predict", str(small_run), where, *words]) == 0
        tree = json.loads(out.read_text())
        trees.append({Path(key).name: entry for key, entry in tree.items()})
        assert len(list(drawn.iterdir())) == 7
    assert trees[0] == trees[1]
    assert draw_predictions([], None, tmp_path / "none", threshold=0.5).pictures == ()


def test_options_and_stores_that_are_none():
    with pytest.raises(ConfigError, match=r"^s3://bucket: its options cannot be used"):
        list_remote("s3://bucket/x?colour=red&region=us-east-1", (".png",))


def test_a_store_that_does_not_answer_is_named(monkeypatch):
    class Silent:
        def get_file_info(self, path):
            raise OSError("no connection")

    monkeypatch.setattr(remote, "_filesystem", lambda uri: Silent())
    with pytest.raises(StorageError, match=r"s3://bucket/x: the store cannot be asked .*Next:"):
        list_remote("s3://bucket/x", (".png",))


def test_a_store_that_falls_silent_loses_no_picture(bucket, small_run, tmp_path, monkeypatch):
    out = tmp_path / "p.json"
    words = ["predict", str(small_run), "s3://bucket/images/2*", "--output", str(out)]

    class Silent:
        def __init__(self, store):
            self.store = store

        def open_input_file(self, path):
            if path.endswith("203.png"):
                raise OSError("no connection")
            return self.store.open_input_file(path)

        def __getattr__(self, name):
            return getattr(self.store, name)

    store = remote._filesystem("")
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_filesystem", lambda uri: Silent(store))
        assert main(words) == StorageError.exit_code
    assert not out.exists()
    assert main(words) == 0
    assert len(json.loads(out.read_text())) == 7


def test_predicting_over_the_s3_protocol(small_run, tmp_path, monkeypatch):
    location = fresh_location(monkeypatch)
    store, folder = pyarrow.fs.FileSystem.from_uri(location)
    local = small_run.parent / "squares" / "images"
    for path in local.iterdir():
        with store.open_output_stream(f"{folder}/{path.name}") as stream:
            stream.write(path.read_bytes())
    out = tmp_path / "p.json"
    words = [location, "--output", str(out)]
    assert main(["predict", str(small_run), *words]) == 0
    tree = {Path(key).name: entry for key, entry in json.loads(out.read_text()).items()}
    assert main(["predict", str(small_run), str(local), "--output", str(out)]) == 0
    assert tree == {Path(k).name: entry for k, entry in json.loads(out.read_text()).items()}
