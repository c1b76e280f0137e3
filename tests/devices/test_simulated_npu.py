"""Every detector on a device that refuses what torch_npu refuses, against the CPU, and counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detectors.registry import variants
from tests.support import simulated_npu

sys.path.insert(0, str(Path(__file__).parents[1] / "detectors"))
from small_detectors import SLOW, SMALL

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    simulated_npu.missing() is not None, reason=simulated_npu.missing() or ""
)

OWN = [name for name in variants() if name in SMALL]
SMALLEST = [name for name in OWN if name not in SLOW]
#: One detector without proposals and both flavours with them; the rest is for the slow lane.
FAST = ["faster_rcnn_mindspore", "faster_rcnn_torchvision", "ssd300_mobilenet_v2"]


def fields_of(variant: str) -> dict[str, Any]:
    name = variants()[variant].model_fields["name"].default
    return {"name": name, "variant": variant, **SMALL[variant]}


def in_a_process(cases: list[dict[str, Any]], *, card: str = "Ascend910B2") -> list[dict[str, Any]]:
    """What cases showed; a process has the device from its first case on."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.simulated_npu.steps",
            json.dumps([{**case, "card": card} for case in cases]),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def fast() -> dict[str, dict[str, Any]]:
    cases = [{"fields": fields_of(variant), "optimizer": "sgd"} for variant in FAST]
    return dict(zip(FAST, in_a_process(cases), strict=True))


def assert_like_the_cpu(result: dict[str, Any]) -> None:
    for here, there in result["losses"]:
        assert here == there
        assert here["loss"] > 0
    assert result["weights_apart"] == {}
    assert result["detections_equal"]


def assert_nothing_waits(result: dict[str, Any]) -> None:
    # No value is read by the host in a whole step, the copy of its input included, and none is made
    # there; nor between the arrival of the input and the gradients.
    assert result["step"] == {"host_reads": 0, "awaited_copies": 0}
    assert result["core"] == {"host_reads": 0, "awaited_copies": 0}
    assert result["evaluation"]["host_reads"] == 0
    assert result["evaluation"]["bytes_an_image"] <= 100_000
    assert result["unknown"] == []


@pytest.mark.parametrize("variant", FAST)
def test_two_steps_and_an_evaluation_have_the_bits_of_the_cpu(
    variant: str, fast: dict[str, dict[str, Any]]
) -> None:
    assert_like_the_cpu(fast[variant])
    assert fast[variant]["detections"] > 0


@pytest.mark.parametrize("variant", FAST)
def test_nothing_waits_and_every_operator_is_ascends(
    variant: str, fast: dict[str, dict[str, Any]]
) -> None:
    assert_nothing_waits(fast[variant])


@pytest.mark.slow
@pytest.mark.parametrize("variant", OWN)
def test_every_variant_with_every_optimizer(variant: str) -> None:
    fields = fields_of(variant)
    for result in in_a_process([{"fields": fields, "optimizer": one} for one in ("sgd", "adamw")]):
        assert_like_the_cpu(result)
        assert result["detections"] > 0
        assert_nothing_waits(result)


@pytest.mark.slow
@pytest.mark.parametrize(("card", "precision"), [("Ascend910A", "fp16"), ("Ascend910B2", "bf16")])
@pytest.mark.parametrize("variant", SMALLEST)
def test_a_card_computes_in_half_precision(variant: str, card: str, precision: str) -> None:
    case = {"fields": fields_of(variant), "optimizer": "sgd", "precision": "auto"}
    (result,) = in_a_process([case], card=card)
    assert result["precision"] == precision
    # Ahead of the first update, which fp16 begins by leaving out; 8 bits of mantissa in bf16.
    single, half = result["losses"][0]
    assert half["loss"] == pytest.approx(single["loss"], rel=0.02)
    assert_nothing_waits(result)


@pytest.mark.slow
def test_two_ranks_over_hccl_end_in_the_bits_of_one(tmp_path: Path) -> None:
    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.simulated_npu.ranks", str(rank), str(world)]
        return subprocess.Popen(
            [*command, str(tmp_path / "meeting")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )

    alone = start(0, 1)
    expected, _ = alone.communicate(timeout=300)
    assert len(expected.strip()) == 64
    pair = [start(rank, 2) for rank in range(2)]
    assert [one.communicate(timeout=300)[0] for one in pair] == [expected] * 2


REFUSED = """
import torch
from tests.support import simulated_npu
simulated_npu.install()
x = torch.ones(2, 3, 4, 4).to("npu")
def refusal(work):
    try:
        work()
    except (RuntimeError, NotImplementedError) as error:
        return str(error)
    return "nothing was refused"
print(refusal(lambda: x.to(memory_format=torch.channels_last)))
print(refusal(lambda: x.contiguous(memory_format=torch.channels_last)))
print(refusal(lambda: torch.nn.Conv2d(3, 4, 1).to("npu").to(memory_format=torch.channels_last)))
print(refusal(lambda: x.double()))
print(refusal(lambda: x + torch.ones(4)))
simulated_npu.reset()
x.sum().item(), torch.equal(x, x), x[x > 0], x.cpu(), x.nonzero()
counts = simulated_npu.counts()
print(counts.host_reads, counts.bytes_to_host)
"""


def test_the_device_refuses_and_counts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    *refusals, counts = done.stdout.splitlines()
    only_contiguous = "Only contiguous_format or preserve_format is supported."
    assert [text.partition(" (")[0] for text in refusals] == [
        only_contiguous,
        only_contiguous,
        only_contiguous,
        "npu: float64 is not supported by this device",
        "Expected all tensors to be on the same device, but found at least two devices, npu:0 and "
        "cpu!",
    ]
    assert counts == "5 384"
