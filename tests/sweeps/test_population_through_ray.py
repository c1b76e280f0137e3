"""A population through Ray: a clone is its donor to the bit, and goes on with a rate of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sweep_runs import journal, summary, write_experiment

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.storage.local import LocalStorage
from orchestrator.tracking.events import metric_history
from tests.support.small_run import make_data
from tests.support.user_command import finish, result, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: Steps of an epoch: 12 images, 4 a step.
EPOCH = 3
SECTION = """
trials: 4
scheduler: pbt
pbt: {interval_epochs: 1, resample_probability: 0.0}
space:
  train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("population-through-ray")
    make_data(folder / "squares")
    # With a constant schedule the rate of every step is the one that the member was given.
    write_experiment(folder, SECTION, epochs=2, schedule="constant")
    finish(start(folder, "sweep.yaml"), timeout=1500)
    return folder


@pytest.fixture(scope="module")
def clone(folder: Path) -> dict[str, Any]:
    """The member that was replaced: one of four, after the first of two epochs."""
    (found,) = journal(folder, "whole", "cloned")
    return found


def commit(folder: Path, number: int, step: int) -> Manifest:
    """Of a member: what its commit of ``step`` holds, compared with the bytes."""
    store = CommitStore(LocalStorage(folder / "runs" / "whole" / f"trial-{number:03d}"))
    store.read_files(step)
    return next(found.manifest for found in store.commits() if found.step == step)


def rates(folder: Path, name: str) -> list[float]:
    """Learning rate of each step, as the live optimizer had it."""
    log = folder / "runs" / name / "events.jsonl"
    return [point.value for point in metric_history(log, "train/lr")]


def test_all_members_come_to_the_full_age(folder: Path) -> None:
    found = summary(folder, "whole")
    assert [(trial["state"], trial["steps"]) for trial in found["trials"]] == [
        ("done", 2 * EPOCH)
    ] * 4
    scores = {entry["trial"]: entry["score"] for entry in journal(folder, "whole", "aged")[:4]}
    assert len(scores) == 4
    assert len({trial["weights_sha256"] for trial in found["trials"]}) == 4


def test_the_worst_member_continues_from_the_exact_state_of_the_best(
    folder: Path, clone: dict[str, Any]
) -> None:
    scores = {
        entry["trial"]: entry["score"]
        for entry in journal(folder, "whole", "aged")
        if entry["age"] == 1
    }
    ranked = sorted(scores, key=lambda number: (-scores[number], number))
    assert (clone["donor"], clone["trial"]) == (ranked[0], ranked[-1])
    donor, member = (commit(folder, clone[who], EPOCH) for who in ("donor", "trial"))
    assert donor.files == member.files
    assert {"weights.safetensors", "optimizer.safetensors"} <= donor.files.keys()
    assert member.files["weights.safetensors"].sha256 == clone["weights_sha256"]
    after = [commit(folder, clone[who], 2 * EPOCH) for who in ("donor", "trial")]
    assert after[0].files["weights.safetensors"] != after[1].files["weights.safetensors"]


def test_its_optimizer_has_the_perturbed_rate(folder: Path, clone: dict[str, Any]) -> None:
    begun = {
        entry["trial"]: entry["values"]["train.optimizer.lr"]
        for entry in journal(folder, "whole", "trial")
    }
    rate = clone["values"]["train.optimizer.lr"]
    factors = [pytest.approx(min(f * begun[clone["donor"]], 1e-2), rel=1e-5) for f in (0.8, 1.2)]
    assert rate in factors
    for number, before in begun.items():
        after = rate if number == clone["trial"] else before
        found = rates(folder, f"whole/trial-{number:03d}")
        assert found == [pytest.approx(r, rel=1e-12) for r in [before] * EPOCH + [after] * EPOCH]


def test_a_member_is_repeated_as_those_it_has_been(folder: Path, clone: dict[str, Any]) -> None:
    words = ["rerun", "runs/whole", "--trial", str(clone["trial"])]
    name = f"trial-{clone['trial']:03d}"
    said = finish(start(folder, *words, module="orchestrator.cli.main"), timeout=600)
    assert f"up to step {EPOCH} as trial-{clone['donor']:03d}" in said
    assert f"{name}: the same weights, to the bit" in said
    again = f"whole-{name}-rerun"
    first = summary(folder, "whole")["trials"][clone["trial"]]
    assert result(folder, again)["weights_sha256"] == first["weights_sha256"]
    begun = journal(folder, "whole", "trial")[clone["donor"]]["values"]["train.optimizer.lr"]
    rate = clone["values"]["train.optimizer.lr"]
    expected = [begun] * EPOCH + [rate] * EPOCH
    assert rates(folder, again) == [pytest.approx(r, rel=1e-12) for r in expected]
