"""Small states to commit, and what child processes do that are killed while committing them."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.checkpoints.codec import TrainState
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from orchestrator.storage.local import Storage
from tests.support.faulty_storage import BucketStorage, FaultyStorage, Moment, QuickStorage

COMMIT_ARGUMENTS = {"config_digest": "c" * 64, "data_digest": "d" * 64, "label_map": '{"a": 1}'}
POLICY: dict[str, Any] = {"keep_last": 2, "keep_best": 1}
BACKENDS: dict[str, Callable[[Path], Storage]] = {"local": QuickStorage, "objects": BucketStorage}


def next_state(state: TrainState | None) -> TrainState:
    """A stand-in for a training step: the state after a step is a function of the one before."""
    if state is None:
        weight = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
        return TrainState(
            step=1,
            model={"weight": weight, "count": torch.tensor(1)},
            optimizer={"momentum_buffer/weight": torch.zeros(2, 3, 4)},
            ema={"weight": weight.clone()},
            scalars={"metrics": [], "world": 1},
        )
    momentum = 0.9 * state.optimizer["momentum_buffer/weight"] + state.model["weight"].sin()
    weight = state.model["weight"] - 0.1 * momentum
    assert state.ema is not None
    return TrainState(
        step=state.step + 1,
        model={"weight": weight, "count": state.model["count"] + 1},
        optimizer={"momentum_buffer/weight": momentum},
        ema={"weight": 0.9 * state.ema["weight"] + 0.1 * weight},
        scalars={"metrics": [*state.scalars["metrics"], float(weight.sum())], "world": 1},
    )


def states(last: int) -> dict[int, TrainState]:
    """The states after steps 1 to ``last``."""
    found: dict[int, TrainState] = {}
    state = None
    for _ in range(last):
        state = next_state(state)
        found[state.step] = state
    return found


#: Enough of them for most tests.
STATES = states(12)


def save(store: CommitStore, *steps: int) -> None:
    for step in steps:
        store.save(STATES[step], **COMMIT_ARGUMENTS)


def steps_of(store: CommitStore) -> list[int]:
    return [commit.step for commit in store.commits()]


def scores(step: int) -> dict[str, float]:
    """Stand-in for an evaluation; 6, 13, ... are the best steps."""
    return {"val/AP": float(step % 7)}


def prepare(path: Path, backend: str) -> None:
    """Commits 1 to 3; 1 is the best so far, 2 is to be deleted next."""
    store = CommitStore(BACKENDS[backend](path), **POLICY)
    for step, state in states(3).items():
        store.save(state, **COMMIT_ARGUMENTS)
        store.attach_metrics(step, {"val/AP": 1.0 / step})
    store.close()


def scenario(storage: Storage) -> None:
    """What is interrupted: commit step 4, after which 2 goes, and attach metrics."""
    store = CommitStore(storage, **POLICY)
    try:
        store.sweep()
        store.save(states(4)[4], **COMMIT_ARGUMENTS)
        store.attach_metrics(4, {"val/AP": 2.0})
    finally:
        store.close()


def killed_scenario(path: Path, backend: str, number: int, moment: Moment) -> None:
    """The scenario in a process that dies at one of its calls."""
    scenario(FaultyStorage(BACKENDS[backend](path), strike_at=number, moment=moment, kill=True))


def killed_run(path: Path, last: int, strike_at: int | None, moment: Moment) -> None:
    """A run: go on from the newest commit until step ``last``, or die at a call."""
    storage = FaultyStorage(QuickStorage(path), strike_at=strike_at, moment=moment, kill=True)
    store = CommitStore(storage, **POLICY)
    store.sweep()
    found = store.latest()
    if found.rejected:
        raise AssertionError(found.rejected)
    state = None if found.commit is None else store.load(found.commit.step)
    if found.commit is not None and found.commit.metrics is None:
        # The evaluation was cut off: it is done again before anything else.
        store.attach_metrics(found.commit.step, scores(found.commit.step))
    while state is None or state.step < last:
        state = next_state(state)
        store.save_async(state, **COMMIT_ARGUMENTS)
        store.attach_metrics(state.step, scores(state.step))
    store.close()


def run_on_a_full_disk(path: Path, results: Any) -> None:
    """Try three times to commit step 4 while no file may grow beyond a kilobyte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    store = CommitStore(QuickStorage(path), **POLICY)
    state = states(4)[4]
    state.model["large"] = torch.zeros(1000)
    messages = []
    for _ in range(3):
        try:
            store.save(state, **COMMIT_ARGUMENTS)
        except StorageError as error:
            messages.append(str(error))
    found = store.latest().commit
    results.put((messages, found and found.step, sorted(os.listdir(path / "ckpt"))))  # noqa: PTH208
