"""An NPU without the hardware: a device that refuses what torch_npu refuses, and counts.

:func:`install` compiles ``device.cpp`` once into the build folder of the working copy, makes torch
know the device ``npu`` and puts a small ``torch_npu`` into ``sys.modules``. A process has the
device from then on, so tests that use it start processes of their own. In :func:`surroundings` any
process, a worker of Ray's too, has it as soon as it imports ``torch_npu``.

``hccl`` is gloo on the memory that device and host share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("device.cpp")
#: Operators of Ascend's op-plugin that this program's steps call.
OPERATORS = Path(__file__).with_name("operators.txt")
_PACKAGES = Path(__file__).with_name("packages")
_ROOT = Path(__file__).parents[3]
_BUILD = _ROOT / "build" / "simulated_npu"


def missing() -> str | None:
    """Why there can be no simulated device here; None if there can be."""
    if shutil.which("g++") is None:
        return "the simulated NPU needs a C++ compiler, and there is no g++ here"
    return None


def surroundings(*folders: str) -> dict[str, str]:
    """The environment of a process on a machine with eight such devices.

    Args:
        folders: of the Python path, behind those that are needed for that.
    """
    path = [str(_PACKAGES), str(_ROOT), *folders]
    return {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def _compiled() -> Path:
    """The library, compiled for this version of torch if it is not there yet."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = _BUILD / f"device-{key}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        home = Path(torch.__file__).parent
        fresh = library.with_suffix(f".{os.getpid()}")
        headers = [home / "include", home / "include/torch/csrc/api/include"]
        command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(SOURCE), "-o", str(fresh)]
        command += [f"-I{folder}" for folder in headers]
        command += [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        fresh.replace(library)
    return library


class _Event:
    """An event of a device on which everything has happened already."""

    def record(self) -> None:
        """Mark this place in the device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come to this place."""


def _torch_npu(model: str) -> types.ModuleType:
    """What this program asks ``torch.npu`` for."""
    module = types.ModuleType("torch.npu")
    calls = torch.ops.simulated_npu
    inf_nan = model != "Ascend910A"
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: model,
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "is_bf16_supported": lambda: inf_nan,
        "max_memory_allocated": lambda device=None: json.loads(calls.report())["peak"],
        "memory_allocated": lambda device=None: json.loads(calls.report())["held"],
        "reset_peak_memory_stats": lambda device=None: calls.reset(),
        "mem_get_info": lambda device=None: (64 << 30, 64 << 30),
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
        "get_rng_state": lambda device=0: torch.get_rng_state(),
        "set_rng_state": lambda state, device=0: torch.set_rng_state(state),
        "Event": _Event,
        "utils": types.SimpleNamespace(is_support_inf_nan=lambda: inf_nan),
        "amp": types.SimpleNamespace(
            GradScaler=lambda **options: torch.amp.GradScaler("npu", **options)
        ),
    }
    for name, answer in answers.items():
        setattr(module, name, answer)
    return module


def install(model: str = "Ascend910B2") -> None:
    """Give this process the device; again does nothing."""
    if hasattr(torch, "npu"):
        return
    torch.ops.load_library(str(_compiled()))
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", _torch_npu(model))
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    if "torch_npu" not in sys.modules:
        package = types.ModuleType("torch_npu")
        # What `importlib.util.find_spec` looks for.
        package.__spec__ = types.SimpleNamespace(name="torch_npu")  # type: ignore[assignment]
        sys.modules["torch_npu"] = package
    torch.distributed.Backend.register_backend(
        "hccl", _Hccl, extended_api=False, devices=["npu", "cpu"]
    )


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a CPU tensor."""
    if tensor.device.type == "cpu":
        return tensor
    shared: torch.Tensor = torch.ops.simulated_npu.shared(tensor)
    return shared


class _Hccl(torch.distributed.ProcessGroup):
    """What this program asks of hccl, done by gloo."""

    def __init__(self, store: Any, rank: int, world: int, timeout: Any) -> None:
        super().__init__(rank, world)
        self._gloo = torch.distributed.ProcessGroupGloo(store, rank, world, timeout)

    def getBackendName(self) -> str:  # noqa: N802
        return "hccl"

    def allreduce(self, tensors: Any, options: Any) -> Any:
        return self._gloo.allreduce([_shared(tensor) for tensor in tensors], options)

    def broadcast(self, tensors: Any, options: Any) -> Any:
        return self._gloo.broadcast([_shared(tensor) for tensor in tensors], options)

    def all_gather_single(self, output: Any, given: Any, options: Any) -> Any:
        return self._gloo.all_gather_single(_shared(output), _shared(given), options)

    def all_to_all_single(
        self, output: Any, given: Any, received: Any, sent: Any, options: Any
    ) -> Any:
        return self._gloo.all_to_all_single(
            _shared(output), _shared(given), received, sent, options
        )

    # What torch before 2.15 calls them.
    _allgather_base, alltoall_base = all_gather_single, all_to_all_single

    def send(self, tensors: Any, target: int, tag: int) -> Any:
        return self._gloo.send([_shared(tensor) for tensor in tensors], target, tag)

    def recv(self, tensors: Any, source: int, tag: int) -> Any:
        return self._gloo.recv([_shared(tensor) for tensor in tensors], source, tag)

    def barrier(self, options: Any) -> Any:
        return self._gloo.barrier(options)


@dataclass(frozen=True)
class Counts:
    """What the device was asked to do since the last :func:`reset`.

    Attributes:
        operators: calls by name.
        host_reads: times the host waited for a value.
        awaited_copies: copies to the device from memory that is not pinned, which the host waits
            for.
        copies: copies to the device that it does not.
        copies_beside: copies to the device, of either kind, on a stream of their own.
        bytes_to_host: copied in either way.
    """

    operators: dict[str, int] = field(default_factory=dict)
    host_reads: int = 0
    awaited_copies: int = 0
    copies: int = 0
    copies_beside: int = 0
    bytes_to_host: int = 0

    def unknown(self) -> set[str]:
        """Operators that Ascend's op-plugin does not have."""
        known = {
            line.split("#")[0].strip()
            for line in OPERATORS.read_text().splitlines()
            if line.split("#")[0].strip()
        }
        named = {name.removeprefix("aten::").partition(".")[0] for name in self.operators}
        return named - known


def counts() -> Counts:
    """What was counted."""
    tree = json.loads(torch.ops.simulated_npu.report())
    events = tree["events"]
    return Counts(
        operators=tree["operators"],
        host_reads=events.get("host_read", 0),
        awaited_copies=events.get("awaited_copy_to_device", 0),
        copies=events.get("copy_to_device", 0),
        copies_beside=events.get("copy_beside", 0),
        bytes_to_host=events.get("bytes_to_host", 0),
    )


def reset() -> None:
    """Count from here on."""
    torch.ops.simulated_npu.reset()
