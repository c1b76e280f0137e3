"""Every crash point of the commit protocol: errors and SIGKILL at each call it makes to a disk.

The scenario commits a step, attaches its metrics and, because enough commits are there already,
deletes an old one. Each case lets one numbered call of it go wrong.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from tests.support.child_processes import CHILDREN, exit_code_of, start_server
from tests.support.commit_scenario import (
    BACKENDS,
    POLICY,
    killed_run,
    killed_scenario,
    prepare,
    run_on_a_full_disk,
    scenario,
    states,
)
from tests.support.faulty_storage import FaultyStorage, Moment, QuickStorage, lose_unsynced

STATES = states(60)
DIGESTS = {step: state_digest(state) for step, state in STATES.items()}
MOMENTS: tuple[Moment, ...] = get_args(Moment)

#: Calls that change nothing on the disk: dying at one is dying at the next that does.
LOOKING = ("list", "read")
#: Calls that can get half of their work done; "within" is "before" for the others.
DIVISIBLE = ("write", "read")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(tmp_path: Path, backend: str) -> Path:
    """A run folder as the scenario finds it."""
    prepare(tmp_path / "base", backend)
    return tmp_path / "base"


def fresh(base: Path) -> Path:
    """A copy of ``base`` to break."""
    run = base.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(base, run)
    return run


def crash_points(base: Path, backend: str) -> list[str]:
    """The calls that the scenario makes when nothing goes wrong."""
    counting = FaultyStorage(BACKENDS[backend](fresh(base)))
    scenario(counting)
    return counting.calls


def leftovers(path: Path) -> list[str]:
    """Whatever is neither the pointer nor part of a commit."""
    folders = [f for f in path.glob("ckpt/0*") if (f / "MANIFEST.json").exists()]
    files = [p for f in folders for p in f.iterdir() if ".tmp-" not in p.name]
    known = {path / "COMMIT", path / "ckpt", *folders, *files}
    return [str(p.relative_to(path)) for p in path.rglob("*") if p not in known]


def assert_recovers(path: Path, backend: str, case: str) -> None:
    """Old or new state, complete; nothing left over after a restart; the step can be done again."""
    storage = BACKENDS[backend](path)
    store = CommitStore(storage, **POLICY)
    found = store.latest()
    assert found.commit is not None, case
    assert found.commit.step in (3, 4), case
    for commit in store.commits():
        assert state_digest(store.load(commit.step)) == DIGESTS[commit.step], case
    assert len(store.commits()) >= 2, case
    best = store.best()
    assert best is not None, case
    assert best.step in (1, 4), case

    # An upload whose manifest was cut off looks damaged; a folder is renamed whole or not at all.
    rejected = [*found.rejected, *store.sweep()]
    assert not rejected or backend == "objects", case
    assert leftovers(path) == [], case

    # What any restart does: go on from what was found, commit the next step.
    scenario(storage)
    assert {commit.step: commit.metrics for commit in store.commits()} in (
        {3: {"val/AP": 1 / 3}, 4: {"val/AP": 2.0}},
        # While metrics of 4 were not there, 1 was the best and stays until the next commit.
        {1: {"val/AP": 1.0}, 3: {"val/AP": 1 / 3}, 4: {"val/AP": 2.0}},
    ), case
    assert leftovers(path) == [], case
    assert {p.name for p in path.iterdir()} == {"COMMIT", "ckpt"}, case


def test_the_scenario_passes_through_the_whole_protocol(base: Path, backend: str) -> None:
    kinds = [call.split()[0] for call in crash_points(base, backend)]
    expected = {"make_dir", "create", "write", "sync", "close", "sync_dir", "unlink", "remove_dir"}
    expected |= {"list", "read"}
    # By renaming: the commit, the pointer, the deletion and the metrics.
    assert kinds.count("rename") == {"local": 4, "objects": 0}[backend]
    assert set(kinds) - {"rename"} == expected


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_error_at_any_call_leaves_the_run_usable(
    base: Path, backend: str, lasting: bool, moment: Moment
) -> None:
    calls = crash_points(base, backend)
    for number, call in enumerate(calls):
        if moment == "within" and not call.startswith(DIVISIBLE):
            continue
        run = fresh(base)
        broken = FaultyStorage(
            BACKENDS[backend](run),
            strike_at=number,
            moment=moment,
            lasting=lasting,
            code=errno.ENOSPC if number % 2 else errno.EIO,
        )
        case = f"{moment} {number}: {call}"
        message = None
        try:
            scenario(broken)
        except StorageError as error:
            message = str(error)
        # Only reading the pointer, which is a hint, and tidying up may fail in silence.
        assert message is not None or call.startswith((*LOOKING, "unlink", "remove_dir")), case
        assert message is None or "Next:" in message, case
        assert_recovers(run, backend, case)


def test_sigkill_at_any_call_leaves_the_run_usable(base: Path, backend: str) -> None:
    calls = crash_points(base, backend)
    changing = [number for number, call in enumerate(calls) if not call.startswith(LOOKING)]
    cases: list[tuple[int, Moment]] = [(number, "before") for number in changing]
    cases += [(number, "within") for number in changing if calls[number].startswith(DIVISIBLE)]
    cases.append((changing[-1], "after"))
    for number, moment in cases:
        run = fresh(base)
        case = f"{moment} {number}: {calls[number]}"
        assert exit_code_of(killed_scenario, run, backend, number, moment) == -signal.SIGKILL, case
        assert_recovers(run, backend, case)


def test_a_power_cut_at_any_call_leaves_the_run_usable(tmp_path: Path) -> None:
    base = tmp_path / "base"
    prepare(base, "local")
    calls = crash_points(base, "local")
    for number, call in enumerate(calls):
        if call.startswith(LOOKING):
            continue
        run = fresh(base)
        broken = FaultyStorage(QuickStorage(run), strike_at=number, lasting=True)
        with suppress(StorageError):
            scenario(broken)
        lose_unsynced(run, broken.calls[:number])
        assert_recovers(run, "local", f"power cut at {number}: {call}")


def test_names_are_flushed_before_what_follows_relies_on_them(tmp_path: Path) -> None:
    storage = FaultyStorage(QuickStorage(tmp_path))
    scenario(storage)
    changes = [c for c in storage.calls if c.startswith(("rename", "sync_dir"))]
    kinds = [re.sub(r"\.tmp-\w+", ".tmp", change).replace("000000004", "4") for change in changes]
    assert kinds == [
        "sync_dir ",  # The folder of all commits is there,
        "sync_dir ckpt/4.tmp",  # this commit's files are,
        "rename ckpt/4.tmp ckpt/4",
        "sync_dir ckpt",  # and it is one, before anything points at it.
        "rename COMMIT.tmp COMMIT",
        "sync_dir ",
        "rename ckpt/4/METRICS.json.tmp ckpt/4/METRICS.json",
        "sync_dir ckpt/4",
    ]


def test_a_run_killed_again_and_again_ends_in_the_same_state(tmp_path: Path) -> None:
    """Restarts at random calls, while the writer is a thread; nothing grows."""
    kills = int(os.environ.get("COMMIT_KILLS", "40"))
    last = 60
    draw = random.Random(5)
    run = tmp_path / "run"
    killed = 0
    for attempt in itertools.count():
        strike_at = draw.randrange(150) if attempt < kills else None
        code = exit_code_of(killed_run, run, last, strike_at, draw.choice(MOMENTS))
        assert len(list(run.rglob("*"))) < 120
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
    assert killed > min(kills, 8) // 2
    store = CommitStore(QuickStorage(run), **POLICY)
    latest, best = store.latest().commit, store.best()
    assert latest is not None
    assert latest.step == last
    assert state_digest(store.load(last)) == DIGESTS[last]
    assert store.load(last).scalars == STATES[last].scalars
    assert best is not None
    assert best.step == 6
    assert [commit.step for commit in store.commits()] == [6, 59, 60]
    assert leftovers(run) == []


def test_a_file_size_limit_is_reported_and_leaves_nothing_behind(tmp_path: Path) -> None:
    prepare(tmp_path / "run", "local")
    before = sorted(path.name for path in (tmp_path / "run" / "ckpt").iterdir())
    start_server()
    results = CHILDREN.Queue()
    assert exit_code_of(run_on_a_full_disk, tmp_path / "run", results) == 0
    messages, latest, names = results.get(timeout=60)
    assert len(messages) == 3
    for message in messages:
        assert "cannot commit step 4" in message
        assert "File too large" in message
        assert "Next:" in message
    assert latest == 3
    assert names == before
    assert_recovers(tmp_path / "run", "local", "file size limit")
