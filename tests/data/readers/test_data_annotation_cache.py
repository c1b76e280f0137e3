"""Manifests in place of annotation files: used when they are of these very files, and only then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.data.findings import ReadResult
from orchestrator.data.readers import annotation_cache, fingerprint
from orchestrator.data.readers import split as readers
from orchestrator.data.readers.convert import convert, read_places
from orchestrator.data.readers.fingerprint import Source
from orchestrator.errors import DataError, SecurityError
from orchestrator.layouts.layout import FORMATS, Place
from orchestrator.layouts.recognise import find_layout
from orchestrator.runs.plan import make_plan
from tests.support.data_cases import textured, write_coco, write_image


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images in each format, a folder each; only to be copied."""
    folder = tmp_path_factory.mktemp("sets")
    write_coco(folder / "source", 6)
    source = Place(folder / "source" / "images", folder / "source" / "instances.json")
    for kind in FORMATS:
        convert(read_places("coco", {"train": source}, None), kind, folder / kind)
    return folder


@pytest.fixture(params=FORMATS)
def config(request: pytest.FixtureRequest, sets: Path, tmp_path: Path) -> DataConfig:
    """A copy of the set in one format, with a cache of its own beside it."""
    return copy_of(sets, request.param, tmp_path)


@pytest.fixture
def coco(sets: Path, tmp_path: Path) -> DataConfig:
    return copy_of(sets, "coco", tmp_path)


def copy_of(sets: Path, kind: str, folder: Path) -> DataConfig:
    root = folder / "set"
    shutil.copytree(sets / kind, root)
    (place,) = find_layout(root, kind, ["train"]).splits.values()
    split = SplitConfig(images=str(place.images), annotations=str(place.annotations))
    return DataConfig(
        format=kind, root=str(root), cache=str(folder / "cache"), train=split, val=split
    )


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Every time that annotation files are parsed."""
    times: list[Source] = []
    really = readers.parse

    def counted(source: Source) -> ReadResult:
        times.append(source)
        return really(source)

    monkeypatch.setattr(readers, "parse", counted)
    return times


def places(config: DataConfig) -> tuple[Path, Path]:
    images, annotations = config.train.files or ("", "")
    return Path(images), Path(annotations)


def kept(config: DataConfig) -> Path:
    """Keep a manifest; its folder."""
    manifest = readers.read_split(config, config.train, keep=True).manifest
    assert manifest is not None
    return manifest.parent


def read(config: DataConfig) -> ReadResult:
    return readers.read_split(config, config.train)


def same(one: ReadResult, other: ReadResult) -> bool:
    return (one.dataset.digest, one.dataset.root, one.findings) == (
        other.dataset.digest,
        other.dataset.root,
        other.findings,
    )


def rewrite(path: Path, old: str, new: str) -> None:
    """Other content of the same size, by a tool that keeps the time: stat tells nothing."""
    before = path.stat()
    text = path.read_text()
    assert old in text
    assert len(old) == len(new)
    path.write_text(text.replace(old, new, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_what_is_kept_is_what_was_parsed(config: DataConfig, parsed: list[Source]) -> None:
    raw = read(config)
    assert raw.manifest is None
    assert not Path(str(config.cache)).exists()
    folder = kept(config)
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "manifest.arrow"]
    assert len(parsed) == 2
    found = read(config)
    assert len(parsed) == 2
    assert same(found, raw)
    assert found.manifest == folder / "manifest.arrow"
    assert found.dataset.path(3) == raw.dataset.path(3)
    for index in range(6):
        for one, other in zip(
            found.dataset.training_boxes(index), raw.dataset.training_boxes(index), strict=True
        ):
            assert np.array_equal(one, other)
    # Mapped from the file, not copied into this process.
    data = found.dataset
    for array in (data.boxes_xywh, data.labels, data.areas, data.widths, data.files.text):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_keeping_again_takes_what_is_there(config: DataConfig, parsed: list[Source]) -> None:
    assert kept(config) == kept(config)
    assert len(parsed) == 1


def first_xml(config: DataConfig) -> Path:
    return min((Path(config.root) / "Annotations").rglob("*.xml"))


def first_label(config: DataConfig) -> Path:
    return min((Path(config.root) / "labels").rglob("*.txt"))


def larger_image(config: DataConfig) -> None:
    path = min(Path(config.root).rglob("*.jpg"))
    write_image(path, textured(99, 98, 0))


#: What is done to a set, by format.
CHANGES: list[tuple[str, Callable[[DataConfig], object]]] = [
    ("coco", lambda c: rewrite(places(c)[1], '"category_id": 2', '"category_id": 1')),
    ("coco", lambda c: rewrite(places(c)[1], '"two"', '"owt"')),
    ("voc", lambda c: rewrite(first_xml(c), "<name>one", "<name>two")),
    ("voc", lambda c: places(c)[1].write_text("001\n002\n")),
    ("txt", lambda c: rewrite(places(c)[1], ",1 ", ",0 ")),
    ("txt", lambda c: rewrite(Path(c.root) / "classes.txt", "two", "owt")),
    ("txt", larger_image),
    ("yolo", lambda c: first_label(c).unlink()),
    ("yolo", lambda c: first_label(c).write_text("1 0.5 0.5 0.1 0.1\n")),
    ("yolo", larger_image),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_old_records_never_win(
    kind: str,
    change: Callable[[DataConfig], object],
    sets: Path,
    tmp_path: Path,
    parsed: list[Source],
) -> None:
    config = copy_of(sets, kind, tmp_path)
    kept(config)
    before = read(config).dataset.digest
    assert len(parsed) == 1
    change(config)
    fresh = readers.parse(parsed[0])
    assert fresh.dataset.digest != before
    assert same(read(config), fresh)
    assert len(parsed) == 3
    # It was made anew, and counts from now on.
    assert same(read(config), fresh)
    assert len(parsed) == 3


def test_another_version_of_the_readers_reads_for_itself(
    coco: DataConfig, parsed: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(coco)
    monkeypatch.setattr(fingerprint, "_program", lambda: "another")
    read(coco)
    assert len(parsed) == 2


@pytest.mark.parametrize("file", ["data/readers/yolo.py", "data/decode.py", "layouts/data_yaml.py"])
def test_a_version_is_of_all_that_readers_call(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("data/readers", "layouts"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "data" / "readers" / "x.py"))
    program = fingerprint._program.__wrapped__
    before = program()
    (tmp_path / file).write_text("what is read otherwise")
    assert program() != before


def flipped(data: bytes, at: float) -> bytes:
    position = int(at * (len(data) - 1))
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


@pytest.mark.parametrize("name", ["manifest.arrow", "index.json"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + b"\xff",
        *(lambda data, at=at: flipped(data, at) for at in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)),
    ],
)
def test_damage_is_noticed_and_put_right(
    name: str, damage: Callable[[bytes], bytes], coco: DataConfig, parsed: list[Source]
) -> None:
    folder = kept(coco)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    raw = readers.parse(parsed[0])
    (folder / name).write_bytes(damage(whole[name]))
    assert same(read(coco), raw)
    # A flipped bit may leave the index as good as before, but never the manifest.
    assert len(parsed) == 3 or name == "index.json"
    parsed.clear()
    assert same(read(coco), raw)
    assert parsed == []
    if name == "manifest.arrow":
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize("name", ["manifest.arrow", "index.json"])
def test_half_of_it_is_none(name: str, coco: DataConfig, parsed: list[Source]) -> None:
    folder = kept(coco)
    (folder / name).unlink()
    read(coco)
    assert len(parsed) == 2
    assert (folder / name).exists()


def test_a_manifest_beside_the_index_of_another_does_not_count(
    coco: DataConfig, parsed: list[Source]
) -> None:
    """What two writers can leave behind between whom the annotations changed."""
    folder = kept(coco)
    index = (folder / "index.json").read_bytes()
    rewrite(places(coco)[1], '"category_id": 2', '"category_id": 1')
    read(coco)
    (folder / "index.json").write_bytes(index)
    parsed.clear()
    assert same(read(coco), readers.parse(Source("coco", *places(coco), None)))
    assert len(parsed) == 2


def test_many_writers_at_once(coco: DataConfig) -> None:
    raw = read(coco)
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(readers.read_split, coco, coco.train, keep=True) for _ in range(24)]
    assert all(same(one.result(), raw) for one in work)
    assert same(read(coco), raw)
    (folder,) = (Path(str(coco.cache)) / "manifests").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "manifest.arrow"]


def test_annotations_that_change_while_they_are_read_are_not_kept(coco: DataConfig) -> None:
    images, annotations = places(coco)

    def parse(source: Source) -> ReadResult:
        result = readers.parse(source)
        rewrite(annotations, '"category_id": 2', '"category_id": 1')
        return result

    source = Source("coco", images, annotations, None)
    result = annotation_cache.read_digested(source, parse, cache=coco.cache, keep=True)
    assert result.manifest is None
    assert result.unkept == "the annotations changed while they were read"
    assert not list(Path(str(coco.cache)).rglob("*.*"))


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_what_lies_in_linked_folders_counts(kind: str, sets: Path, tmp_path: Path) -> None:
    config = copy_of(sets, kind, tmp_path)
    folder = "Annotations" if kind == "voc" else "labels"
    split = config.train.model_copy(update={"annotations": str(Path(config.root, folder))})
    config = config.model_copy(update={"train": split, "val": split, "follow_links": True})
    for name in (folder, "JPEGImages" if kind == "voc" else "images"):
        day = tmp_path / "store" / name
        day.mkdir(parents=True)
        file = next(path for path in sorted(Path(config.root, name).iterdir()) if path.is_file())
        file.rename(day / f"moved{file.suffix}")
        Path(config.root, name, "day2").symlink_to(day)
    before = readers.read_split(config, split, keep=True)
    assert before.manifest is not None
    assert same(read(config), before)
    moved = next((tmp_path / "store" / folder).iterdir())
    rewrite(moved, "1", "2")
    assert not same(read(config), before)


def test_image_files_are_looked_for_each_time(coco: DataConfig, parsed: list[Source]) -> None:
    kept(coco)
    images, _ = places(coco)
    (images / "002.jpg").unlink()
    (finding,) = read(coco).findings
    assert (finding.kind, finding.examples) == ("missing_image", ("002.jpg",))
    (images / "002.jpg").symlink_to(Path(__file__))
    with pytest.raises(SecurityError, match=r"'002.jpg' is a link to"):
        read(coco)
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(DataError, match="none of the 6 images"):
        read(coco)


def test_findings_are_kept_with_their_places(coco: DataConfig, parsed: list[Source]) -> None:
    _, annotations = places(coco)
    tree = json.loads(annotations.read_text())
    tree["annotations"][4]["bbox"][2] = 0
    del tree["annotations"][5]["iscrowd"]
    annotations.write_text(json.dumps(tree))
    raw = read(coco)
    assert {one.kind for one in raw.findings} == {"zero_size_box", "missing_iscrowd"}
    kept(coco)
    assert same(read(coco), raw)
    assert len(parsed) == 2


def test_images_that_were_left_out_come_back(sets: Path, tmp_path: Path) -> None:
    """TXT and YOLO take sizes from the images: one that is mended is part of the set again."""
    config = copy_of(sets, "txt", tmp_path).model_copy(update={"max_bad_fraction": 0.5})
    path = min(Path(config.root).rglob("*.jpg"))
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    kept(config)
    assert len(read(config).dataset) == 5
    path.write_bytes(whole)
    assert len(read(config).dataset) == 6
    path.write_bytes(whole[:10])
    strict = config.model_copy(update={"max_bad_fraction": 0.01})
    with pytest.raises(DataError, match="1 of 6 images cannot be read"):
        readers.read_split(strict, strict.train)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    coco: DataConfig, tmp_path: Path
) -> None:
    raw = read(coco)
    (tmp_path / "cache").write_text("a file")
    result = readers.read_split(coco, coco.train, keep=True)
    assert result.manifest is None
    assert result.unkept is not None
    assert str(tmp_path / "cache") in result.unkept
    assert same(result, raw)


def test_a_cache_that_others_can_write_to_is_not_trusted(
    coco: DataConfig, parsed: list[Source]
) -> None:
    kept(coco)
    Path(str(coco.cache)).chmod(0o777)
    assert read(coco).manifest is None
    assert len(parsed) == 2


EXPERIMENT = """
name: e
detector: {name: ssd, width: 0.25}
data:
  root: %s
  cache: ../cache
  train: {images: images, annotations: train.json}
  val: {images: images, annotations: val.json}
train: {epochs: 2, batch_size: 2, optimizer: {name: sgd, lr: 0.1}}
"""


def test_training_takes_what_the_doctor_kept(
    tmp_path: Path,
    parsed: list[Source],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "set"
    write_coco(root, 6)
    monkeypatch.chdir(root)
    shutil.copyfile(root / "instances.json", root / "val.json")
    (root / "instances.json").rename(root / "train.json")
    before = sorted(root.rglob("*"))
    file = tmp_path / "e.yaml"
    file.write_text(EXPERIMENT % root)
    resolved = load_experiment(file)
    raw = make_plan(resolved, tmp_path / "run")
    assert raw.manifests == {}
    report = tmp_path / "report.json"
    assert main(["check", str(file), "--json", str(report)]) == 0
    first = report.read_bytes()
    assert len(parsed) == 4
    plan = make_plan(resolved, tmp_path / "run")
    assert len(parsed) == 4
    assert plan.job.data_digest == raw.job.data_digest
    printed = capsys.readouterr().out
    for split in ("train", "val"):
        assert f"  manifest {plan.manifests[split]}" in printed.splitlines()
        assert json.loads(first)["splits"][split]["manifest"] == str(plan.manifests[split])
    for step in range(3):
        one, other = raw.batches.train_batch(step, 0, 1), plan.batches.train_batch(step, 0, 1)
        assert one.images.tobytes() == other.images.tobytes()
        assert one.boxes.tobytes() == other.boxes.tobytes()
    # The doctor says of a kept manifest what it says of the annotations.
    assert main(["check", str(file), "--json", str(report)]) == 0
    assert report.read_bytes() == first
    assert sorted(root.rglob("*")) == before
