"""A commit that one rank reads and all have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints.codec import TrainState, state_digest
from orchestrator.errors import StorageError
from orchestrator.training.collective import Collective
from orchestrator.training.state import shared
from tests.support.ranks import run_ranks


def state() -> TrainState:
    torch.manual_seed(3)
    model = {
        "weight": torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
        "half": torch.randn(7).bfloat16(),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor(2**40 + 1),
        "odd": torch.tensor([float("nan"), -0.0, float("inf")]),
        "none": torch.empty(0, 4),
    }
    scalars = {"bad_steps": 1, "early_stopping": None, "virtual_shards": {"began": 2}}
    return TrainState(7, model, {"step/weight": torch.tensor(4.0)}, None, scalars)


def _rank(rank: int, _: Path) -> None:
    collective = Collective(torch.device("cpu"))

    def load() -> TrainState:
        assert rank == 0, "reads for itself"
        return state()

    def broken() -> TrainState:
        raise StorageError("the disk is gone")

    found, expected = shared(load, collective), state()
    assert (found.step, found.scalars, found.ema) == (7, expected.scalars, None)
    assert state_digest(found) == state_digest(expected)
    assert found.model["weight"].stride() == expected.model["weight"].stride()
    with pytest.raises(StorageError, match="the disk is gone"):
        shared(broken, collective)
    with pytest.MonkeyPatch.context() as patch:
        # Less than many of the tensors, and two of the smallest.
        patch.setattr("orchestrator.training.collective._PARCEL_BYTES", 16)
        parcels = shared(load, collective)
    assert state_digest(parcels) == state_digest(expected)


def test_one_rank_reads_and_all_have_every_bit(tmp_path: Path) -> None:
    run_ranks(_rank, tmp_path, count=2)
