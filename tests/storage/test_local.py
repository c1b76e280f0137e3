"""The storage primitives: local folders, and object stores through pyarrow."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from orchestrator.errors import ConfigError, SecurityError, StorageError
from orchestrator.storage.address import open_store
from orchestrator.storage.bucket import ObjectStorage, open_storage
from orchestrator.storage.disk_errors import run_folder_errors
from orchestrator.storage.folders import LocalFolder
from orchestrator.storage.local import CHUNK_BYTES, LocalStorage, Storage, temporary


def local(path: Path) -> Storage:
    return LocalStorage(path / "run")


def objects(path: Path) -> Storage:
    path.joinpath("run").mkdir()
    return ObjectStorage(pyarrow.fs.LocalFileSystem(), str(path / "run"), "s3://bucket/run")


@pytest.fixture(params=[local, objects], ids=["local", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path)


def names(storage: Storage, key: str) -> list[str]:
    return [entry.name for entry in storage.list(key)]


def test_a_file_is_written_and_read_in_pieces(storage: Storage) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 17)
    storage.make_dir("a")
    storage.write_file("a/b", [content[:5], memoryview(content)[5:]])
    pieces = list(storage.read("a/b"))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert [(e.name, e.is_dir, e.size) for e in storage.list("a")] == [("b", False, len(content))]


def test_a_file_is_replaced_whole_and_nothing_is_left_over(storage: Storage) -> None:
    storage.make_dir("a")
    storage.replace_file("a/pointer", b"one")
    storage.replace_file("a/pointer", b"second")
    assert storage.read_file("a/pointer", limit=10) == b"second"
    assert names(storage, "a") == ["pointer"]


def test_reading_more_than_expected_is_refused(storage: Storage) -> None:
    storage.make_dir("a")
    storage.write_file("a/b", [b"12345"])
    assert storage.read_file("a/b", limit=5) == b"12345"
    with pytest.raises(StorageError, match="more than the 4 bytes"):
        storage.read_file("a/b", limit=4)


def test_listing_shows_folders_and_a_missing_one_is_empty(storage: Storage) -> None:
    assert storage.list("nowhere") == []
    storage.make_dir("a")
    storage.make_dir("a/inner")
    storage.write_file("a/file", [b"x"])
    assert [(e.name, e.is_dir) for e in storage.list("a")] == [("file", False), ("inner", True)]
    assert "a" in names(storage, "")


def test_a_tree_is_removed_and_the_chosen_file_goes_first(storage: Storage) -> None:
    storage.make_dir("a")
    storage.make_dir("a/deep")
    for name in ("a/1", "a/MANIFEST.json", "a/z", "a/deep/x"):
        storage.write_file(name, [b"x"])
    order: list[str] = []
    unlink = storage.unlink

    def recorded(key: str) -> None:
        order.append(key)
        unlink(key)

    storage.unlink = recorded  # type: ignore[method-assign]
    storage.remove_tree("a", first="MANIFEST.json")
    assert order[0] == "a/MANIFEST.json"
    assert names(storage, "") == []


def test_a_missing_file_says_so(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        list(storage.read("a"))
    with pytest.raises(FileNotFoundError):
        storage.unlink("a")


@pytest.mark.parametrize("key", ["../x", "a/../b", "/etc/passwd", "a//b", "./a", "a/", "a\0b"])
def test_keys_that_lead_out_are_refused(storage: Storage, key: str) -> None:
    with pytest.raises(SecurityError, match="not a relative path inside"):
        list(storage.read(key))
    with pytest.raises(SecurityError):
        storage.create(key)


class TestLocal:
    def test_the_run_folder_is_private_and_made_with_its_parents(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path / "runs" / "mine")
        assert storage.list("") == []
        assert storage.make_dir("ckpt") is True
        assert storage.make_dir("ckpt") is False
        assert stat.S_IMODE((tmp_path / "runs" / "mine").stat().st_mode) == 0o700

    def test_what_goes_away_meanwhile_hides_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where scores are replaced in a commit that somebody else looks at."""
        scandir = os.scandir
        for name in ("a", "b", "c"):
            (tmp_path / name).write_bytes(b"xyz")

        @contextmanager
        def crowded(place: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
            with scandir(place) as found:
                first, second, *others = found
                (tmp_path / second.name).unlink()
                gone.append(second.name)
                yield iter([first, second, *others])

        gone: list[str] = []
        monkeypatch.setattr(os, "scandir", crowded)
        entries = LocalStorage(tmp_path).list("")
        sizes = LocalFolder(tmp_path).sizes()
        monkeypatch.undo()
        assert [entry.name for entry in entries] == sorted({"a", "b", "c"} - {gone[0]})
        assert {entry.size for entry in entries} == {3}
        assert set(sizes) == {"a", "b", "c"} - set(gone)

    def test_a_file_is_never_written_over(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        storage.write_file("a", [b"1"])
        with pytest.raises(FileExistsError):
            storage.create("a")

    def test_renaming_replaces_files_and_not_full_folders(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        storage.write_file("old", [b"old"])
        storage.write_file("new", [b"new"])
        storage.rename("new", "old")
        assert storage.read_file("old", limit=9) == b"new"
        for folder in ("x", "y"):
            storage.make_dir(folder)
            storage.write_file(f"{folder}/file", [folder.encode()])
        with pytest.raises(OSError, match="not empty"):
            storage.rename("x", "y")

    def test_symbolic_links_are_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        run = tmp_path / "run"
        storage = LocalStorage(run)
        storage.make_dir("ckpt")
        (run / "link").symlink_to(outside / "secret")
        (run / "folder").symlink_to(outside)
        with pytest.raises(OSError, match="symbolic links"):
            list(storage.read("link"))
        with pytest.raises(OSError, match="File exists"):
            storage.create("link")
        for attack in (
            lambda: storage.create("folder/new"),
            lambda: list(storage.read("folder/secret")),
            lambda: storage.unlink("folder/secret"),
            lambda: storage.make_dir("folder/new"),
            lambda: storage.list("folder"),
            lambda: storage.rename("folder/secret", "mine"),
        ):
            with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                attack()
        assert [entry.is_dir for entry in storage.list("") if entry.name == "folder"] == [False]
        storage.make_dir("tree")
        (run / "tree" / "link").symlink_to(outside)
        storage.remove_tree("tree")
        assert (outside / "secret").read_bytes() == b"secret"

    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="not a regular file"):
            list(LocalStorage(tmp_path).read("pipe"))

    def test_syncing_reaches_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []

        def fsync(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115

        monkeypatch.setattr(os, "fsync", fsync)
        storage = LocalStorage(tmp_path / "run")
        storage.make_dir("a")
        storage.write_file("a/b", [b"x"])
        storage.sync_dir("a")
        storage.sync_dir("")
        run = tmp_path / "run"
        assert synced == [str(path) for path in (tmp_path, run / "a" / "b", run / "a", run)]

    def test_no_descriptor_stays_open(self, tmp_path: Path) -> None:
        storage = LocalStorage(tmp_path)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for number in range(20):
            storage.make_dir(f"{number}")
            storage.replace_file(f"{number}/file", b"x")
            storage.sync_dir(f"{number}")
            storage.read_file(f"{number}/file", limit=9)
            storage.rename(f"{number}/file", f"{number}/other")
            storage.remove_tree(f"{number}")
            with pytest.raises(OSError, match="No such file"):
                storage.create("nowhere/file")
            with pytest.raises(OSError, match="No such file"):
                next(storage.read("nowhere"))
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208

    def test_temporary_names_are_fresh_and_beside(self) -> None:
        first, second = temporary("ckpt/000000001"), temporary("ckpt/000000001")
        assert first != second
        assert first.startswith("ckpt/000000001.tmp-")


class TestLocations:
    def test_paths_and_file_uris_are_folders(self, tmp_path: Path) -> None:
        for location in (str(tmp_path), f"file://{tmp_path}"):
            storage = open_storage(location)
            assert isinstance(storage, LocalStorage)
            assert storage.describe("a") == str(tmp_path / "a")

    def test_a_bucket_is_an_object_store(self) -> None:
        storage = open_storage(
            "s3://bucket/some/prefix?region=us-east-1&endpoint_override=127.0.0.1:9&scheme=http"
        )
        assert isinstance(storage, ObjectStorage)
        assert isinstance(storage.filesystem, pyarrow.fs.S3FileSystem)
        assert storage.base == "bucket/some/prefix"
        assert storage.describe("ckpt") == "s3://bucket/some/prefix/ckpt"

    @pytest.mark.parametrize("location", ["ftp://host/x", "s3://", "s3:///prefix", "hdfs://x/y"])
    def test_other_places_are_refused(self, location: str) -> None:
        with pytest.raises(ConfigError, match=r"allowed: a path, s3://bucket/prefix"):
            open_storage(location)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="Unexpected query parameter"):
            open_storage("s3://bucket/x?colour=red&region=us-east-1")


@pytest.mark.parametrize(
    ("uri", "limit"),
    [("gs://b/x", 10), ("gs://b/x?scheme=http", 10), ("gs://b/x?retry_limit_seconds=40", 40)],
)
def test_a_store_of_google_that_does_not_answer_is_given_up(uri: str, limit: int) -> None:
    filesystem, path = open_store(uri)
    assert path == "b/x"
    # What pickling takes along are all of its options.
    options = filesystem.__reduce__()[1][0]
    assert options["retry_time_limit"].total_seconds() == limit


class _Unreachable:
    """A file system whose store has gone away."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> Any:
            raise OSError(f"When calling {name}: AWS Error NETWORK_CONNECTION: curlCode: 7")

        return fail


@pytest.mark.parametrize(
    "use",
    [
        lambda storage: storage.list("ckpt"),
        lambda storage: storage.make_dir("ckpt"),
        lambda storage: storage.read_file("run.json", limit=9),
        lambda storage: storage.write_file("run.json", [b"1"]),
        lambda storage: storage.unlink("run.json"),
        lambda storage: storage.remove_tree("ckpt"),
    ],
    ids=["list", "make", "read", "write", "unlink", "remove"],
)
def test_a_store_that_goes_away_is_no_bug_of_the_program(
    use: Callable[[Storage], object], tmp_path: Path
) -> None:
    storage = ObjectStorage(_Unreachable(), "bucket/run", "s3://bucket/run")
    said = r"s3://bucket/run.*: the store cannot be asked \(.*NETWORK_CONNECTION.*Next: see that"
    with pytest.raises(StorageError, match=said), run_folder_errors(tmp_path):
        use(storage)
