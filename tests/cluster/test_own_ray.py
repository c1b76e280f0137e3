"""A Ray that a run starts for itself consists of what the run needs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.support.own_process import python

#: Starts one, makes batches through Ray Data, and tells which programs and actors there were.
SCRIPT = """
import json
import psutil, ray, ray.data
from ray._private.state import state
from orchestrator.cluster.connection import connected
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.config.schema import ClusterConfig
from orchestrator.data.stream.no_actors import start_no_actors

with connected(ClusterConfig()):
    assert is_own_ray()
    start_no_actors()
    total = 0
    for number in range(2):
        data = ray.data.range(8, override_num_blocks=2).map_batches(lambda rows: rows)
        data.context.enable_progress_bars = False
        total += sum(row["id"] for row in data.iter_rows())
    programs = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
    print(json.dumps([total, programs, len(state.actor_table(None))]))
"""
#: Programs of Ray's for people and clouds.
UNUSED = ("dashboard/dashboard.py", "monitor.py")


@pytest.mark.ray
def test_no_process_serves_people_or_clouds(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = python("-c", SCRIPT, HOME=str(tmp_path), RAY_TMPDIR=folder)
        left = list(Path(folder).glob("ray-*/ray/session_*"))
    assert done.returncode == 0, done.stderr
    assert left == []
    total, programs, actors = json.loads(done.stdout.splitlines()[-1])
    assert total == 2 * sum(range(8))
    assert any("raylet" in program for program in programs)
    assert [p for p in programs if any(name in p for name in UNUSED)] == []
    assert actors == 0


@pytest.mark.ray
@pytest.mark.parametrize(("error", "sessions"), [("PreemptedError('later')", 0), ("ValueError", 1)])
def test_the_logs_of_what_failed_are_kept(tmp_path: Path, error: str, sessions: int) -> None:
    script = f"""
from orchestrator.cluster.connection import connected
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import PreemptedError

with connected(ClusterConfig()):
    raise {error}
"""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = python("-c", script, HOME=str(tmp_path), RAY_TMPDIR=folder)
        left = list(Path(folder).glob("ray-*/ray/session_2*"))
    assert error.split("(")[0] in done.stderr
    assert len(left) == sessions
