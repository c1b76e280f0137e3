"""What differs between kinds of devices: layouts, precisions, determinism; and CPUs made fast."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.accelerators import (
    NUMERICS,
    Accelerator,
    as_network_input,
    from_resources,
    of_this_process,
)
from orchestrator.errors import ConfigError
from orchestrator.predict.prediction import network_of

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


#: Cards and what torch_npu says of them: name, bf16, whether overflow becomes infinite.
NPUS = [("Ascend910A", False, False), ("Ascend910B2", True, True), ("Ascend910_9392", True, True)]


def pretend_npu(
    monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool, inf_nan: bool
) -> SimpleNamespace:
    """A ``torch_npu`` that only answers questions about its card."""
    module = SimpleNamespace(
        get_device_name=lambda: name,
        is_bf16_supported=lambda: bf16,
        utils=SimpleNamespace(is_support_inf_nan=lambda: inf_nan),
        amp=SimpleNamespace(GradScaler=lambda **options: ("torch_npu's", options)),
    )
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setattr(torch, "npu", module, raising=False)
    monkeypatch.delenv("INF_NAN_MODE_ENABLE", raising=False)
    return module


@pytest.mark.parametrize(("name", "bf16", "inf_nan"), NPUS)
def test_an_npu_computes_in_what_its_model_has(
    name: str, bf16: bool, inf_nan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_npu(monkeypatch, name, bf16, inf_nan)
    npu = Accelerator("npu")
    assert npu.resolve_precision("auto") == ("bf16" if bf16 else "fp16")
    assert npu.backend == "hccl"
    text = npu.numerics_text(True, npu.resolve_precision("auto"))
    assert f"npu {name}, " in text
    assert "contiguous maps" in text
    assert ("overflow saturates" in text) != inf_nan
    assert "INF_NAN_MODE_ENABLE=1" in text


def test_a_card_without_bf16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_npu(monkeypatch, *NPUS[0])
    with pytest.raises(ConfigError, match=r"found bf16 on Ascend910A.*allowed: auto, fp32, fp16"):
        Accelerator("npu").resolve_precision("bf16")
    pretend_npu(monkeypatch, *NPUS[1])
    assert Accelerator("npu").resolve_precision("bf16") == "bf16"


def test_what_was_trained_in_half_precision_detects_on_every_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [CPU.detecting_precision(one) for one in ("auto", "fp32", "bf16", "fp16")] == [
        "fp32",
        "fp32",
        "bf16",
        "fp32",
    ]
    pretend_npu(monkeypatch, *NPUS[0])
    assert Accelerator("npu").detecting_precision("bf16") == "fp32"
    assert Accelerator("npu").detecting_precision("fp16") == "fp16"
    train = SimpleNamespace(precision="fp16")
    experiment = SimpleNamespace(train=train, cluster=SimpleNamespace(accelerator="cpu"))
    loaded: Any = SimpleNamespace(resolved=SimpleNamespace(experiment=experiment), model=net())
    network: Any = network_of(loaded)
    assert network.precision == "fp32"


def test_a_saturating_npu_is_asked_for_its_overflow_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_npu(monkeypatch, *NPUS[0])
    assert Accelerator("npu").scaler("fp16", 32.0)[0] == "torch_npu's"  # type: ignore[index]
    pretend_npu(monkeypatch, *NPUS[1])
    scaler = Accelerator("npu").scaler("bf16", "dynamic")
    assert isinstance(scaler, torch.amp.GradScaler)
    assert not scaler.is_enabled()


def test_an_npu_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", None)
    with pytest.raises(ConfigError, match="npu needs the package torch_npu"):
        Accelerator("npu").resolve_precision("auto")


BROKEN = """
raise ImportError("libascend_hal.so: cannot open shared object file", name="torch_npu._C")
"""


def test_a_broken_torch_npu_is_in_the_way_of_none_but_npus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without Ascend's libraries, where it was installed all the same."""
    (tmp_path / "torch_npu.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_npu", raising=False)
    monkeypatch.delenv("INF_NAN_MODE_ENABLE", raising=False)
    assert of_this_process("cpu").kind == "cpu"
    for wanted in ("auto", "npu"):
        with pytest.raises(ConfigError, match=r"cannot be imported: libascend_hal.so.*set_env.sh"):
            of_this_process(wanted)


def test_a_cluster_that_offers_nothing_is_said_to() -> None:
    with pytest.raises(ConfigError) as told:
        from_resources("cpu", {"memory": 1e9})
    assert str(told.value) == (
        "cluster.accelerator: found 'cpu', but the cluster offers no cpu, gpu or npu. Next: join a "
        "cluster that has cpus"
    )


@pytest.mark.parametrize(("hardware", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_takes_bf16_only_from_hardware(
    hardware: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert Accelerator("gpu").resolve_precision("auto") == precision
    assert Accelerator("gpu").resolve_precision("bf16") == "bf16"


@pytest.fixture
def switches() -> Iterator[None]:
    """Torch's switches as they were, afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    search = torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before
    torch.backends.cudnn.benchmark = search
    torch.use_deterministic_algorithms(strict, warn_only=warns)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.usefixtures("switches")
def test_the_table_of_a_gpu_is_what_is_set_and_said(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NCCL_ALGO", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_PROTO", "LL128")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    gpu = Accelerator("gpu")
    gpu.set_determinism(deterministic, None)
    text = gpu.numerics_text(deterministic, "bf16")
    rounding = "ieee" if deterministic else "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == rounding
    assert torch.backends.cudnn.conv.fp32_precision == rounding
    # By their old names, too, which torch itself reads in places and refuses if they differ.
    assert torch.backends.cuda.matmul.allow_tf32 is not deterministic
    assert torch.backends.cudnn.allow_tf32 is not deterministic
    assert torch.get_float32_matmul_precision() == ("highest" if deterministic else "high")
    with torch.backends.cudnn.flags(enabled=True):
        pass
    assert torch.backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert text.startswith("gpu NVIDIA H200, bf16, channels_last maps, TF32 ")
    if deterministic:
        # What a user has chosen stays, and is said.
        assert "NCCL_ALGO=Ring, NCCL_PROTO=LL128" in text
        assert "TF32 off, cuDNN does not search kernels, deterministic kernels or an error" in text
    else:
        assert "TF32 on, cuDNN searches kernels, fastest kernels" in text
        assert "not promised: the same bits in every run" in text
    for name in NUMERICS["gpu", deterministic].environment:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("switches")
def test_an_operator_without_a_deterministic_kernel_is_an_error_that_names_it() -> None:
    CPU.set_determinism(True, None)
    values: Any = torch.zeros(3)
    with (
        pytest.raises(ConfigError, match=r"train.deterministic: the operator put_ has no") as found,
        CPU.naming_operators(),
    ):
        values.put_(torch.tensor([0, 0]), torch.ones(2))
    assert "train.deterministic=false, which gives up the same bits" in str(found.value)
    with pytest.raises(RuntimeError, match="size"), CPU.naming_operators():
        torch.zeros(2) + torch.zeros(3)


def test_images_are_a_view_where_kernels_like_channels_last_and_a_copy_elsewhere() -> None:
    images = torch.zeros(2, 8, 6, 3, dtype=torch.uint8)
    seen = as_network_input(images)
    assert seen.shape == (2, 3, 8, 6)
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert seen.data_ptr() == images.data_ptr()
    assert as_network_input(images.to("meta")).is_contiguous()
