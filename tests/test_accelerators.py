"""What placing a network on a CPU does for speed, and that it changes nothing else."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from orchestrator.accelerators import Accelerator

CPU = Accelerator("cpu")

#: Page faults of ten rounds of a 40 MB block that is written and freed, before and after.
FAULTS = """
import resource
import torch
from orchestrator.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 32, 1),
        nn.Conv2d(32, 32, 1, stride=2),
        nn.Conv2d(32, 8, 1, groups=4),
    )


def test_a_placed_network_computes_the_same() -> None:
    plain = net()
    placed = CPU.place(copy.deepcopy(plain), CPU.device())
    images = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(plain).double()
    expected = exact(images.double())
    torch.testing.assert_close(placed(images).double(), expected, rtol=1e-5, atol=1e-6)
    expected.square().mean().backward()
    placed(images).square().mean().backward()
    for ours, theirs in zip(placed.parameters(), exact.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    assert placed.state_dict().keys() == plain.state_dict().keys()


def test_small_batches_avoid_the_kernel_that_copies() -> None:
    torch.set_num_threads(1)
    placed = CPU.place(net(), CPU.device())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        placed(torch.rand(2, 3, 32, 32))
    assert "slow_conv" not in " ".join(event.key for event in profile.key_averages())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told to keep memory")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120
    )
    before, after = (int(number) for number in done.stdout.split())
    assert before > 20 * (after + 10)
