"""Processes that are started ahead: who gets them, and what they have imported by then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray import cloudpickle
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

from orchestrator.cluster import preload, spares
from orchestrator.cluster.heartbeat import Beat
from orchestrator.cluster.own_ray import count_idle
from orchestrator.cluster.preload import WORKER
from orchestrator.cluster.spares import Spares, inherited, keeps_copies
from orchestrator.config.schema import ClusterConfig
from orchestrator.data.stream.slots import ROLE
from orchestrator.storage.lease import Holder
from tests.support.local_ray import local_ray
from tests.support.waiting import wait_for

#: A value that Python and Ray might write down in different ways.
VARIABLES = {"SECOND": 'two, \u00fc \u2603 \\ "', "FIRST": "1"}


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        labels = {"orchestrator-own": "true"}
        memory = 100 << 20
        home = tmp_path_factory.mktemp("home")
        with local_ray(home, num_cpus=2, object_store_memory=memory, labels=labels):
            yield


def idle() -> set[int]:
    """Processes of this Ray that wait for work."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::IDLE"]:
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


@ray.remote(num_cpus=0)
class RayTrainWorker:
    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class TrainController:
    """Starts a worker, whose environment has one variable more, as Ray's does."""

    def __init__(self) -> None:
        options = RayTrainWorker.options(runtime_env={"env_vars": {ROLE: WORKER}})  # type: ignore[attr-defined]
        self._worker = options.remote()

    def pids(self) -> tuple[int, int]:
        return os.getpid(), ray.get(self._worker.pid.remote())


def attempt(variables: dict[str, str]) -> Any:
    options = TrainController.options(runtime_env={"env_vars": variables})  # type: ignore[attr-defined]
    return options.remote()


@pytest.mark.ray
@pytest.mark.usefixtures("own_ray")
def test_an_attempt_gets_what_was_started_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr(spares, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(spares, "MIN_TASKS", 1)
    kept = Spares(VARIABLES, kept=True)
    with kept.beside(1):
        # Its worker, and then a data task; the controller is on its way already.
        wait_for(lambda: len(idle()) == 2, 60)
        at_once = idle()
        first = attempt(VARIABLES)
        controller, worker = ray.get(first.pids.remote())
        assert controller not in at_once
        assert worker in at_once
        # While it runs, a copy of each.
        wait_for(lambda: len(idle()) == 3, 60)
    copies = idle() - at_once
    assert len(copies) == 2
    ray.kill(first)
    with kept.beside(1):
        second = attempt(VARIABLES)
        assert set(ray.get(second.pids.remote())) == copies
    ray.kill(second)


def test_copies_wait_for_the_first_step(tmp_path: Path) -> None:
    """Before it they would only delay it."""
    beats = tmp_path / "attempt-1"
    waiting = Spares(VARIABLES, kept=True, beats=tmp_path)
    assert not waiting._has_stepped()
    beats.mkdir()
    for taken in (0, 1):
        beat = Beat(Holder.this_process(), None, 1, taken=taken)
        (beats / "rank0.json").write_text(json.dumps(asdict(beat)))
        assert waiting._has_stepped() == bool(taken)


@pytest.mark.ray
@pytest.mark.usefixtures("own_ray")
def test_what_waits_has_imported_what_will_be_needed() -> None:
    variables = {**preload.environment(), ROLE: WORKER}
    spares._prestart(spares.this_node(), inherited(variables), 1, 60)

    def imported(pid: int) -> bool:
        maps = psutil.Process(pid).memory_maps()
        return any("libtorch_cpu" in mapped.path for mapped in maps)

    wait_for(lambda: any(imported(pid) for pid in idle()), 60, every=0.5)
    assert count_idle({ROLE: WORKER}) >= 1
    assert count_idle({ROLE: "of another"}) == 0


def test_a_function_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "module.function"}}
    context = SimpleNamespace(runtime_env=theirs)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert preload.environment() == {}


def test_a_process_that_finds_no_such_package_lives(tmp_path: Any) -> None:
    """Ray would end it if the function could not be loaded or raised."""
    cloudpickle.register_pickle_by_value(preload)
    try:
        (tmp_path / "begin").write_bytes(cloudpickle.dumps(preload.begin))
    finally:
        cloudpickle.unregister_pickle_by_value(preload)
    code = """
import gc, sys
class Nothing:
    def find_spec(self, name, *_):
        if name.startswith("orchestrator"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
from pathlib import Path
from ray import cloudpickle
cloudpickle.loads(Path(sys.argv[1]).read_bytes())()
print("orchestrator" in sys.modules, gc.isenabled())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "begin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("False True\n", "", 0)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"workers": 1}, False),
        ({"workers": 2}, True),
        ({"workers": 2, "spare_processes": False}, False),
        ({"workers": 1, "spare_processes": True}, True),
    ],
)
def test_several_workers_have_copies_unless_told(keys: dict[str, Any], kept: bool) -> None:
    assert keeps_copies(ClusterConfig(**keys)) is kept
