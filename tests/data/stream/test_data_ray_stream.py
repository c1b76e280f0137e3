from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

import orchestrator.data.stream.ray_stream as ray_stream
from orchestrator.data.batch import Batch
from orchestrator.data.shards.ray_writer import shards_by_ray
from orchestrator.data.shards.split import read_shards
from orchestrator.data.shards.writer import write_shards
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream
from orchestrator.data.stream.ray_stream import RayStream
from orchestrator.data.stream.ray_streams import RayStreams, free_tasks
from orchestrator.errors import DataError
from tests.support.data_cases import assert_same_batch, make_plan, with_two_canvases, write_coco
from tests.support.local_ray import local_ray
from tests.support.shard_cases import shard_here


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        home = tmp_path_factory.mktemp("home")
        with local_ray(home, num_cpus=4, object_store_memory=256 << 20):
            yield


@pytest.fixture
def short_segments(plan: BatchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of a single rank in a segment, two steps in a task."""
    monkeypatch.setattr(ray_stream, "SEGMENT_BYTES", 4 * 4 * 48 * 64 * 3)
    monkeypatch.setattr(ray_stream, "TASK_IMAGES", 8)


def streams(plan: BatchPlan, world: int = 1) -> list[RayStream]:
    made = RayStreams(plan)
    return [made.stream(rank, world) for rank in range(world)]


def segment_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ray-batches"]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
@pytest.mark.parametrize(("world", "canvases"), [(1, 1), (2, 1), (2, 2)])
def test_same_batches_as_without_ray(plan: BatchPlan, world: int, canvases: int) -> None:
    if canvases == 2:
        plan = with_two_canvases(plan)
    for rank, stream in enumerate(streams(plan, world)):
        local = LocalStream(plan, rank=rank, world=world)
        for one, other in zip(stream.train_batches(0, 15), local.train_batches(0, 15), strict=True):
            assert_same_batch(one, other)
            assert one.images.flags.writeable
        for one, other in zip(stream.eval_batches(), local.eval_batches(), strict=True):
            assert_same_batch(one, other)
    assert not segment_threads()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
def test_restart_continues_with_the_same_batches(plan: BatchPlan) -> None:
    (stream,) = streams(plan)
    unbroken = list(LocalStream(plan).train_batches(0, 15))
    for start in (3, 4, 14, 15):
        again = list(stream.train_batches(start, 15))
        assert len(again) == 15 - start
        for one, other in zip(unbroken[start:], again, strict=True):
            assert_same_batch(one, other)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
@pytest.mark.parametrize("expected", [0, 3])
def test_what_was_expected_changes_no_batch(plan: BatchPlan, expected: int) -> None:
    """Begun ahead, whether the right steps or others are asked for then."""
    (stream,) = streams(plan)
    stream.expect(expected, 15)
    local = LocalStream(plan)
    for one, other in zip(stream.eval_batches(), local.eval_batches(), strict=True):
        assert_same_batch(one, other)
    for one, other in zip(stream.train_batches(0, 15), local.train_batches(0, 15), strict=True):
        assert_same_batch(one, other)
    assert not segment_threads()
    stream.expect(expected, 15)
    assert segment_threads()
    stream.close()
    assert not segment_threads()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
def test_only_what_exceeds_the_budget_is_limited_by_ray(plan: BatchPlan) -> None:
    """With a limit Ray Data would run one task at a time for the first second."""
    (stream,) = streams(plan)
    for steps, limited in ((4, False), (5, True)):
        dataset = stream._dataset(BatchPlan.train_batch, range(steps), starved=limited)
        assert dataset.context.op_resource_reservation_enabled is limited


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("tasks", [1, 2])
def test_no_more_tasks_work_at_a_time_than_were_asked_for(
    plan: BatchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    def make_and_note(
        plan: BatchPlan, number: int, rank: int, world: int, into: Batch | None
    ) -> Batch:
        begin = time.monotonic()
        time.sleep(0.15)  # Ray has the next task started by then.
        batch = plan.train_batch(number, rank, world, into)
        (tmp_path / str(number)).write_text(f"{begin} {time.monotonic()}")
        return batch

    monkeypatch.setattr(ray_stream, "TASK_IMAGES", 8)
    stream = RayStreams(plan, tasks=tasks).stream()
    steps = range(15)
    # One task more is given to Ray than may work.
    dataset = stream._dataset(make_and_note, steps, starved=True)
    assert sum(len(rows["step"]) for rows in dataset.iter_batches(batch_size=None)) == len(steps)
    times = [tuple(map(float, (tmp_path / str(i)).read_text().split())) for i in steps]
    at_once = [sum(begin <= now < end for begin, end in times) for now, _ in times]
    assert max(at_once) == tasks


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
def test_shards_written_and_read_through_ray(plan: BatchPlan, tmp_path: Path) -> None:
    run = partial(shards_by_ray, tasks=2)
    write_shards(plan.train, str(tmp_path / "ray"), images_per_shard=4, run=run)
    shard_here(plan.train, str(tmp_path / "here"))
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "ray" / path.name).read_bytes()
    other = replace(plan.train, labels=1 - plan.train.labels)
    with pytest.raises(DataError, match="these shards are of another data set") as caught:
        list(run(other, str(tmp_path / "ray"), 4, 6))
    assert other.digest in str(caught.value)

    data = read_shards(str(tmp_path / "ray")).dataset
    assert data.shards is not None
    schedule = replace(plan.schedule, window=7, bounds=data.shards.bounds)
    sharded = replace(plan, train=data, val=data, schedule=schedule)
    for rank, stream in enumerate(streams(sharded, 2)):
        local = LocalStream(sharded, rank=rank, world=2)
        for one, two in zip(stream.train_batches(3, 9), local.train_batches(3, 9), strict=True):
            assert_same_batch(one, two)
        for one, two in zip(stream.eval_batches(), local.eval_batches(), strict=True):
            assert_same_batch(one, two)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster", "short_segments")
def test_leaving_the_loop_ends_the_segments(plan: BatchPlan) -> None:
    (stream,) = streams(plan)
    for batch in stream.train_batches(0, 15):
        if batch.step == 2:
            # Half of the first segment is taken: the second is running as well.
            assert len(segment_threads()) >= 1
            break
    del batch
    assert not segment_threads()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_replacements_and_errors_come_through(tmp_path: Path) -> None:
    write_coco(tmp_path, 6)
    (tmp_path / "images" / "002.jpg").write_bytes(b"")
    plan = make_plan(tmp_path, epochs=4)
    (stream,) = streams(plan)
    replaced = [item for batch in stream.train_batches(0, 4) for item in batch.replaced]
    assert replaced
    assert {sample for _, sample, _ in replaced} == {2}
    assert replaced[0][2].endswith("002.jpg: empty file")

    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be decoded; the last: .*empty file") as caught:
        next(stream.train_batches(0, 4))
    assert type(caught.value) is DataError


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trainer_with_two_workers_resumes_at_the_commit(plan: BatchPlan, tmp_path: Path) -> None:
    made = RayStreams(plan, tasks=1)

    def train(options: dict[str, Any]) -> None:
        import torch
        import torch.distributed as dist

        rank, world = ray.train.get_context().get_world_rank(), dist.get_world_size()
        stream = options["streams"].stream(rank, world)
        folder = Path(options["folder"])
        commit = folder / "commit"
        start = int(commit.read_text()) if commit.exists() else 0
        for batch in stream.train_batches(start, 15):
            # All ranks are at the same step, or the sum gives it away.
            total = torch.tensor([batch.step])
            dist.all_reduce(total)
            assert total.item() == batch.step * world
            line = json.dumps([batch.step, batch.sample_ids.tolist(), int(batch.images.sum())])
            with (folder / f"rank{rank}").open("a") as log:
                log.write(line + "\n")
            dist.barrier()
            if rank == 0:
                commit.write_text(str(batch.step + 1))
            dist.barrier()
            if batch.step == 6 and start == 0:
                raise RuntimeError("fault")
        seen = [s for batch in stream.eval_batches() for s in batch.sample_ids.tolist() if s >= 0]
        (folder / f"eval{rank}").write_text(json.dumps(seen))

    TorchTrainer(
        train,
        train_loop_config={"folder": str(tmp_path), "streams": made},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name="data",
            storage_path=str(tmp_path / "ray"),
            failure_config=FailureConfig(max_failures=1),
        ),
    ).fit()

    for rank in range(2):
        lines = [json.loads(line) for line in (tmp_path / f"rank{rank}").read_text().splitlines()]
        expected = [plan.train_batch(step, rank, 2) for step in range(15)]
        assert lines == [
            [b.step, b.sample_ids.tolist(), int(b.images.sum(dtype=np.int64))] for b in expected
        ]
    evaluated = [json.loads((tmp_path / f"eval{rank}").read_text()) for rank in range(2)]
    assert sorted(evaluated[0] + evaluated[1]) == list(range(22))


def test_data_tasks_import_neither_torch_nor_a_detector() -> None:
    code = (
        "import sys, orchestrator.data.stream.ray_stream; "
        "print([m for m in ('torch', 'detectors.base', 'detectors.registry') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("cpus", "workers", "busy", "store", "tasks"),
    [
        (16, 1, 1, 64 << 30, 15),
        (16, 2, 1, 64 << 30, 7),
        (16, 2, 4, 64 << 30, 4),
        (2, 1, 1, 64 << 30, 2),
        (16, 1, 16, 64 << 30, 2),
        # Room for 2 x 4 blocks of a task.
        (16, 1, 1, 1 << 30, 4),
        (0, 1, 1, 0, 2),
    ],
)
def test_tasks_take_the_cores_that_workers_leave(
    cpus: int, workers: int, busy: float, store: int, tasks: int
) -> None:
    share = cpus / workers - busy
    assert tasks == free_tasks(share, store / workers, task_bytes=128 << 20)


@pytest.mark.parametrize(("any_node", "tasks"), [(False, [7, 7, 31]), (True, [15, 15, 15])])
def test_tasks_may_take_the_cores_of_nodes_without_workers(
    plan: BatchPlan, monkeypatch: pytest.MonkeyPatch, any_node: bool, tasks: list[int]
) -> None:
    def node(name: str, cpus: float, *, alive: bool = True) -> dict[str, Any]:
        resources = {"CPU": cpus, "object_store_memory": float(64 << 30)}
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    nodes = [node("a", 16), node("b", 32), node("gone", 99, alive=False)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "put", lambda value: value)
    made = RayStreams(plan, any_node=any_node)
    places = [("a", 2), ("a", 2), ("b", 1)]
    found = [made.stream(r, 3, node=n, on_node=beside) for r, (n, beside) in enumerate(places)]
    assert [one.tasks for one in found] == tasks
    assert all((one._where() == {}) == any_node for one in found)


@pytest.mark.ray
@pytest.mark.slow
def test_sixteen_logical_cpus_work_at_once(plan: BatchPlan, tmp_path: Path) -> None:
    """In a process of its own, with a Ray that believes in 16 CPUs."""
    script = tmp_path / "sixteen.py"
    script.write_text(SIXTEEN % json.dumps(str(Path(plan.train.root).parent)))
    folder = tempfile.mkdtemp(prefix="ray-")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={
            **os.environ,
            "RAY_TMPDIR": folder,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    tasks, most, elsewhere = map(int, (tmp_path / "result").read_text().split())
    assert tasks == 15
    assert most >= 13
    assert elsewhere == 0


#: Writes down the tasks of a stream, how many worked at once, and how many ran on another node.
SIXTEEN = """
import sys, time
from pathlib import Path
import ray
import orchestrator.data.stream.ray_stream as ray_stream
from orchestrator.data.stream.ray_streams import RayStreams
from ray.cluster_utils import Cluster
from tests.support.data_cases import make_plan

plan = make_plan(Path(%s))
out = Path(sys.argv[1])
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 16, "include_dashboard": False},
)
cluster.add_node(num_cpus=4)
ray.init(address=cluster.address, log_to_driver=False)
here = ray.get_runtime_context().get_node_id()

def make_and_note(plan, number, rank, world, into):
    began = time.time()
    time.sleep(2)
    batch = plan.train_batch(number %% plan.schedule.total_steps, rank, world, into)
    node = ray.get_runtime_context().get_node_id()
    (out / f"{number}.txt").write_text(f"{began} {time.time()} {node}")
    return batch

ray_stream.TASK_IMAGES = 8
stream = RayStreams(plan).stream(node=here)
dataset = stream._dataset(make_and_note, range(600), starved=True)
began = time.time()
for rows in dataset.iter_batches(batch_size=None):
    if time.time() - began > 200:
        break
times = [path.read_text().split() for path in out.glob("*.txt")]
spans = [(float(b), float(e)) for b, e, _ in times]
most = max(sum(b <= now < e for b, e in spans) for now, _ in spans)
elsewhere = sum(node != here for _, _, node in times)
(out / "result").write_text(f"{stream.tasks} {most} {elsewhere}")
ray.shutdown()
cluster.shutdown()
"""
