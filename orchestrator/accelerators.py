"""The only file that knows one kind of device from another.

Everything else asks an :class:`Accelerator` for its device, collective backend, autocast, scaler,
clock and determinism switches. A CPU is an accelerator like any other, so that the whole program
runs, and is tested, without one.

Sources: torch 2.11+ ``torch.cuda`` / ``torch.amp``; Ascend's ``torch_npu`` mirrors ``torch.cuda``
as ``torch.npu`` and needs the collective backend ``hccl`` to be named (Ray does not choose it).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.errors import ConfigError
from orchestrator.memory import keep_freed_memory

Kind = Literal["cpu", "gpu", "npu"]
Precision = Literal["fp32", "bf16", "fp16"]

_DEVICE_TYPE: dict[Kind, str] = {"cpu": "cpu", "gpu": "cuda", "npu": "npu"}
_BACKEND: dict[Kind, str] = {"cpu": "gloo", "gpu": "nccl", "npu": "hccl"}
_RAY_RESOURCE: dict[Kind, str] = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
_DTYPE: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

_Module = TypeVar("_Module", bound=nn.Module)


class HostCopy:
    """Tensors on their way to the host.

    Args:
        tensors: on the host; complete once ``event`` has happened.
        event: of the device; None where nothing is awaited.
    """

    def __init__(self, tensors: Sequence[Tensor], event: Any = None) -> None:
        self._tensors = tuple(tensors)
        self._event = event

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors


@dataclass(frozen=True)
class Accelerator:
    """One kind of device and what differs between the kinds."""

    kind: Kind

    @property
    def device_type(self) -> str:
        """Torch's name of the device: cpu, cuda or npu."""
        return _DEVICE_TYPE[self.kind]

    @property
    def backend(self) -> str:
        """Collective backend for ``torch.distributed``: gloo, nccl or hccl."""
        return _BACKEND[self.kind]

    @property
    def ray_resource(self) -> str:
        """Ray's resource name: CPU, GPU or NPU."""
        return _RAY_RESOURCE[self.kind]

    def _module(self) -> Any:
        """``torch.cuda`` or ``torch.npu``; only called for those kinds."""
        if self.kind == "npu":
            importlib.import_module("torch_npu")
        return getattr(torch, self.device_type)

    def device(self, local_rank: int = 0) -> torch.device:
        """Make this process's device current and return it.

        Ray narrows the visible devices of a worker, so its local rank may exceed what it sees;
        the modulo then picks the one device there is.
        """
        if self.kind == "cpu":
            return torch.device("cpu")
        module = self._module()
        device = torch.device(self.device_type, local_rank % max(1, module.device_count()))
        module.set_device(device)
        return device

    def place(self, model: _Module, device: torch.device) -> _Module:
        """Move a network to ``device``, laid out as convolutions there are fastest; it is returned.

        On a CPU the process then also keeps the memory it frees, see :func:`keep_freed_memory`.
        """
        if self.kind == "cpu":
            keep_freed_memory()
            use_onednn(model)
        return model.to(device).to(memory_format=torch.channels_last)

    def resolve_precision(self, wanted: str) -> Precision:
        """Turn ``auto`` into what this device does well; refuse what it cannot do."""
        if wanted == "auto":
            if self.kind == "gpu" and self._module().is_bf16_supported():
                return "bf16"
            return "fp16" if self.kind == "npu" else "fp32"
        if wanted == "fp16" and self.kind == "cpu":
            raise ConfigError(
                "train.precision: found fp16 on cpu, where loss scaling and half kernels are not "
                "offered; allowed: auto, fp32, bf16. Next: drop the key or use a gpu or npu"
            )
        for precision in _DTYPE:
            if precision == wanted:
                return precision
        raise ConfigError(f"train.precision: {wanted!r}; allowed: auto, {', '.join(_DTYPE)}")

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Context in which the forward pass runs."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPE[precision])

    def scaler(self, precision: Precision, loss_scale: float | str) -> torch.amp.GradScaler:
        """Loss scaler: dynamic or static for fp16, disabled (an identity) otherwise.

        A static scale is a scaler that never grows and, on overflow, keeps its scale: the step is
        skipped just the same.
        """
        if precision != "fp16":
            return torch.amp.GradScaler(self.device_type, enabled=False)
        if isinstance(loss_scale, str):
            return torch.amp.GradScaler(self.device_type)
        return torch.amp.GradScaler(
            self.device_type,
            init_scale=float(loss_scale),
            growth_factor=1.0 + 1e-12,
            backoff_factor=1.0 - 1e-12,
            growth_interval=2**31 - 1,
        )

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An unfilled array that the device can copy from while the host goes on."""
        array = np.empty(shape, dtype)
        if self.kind == "cpu" or not array.size:
            return array
        kind = torch.from_numpy(array[:0]).dtype
        pinned: NDArray[Any] = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        return pinned

    def to_host(self, tensors: Sequence[Tensor]) -> HostCopy:
        """Begin to copy tensors from the device, behind what it was given before.

        The host goes on; what it gives the device next does not wait for the copy to be read.
        """
        if self.kind == "cpu":
            return HostCopy(tensors)
        copies = []
        for tensor in tensors:
            # From memory that the system may move, a copy would be awaited by the host.
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies.append(copy.copy_(tensor, non_blocking=True))
        event = self._module().Event()
        event.record()
        return HostCopy(copies, event)

    def synchronize(self) -> None:
        """Wait until the device has done all it was given; for clocks only."""
        if self.kind != "cpu":
            self._module().synchronize()

    def peak_memory(self) -> int:
        """Largest number of bytes this process held on the device; 0 on a CPU."""
        return 0 if self.kind == "cpu" else int(self._module().max_memory_allocated())

    def set_determinism(self, deterministic: bool, threads: int | None) -> None:
        """Choose deterministic kernels and a fixed number of CPU threads for this process.

        The thread count matters to the bits: it decides how a reduction is split.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            os.environ.setdefault("HCCL_DETERMINISTIC", "true")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        # Deterministic mode also fills fresh memory with NaN, a debugging aid that costs a pass
        # over every new tensor and changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic


def use_onednn(model: nn.Module) -> None:
    """Have oneDNN compute the 1x1 convolutions of small batches, too.

    With one thread and fewer than 16 images PyTorch (2.11 to 2.13, ``ConvParams::use_mkldnn``)
    takes its own kernel, which copies channels_last maps there and back, unless the convolution is
    strided or dilated. Dilating a single tap changes nothing that is computed.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1):
            module.dilation = (2, 2)


def from_resources(wanted: str, resources: Mapping[str, float]) -> Accelerator:
    """The accelerator to use on a cluster with these Ray resources.

    The driver may sit on a head node without a device, so ``auto`` looks at the cluster, not at
    this machine.

    Raises:
        ConfigError: the wanted kind is not in the cluster.
    """
    present: list[Kind] = [
        kind for kind in ("gpu", "npu", "cpu") if resources.get(_RAY_RESOURCE[kind], 0) > 0
    ]
    if wanted == "auto":
        return Accelerator(present[0] if present else "cpu")
    for kind in present:
        if kind == wanted:
            return Accelerator(kind)
    raise ConfigError(
        f"cluster.accelerator: found {wanted!r}, but the cluster offers only "
        f"{', '.join(present)}. Next: use one of those or auto, or join a cluster that has "
        f"{wanted}s"
    )


def of_this_process(wanted: str) -> Accelerator:
    """The accelerator to use in this very process, without Ray."""
    resources = {"CPU": float(os.cpu_count() or 1)}
    if torch.cuda.is_available():
        resources["GPU"] = float(torch.cuda.device_count())
    if importlib.util.find_spec("torch_npu") is not None:
        resources["NPU"] = float(Accelerator("npu")._module().device_count())
    return from_resources(wanted, resources)
