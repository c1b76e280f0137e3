"""Training does not notice where its images come from, and shards resume as files do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from orchestrator.config.resolve import load_experiment
from orchestrator.data.dataset import Dataset
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.convert import convert, read_place, read_places
from orchestrator.data.sharded_images import shard_name
from orchestrator.data.shards.split import read_shards
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import DataError, SecurityError
from orchestrator.layouts.recognise import find_layout
from orchestrator.runs.identity import Identity, open_run
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.storage.address import below
from orchestrator.storage.folders import open_folder
from orchestrator.storage.run_files import EVENTS, STOP
from orchestrator.tracking.events import EventLog
from orchestrator.training import session
from tests.support.buckets import fresh_location
from tests.support.local_runs import StoppingStream, train
from tests.support.shard_cases import shard_here

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data: %s
train:
  epochs: 4
  max_steps: 20
  batch_size: 2
  evaluate_every_epochs: 4
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: cosine, warmup_epochs: 1}
tracking: {mlflow: null}
"""
KINDS = ("coco", "voc", "txt", "yolo")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The ``data`` section of one data set in every format, and as shards."""
    folder = tmp_path_factory.mktemp("sets")
    build_digits(folder / "digits", Recipe(train=13, val=3, seed=3))
    places = find_layout(folder / "digits", "coco").splits
    sections: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        converted = convert(read_places("coco", places, None), kind, folder / kind)
        sections[kind] = {
            "format": kind,
            "root": str(folder / kind),
            **{
                name: {
                    "images": str(one.place.images),
                    "annotations": str(one.place.annotations),
                }
                for name, one in converted.items()
            },
        }
        for name, place in find_layout(folder / kind, kind).splits.items():
            shard_here(read(kind, folder / kind, place), str(folder / f"{kind}-shards" / name))
    sections["shards"] = {
        name: {"shards": str(folder / "coco-shards" / name)} for name in ("train", "val")
    }
    return sections


def read(kind: str, root: Path, place: object) -> Dataset:
    classes = None if kind == "coco" else read_classes(root / "classes.txt")
    return read_place(kind, place, classes).dataset  # type: ignore[arg-type]


def plan_in(folder: Path, data: dict[str, object], *overrides: str) -> Plan:
    folder.mkdir(exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(EXPERIMENT % json.dumps(data))
    return make_plan(load_experiment(file, overrides), folder, threads=1)


def test_one_data_set_trains_alike_in_every_format_and_as_shards(
    sets: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    """Without ``data.window`` shards are visited in the order that files are."""
    contents, ends = set(), {}
    for kind, section in sets.items():
        plan = plan_in(tmp_path / kind, section, "train.max_steps=7")
        contents.add((plan.batches.train.content_digest, plan.batches.val.content_digest))
        outcome = train(plan)
        assert outcome.steps == 7
        ends[kind] = (outcome.weights_sha256, outcome.metrics["AP"])
    assert len(contents) == 1
    assert len(set(ends.values())) == 1, ends


def test_a_window_mixes_otherwise_and_resumes_in_the_middle_of_an_epoch(
    sets: dict[str, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    unbroken_plan = plan_in(tmp_path / "unbroken", sets["shards"], "data.window=5")
    everything = plan_in(tmp_path / "all", sets["shards"])
    assert [unbroken_plan.batches.schedule.samples(step).tolist() for step in range(6)] != [
        everything.batches.schedule.samples(step).tolist() for step in range(6)
    ]
    unbroken = train(unbroken_plan)
    plan = plan_in(tmp_path / "run", sets["shards"], "data.window=5")
    for at in (2, 9):
        stopped = train(plan, StoppingStream(plan, at))
        assert (stopped.state, stopped.steps) == ("preempted", at + 1)
        (plan.job.path / STOP).unlink()
        plan = plan_in(tmp_path / "run", sets["shards"], "data.window=5")
    assert train(plan).weights_sha256 == unbroken.weights_sha256


def test_ranks_share_the_batches_that_one_makes(
    sets: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    plan = plan_in(tmp_path / "run", sets["shards"], "data.window=5").batches
    for step in (0, 7, 19):
        (alone,) = LocalStream(plan).train_batches(step, step + 1)
        halves = [
            next(iter(LocalStream(plan, rank=rank, world=2).train_batches(step, step + 1)))
            for rank in range(2)
        ]
        assert [int(h.sample_ids[0]) for h in halves] == alone.sample_ids.tolist()
        assert all((h.images[0] == alone.images[i]).all() for i, h in enumerate(halves))


def test_annotations_beside_shards_say_what_must_be_in_them(
    sets: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    section = dict(sets["coco"])
    shards = sets["shards"]["train"]
    assert isinstance(shards, dict)
    section["train"] = {**section["train"], **shards}  # type: ignore[dict-item]
    plan = plan_in(tmp_path / "run", section)
    assert plan.batches.train.shards is not None

    changed = tmp_path / "changed.json"
    tree = json.loads(Path(section["train"]["annotations"]).read_text())  # type: ignore[index]
    del tree["annotations"][0]
    changed.write_text(json.dumps(tree))
    section["train"] = {**section["train"], "annotations": str(changed)}  # type: ignore[dict-item]
    with pytest.raises(DataError, match="these shards are of another data set") as caught:
        plan_in(tmp_path / "run", section)
    digests = [line.split()[-1] for line in str(caught.value).splitlines() if "digest of" in line]
    assert digests[0] == plan.batches.train.digest
    assert len(set(digests)) == 2


def test_a_run_does_not_go_on_with_shards_of_other_data(
    sets: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    """The data digest is part of a run's identity, wherever the data lie."""
    other = tmp_path / "other"
    build_digits(tmp_path / "digits", Recipe(train=13, val=3, seed=4))
    for name, place in find_layout(tmp_path / "digits", "coco").splits.items():
        shard_here(read("coco", tmp_path, place), str(other / name))
    copy = tmp_path / "shards"
    shutil.copytree(Path(sets["shards"]["train"]["shards"]).parent, copy)  # type: ignore[index]
    section: dict[str, object] = {n: {"shards": str(copy / n)} for n in ("train", "val")}

    def claim(plan: Plan) -> None:
        identity = Identity(plan.job.config_digest, plan.job.data_digest, sources={})
        open_run(tmp_path / "run", identity, {})

    claim(plan_in(tmp_path / "run", section))
    log = EventLog(tmp_path / "run" / EVENTS)
    log.note("resume", "a run in which something was done", step=0)
    log.close()
    shutil.rmtree(copy)
    other.rename(copy)
    with pytest.raises(Exception, match="holds another experiment:\n  data: sha256"):
        claim(plan_in(tmp_path / "run", section))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    return fresh_location(monkeypatch)


def test_shard_train_kill_and_resume_in_a_bucket(
    sets: dict[str, dict[str, object]],
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    root = Path(str(sets["coco"]["root"]))
    for name, place in find_layout(root, "coco").splits.items():
        data = read("coco", root, place)
        with pytest.raises(KeyboardInterrupt):
            shard_here(data, below(bucket, name), per=1, stop_after=2)
        with pytest.raises(DataError, match="the shards are not finished"):
            read_shards(below(bucket, name))
        assert shard_here(data, below(bucket, name), per=1).found == 2
        shard_here(data, str(tmp_path / "local" / name), per=1)
        remote, local = open_folder(below(bucket, name)), tmp_path / "local" / name
        assert sorted(remote.sizes()) == sorted(path.name for path in local.iterdir())
        for path in local.iterdir():
            assert remote.read(path.name) == path.read_bytes()

    def section(place: str) -> dict[str, object]:
        return {
            **{name: {"shards": below(place, name)} for name in ("train", "val")},
            "window": 2,
            "cache": str(tmp_path / "cache"),
        }

    unbroken = train(plan_in(tmp_path / "local-run", section(str(tmp_path / "local"))))
    assert not (tmp_path / "cache").exists()
    plan = plan_in(tmp_path / "run", section(bucket))
    stopped = train(plan, StoppingStream(plan, 7))
    assert stopped.state == "preempted"
    (plan.job.path / STOP).unlink()
    # Another node has fetched nothing yet.
    shutil.rmtree(tmp_path / "cache")
    ended = train(plan_in(tmp_path / "run", section(bucket)))
    assert (ended.resumed_from, ended.steps) == (8, 20)
    assert ended.weights_sha256 == unbroken.weights_sha256
    assert ended.metrics == unbroken.metrics


def test_a_node_keeps_no_more_than_it_needs_and_trusts_nothing(
    sets: dict[str, dict[str, object]], bucket: str, tmp_path: Path
) -> None:
    root = Path(str(sets["coco"]["root"]))
    data = read("coco", root, find_layout(root, "coco").splits["train"])
    shard_here(data, bucket, per=1)
    cache = tmp_path / "cache"
    remote = read_shards(bucket, cache=str(cache)).dataset
    assert remote.shards is not None
    shards = dataclasses.replace(remote.shards, kept=4)
    for index in range(13):
        assert shards.read(index) == data.path(index).read_bytes()
        assert len(list(cache.glob("*/*.parquet"))) <= 4

    folder = open_folder(bucket)
    other = folder.read(shard_name(1))
    folder.write(shard_name(0), other)
    with pytest.raises(DataError, match=r"shard-00000.parquet: not the one that the index"):
        shards.read(0)
    folder.remove(shard_name(0))
    with pytest.raises(DataError, match=r"shard-00000.parquet: the shard is missing"):
        shards.read(0)
    cache.chmod(0o777)
    with pytest.raises(SecurityError, match=r"set data\.cache to another one"):
        shards.read(12)
