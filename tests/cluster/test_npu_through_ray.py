"""An experiment with ``accelerator: npu``, as a user starts it, on a node with eight NPUs.

The devices are simulated: Ray counts them by a stub of Ascend's ``acl``, and every process that
imports ``torch_npu`` has them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import accelerators
from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.tracking.events import read_events
from orchestrator.training.session import run_rank
from tests.support import simulated_npu
from tests.support.experiments import experiment
from tests.support.user_command import finish, result, start

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EXPERIMENT = experiment(
    """\
train:
  epochs: 2
  batch_size: 4
  virtual_shards: 2
  precision: fp32
  optimizer: {name: sgd, lr: 0.01, momentum: 0.9}
  ema: {decay: 0.9, warmup_steps: 4}
  log_every_steps: 1
cluster: {workers: 2, accelerator: npu, threads_per_worker: 1}
tracking: {mlflow: null}
""",
    name="npu",
)


class Contiguous(Accelerator):
    """A CPU that computes in the layout of an NPU."""

    def place(self, model: Any, device: torch.device) -> Any:
        return model


@pytest.mark.skipif(simulated_npu.missing() is not None, reason=simulated_npu.missing() or "")
def test_two_npus_of_a_node_train_to_the_weights_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_digits(tmp_path / "digits", Recipe(train=12, val=4, seed=3))
    file = tmp_path / "npu.yaml"
    file.write_text(EXPERIMENT)
    command = start(
        tmp_path,
        "npu.yaml",
        surroundings=simulated_npu.surroundings(*filter(None, sys.path)),
    )
    output = finish(command, timeout=500)
    found = result(tmp_path, "npu")
    assert (found["state"], found["steps"]) == ("done", 6), output
    events = read_events(tmp_path / "runs" / "npu" / "events.jsonl")
    (device,) = (event.text for event in events if event.kind == "device")
    assert device.startswith("npu Ascend910B2, fp32, contiguous maps")
    monkeypatch.setattr(accelerators, "_CHANNELS_LAST", frozenset())
    alone = ["cluster.workers=1", "cluster.accelerator=cpu"]
    plan = make_plan(load_experiment(file, alone), tmp_path / "cpu", threads=1)
    (tmp_path / "cpu").mkdir()
    expected = run_rank(plan.job, LocalStream(plan.batches), accelerator=Contiguous("cpu"))
    assert found["weights_sha256"] == expected.weights_sha256
    assert found["metrics"] == expected.metrics
