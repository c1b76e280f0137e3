"""The only file that knows one kind of device from another.

Everything else asks an :class:`Accelerator` for its device, collective backend, layout, autocast,
scaler, copies, clock and determinism switches. A CPU is an accelerator like any other, so that the
whole program runs, and is tested, without one.

What decides over speed and bits stands in one table, :data:`NUMERICS`, and is logged at the start
of a run.

Sources: torch 2.11+ ``torch.cuda`` / ``torch.amp``; Ascend's ``torch_npu`` mirrors ``torch.cuda``
as ``torch.npu`` and needs the collective backend ``hccl`` to be named (Ray does not choose it). It
refuses every memory format but the contiguous one (``_to_copy`` in its ``ToKernelNpu.cpp``), and
whether an overflow shows as infinity is a mode of the process (``INF_NAN_MODE_ENABLE`` in Ascend's
documentation of CANN; cards before the 910B saturate whatever it says).
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detectors import roi_align, suppression
from orchestrator.errors import ConfigError, first_line
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

#: How the maps of a network lie in memory, on the devices that are told.
_CHANNELS_LAST: Final = frozenset({"cpu", "cuda"})

#: Torch's error about an operator that cannot be deterministic, up to the operator's name.
_NONDETERMINISTIC: Final = re.compile(r"(\S+) does not have a deterministic implementation")

_Module = TypeVar("_Module", bound=nn.Module)


class Numerics(NamedTuple):
    """What decides over speed and bits on one kind of device.

    Attributes:
        tf32: whether products and convolutions in fp32 round their factors to 10 bits of mantissa;
            None where there is no such thing.
        search: whether cuDNN times its kernels and takes the fastest; None likewise.
        environment: variables that are set unless they are set already.
        gives_up: what is not promised.
    """

    tf32: bool | None = None
    search: bool | None = None
    environment: Mapping[str, str] = {}
    gives_up: str = ""


_BITS: Final = "the same bits in every run, so a resumed run may differ from an unbroken one"

#: By kind and ``train.deterministic``. True refuses operators without a deterministic kernel; false
#: takes the fastest there is.
NUMERICS: Final[Mapping[tuple[Kind, bool], Numerics]] = {
    ("cpu", True): Numerics(),
    ("cpu", False): Numerics(gives_up=_BITS),
    ("gpu", True): Numerics(
        tf32=False,
        search=False,
        environment={
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            # Which algorithm NCCL takes, and so the order of a sum, depends on the size and on
            # what it measures otherwise.
            "NCCL_ALGO": "Ring",
            "NCCL_PROTO": "Simple",
        },
    ),
    ("gpu", False): Numerics(tf32=True, search=True, gives_up=_BITS),
    ("npu", True): Numerics(environment={"INF_NAN_MODE_ENABLE": "1", "HCCL_DETERMINISTIC": "true"}),
    ("npu", False): Numerics(environment={"INF_NAN_MODE_ENABLE": "1"}, gives_up=_BITS),
}


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
        """``torch.cuda`` or ``torch.npu``; only called for those kinds.

        Raises:
            ConfigError: an NPU without torch_npu, or one that cannot be imported.
        """
        if self.kind == "npu":
            # Read when the package is imported.
            _set_unless_set({"INF_NAN_MODE_ENABLE": "1"})
            try:
                importlib.import_module("torch_npu")
            except (ImportError, OSError) as error:
                raise ConfigError(_without_torch_npu(error)) from error
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

    def device_name(self) -> str:
        """Model of this process's card, such as ``NVIDIA H200``; empty for a CPU."""
        return "" if self.kind == "cpu" else str(self._module().get_device_name())

    def place(self, model: _Module, device: torch.device) -> _Module:
        """Move a network to ``device``, laid out as convolutions there are fastest; it is returned.

        On a CPU the process then also keeps the memory it frees, see :func:`keep_freed_memory`.
        """
        if self.kind == "cpu":
            keep_freed_memory()
            use_onednn(model)
        if self.kind == "gpu":
            roi_align.BAG_GRADIENT.add(device.type)
            suppression.BY_SCAN.add(device.type)
        model = model.to(device)
        if device.type in _CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        return model

    def resolve_precision(self, wanted: str) -> Precision:
        """Turn ``auto`` into what this device does well; refuse what it cannot do."""
        if wanted == "auto":
            if self.kind == "cpu":
                return "fp32"
            if self._has_bf16():
                return "bf16"
            return "fp16" if self.kind == "npu" else "fp32"
        if wanted == "fp16" and self.kind == "cpu":
            raise ConfigError(
                "train.precision: found fp16 on cpu, where loss scaling and half kernels are not "
                "offered; allowed: auto, fp32, bf16. Next: drop the key or use a gpu or npu"
            )
        if wanted == "bf16" and self.kind == "npu" and not self._has_bf16():
            raise ConfigError(
                f"train.precision: found bf16 on {self.device_name()}, which does not compute in "
                "it; allowed: auto, fp32, fp16. Next: drop the key, which stands for fp16 there"
            )
        for precision in _DTYPE:
            if precision == wanted:
                return precision
        raise ConfigError(f"train.precision: {wanted!r}; allowed: auto, {', '.join(_DTYPE)}")

    def detecting_precision(self, trained: str) -> Precision:
        """Precision of a network that no longer trains: that of its training, or fp32.

        Trained in what this device does not compute in, it detects as well in more.
        """
        try:
            return self.resolve_precision(trained)
        except ConfigError:
            if trained not in _DTYPE:
                raise
            return "fp32"

    def _has_bf16(self) -> bool:
        """Whether this process's card computes in bf16 itself: Ampere, Ascend 910B, and later."""
        module = self._module()
        if self.kind == "gpu":
            # The others emulate it, slower than fp32.
            return bool(module.is_bf16_supported(including_emulation=False))
        return bool(module.is_bf16_supported())

    def shows_overflow(self) -> bool:
        """Whether a number that grows too large becomes infinite.

        On an NPU before the 910B, or in its saturation mode, it becomes the largest there is.
        """
        if self.kind != "npu":
            return True
        return bool(self._module().utils.is_support_inf_nan())

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Context in which the forward pass runs."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=_DTYPE[precision])

    def scaler(self, precision: Precision, loss_scale: float | str) -> torch.amp.GradScaler:
        """Loss scaler: dynamic or static for fp16, disabled (an identity) otherwise.

        A static scale is a scaler that never grows and, on overflow, keeps its scale: the step is
        skipped just the same. Where overflow does not show in the numbers, it is torch_npu's own,
        which asks the card for its overflow flag.
        """
        if precision != "fp16":
            return torch.amp.GradScaler(self.device_type, enabled=False)
        static: dict[str, Any] = {}
        if not isinstance(loss_scale, str):
            static = {
                "init_scale": float(loss_scale),
                "growth_factor": 1.0 + 1e-12,
                "backoff_factor": 1.0 - 1e-12,
                "growth_interval": 2**31 - 1,
            }
        if not self.shows_overflow():
            own: torch.amp.GradScaler = self._module().amp.GradScaler(**static)
            return own
        return torch.amp.GradScaler(self.device_type, **static)

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

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An unfilled array that the device can copy from while the host goes on."""
        array = np.empty(shape, dtype)
        if self.kind == "cpu" or not array.size:
            return array
        kind = torch.from_numpy(array[:0]).dtype
        pinned: NDArray[Any] = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        return pinned

    def synchronize(self) -> None:
        """Wait until the device has done all it was given; for clocks only."""
        if self.kind != "cpu":
            self._module().synchronize()

    def peak_memory(self) -> int:
        """Largest number of bytes this process held on the device; 0 on a CPU."""
        return 0 if self.kind == "cpu" else int(self._module().max_memory_allocated())

    def forget_peak(self) -> None:
        """Give back what is cached and let :meth:`peak_memory` begin anew."""
        if self.kind != "cpu":
            self._module().empty_cache()
            self._module().reset_peak_memory_stats()

    def memory(self) -> int | None:
        """Bytes of this process's card; None on a CPU, which shares those of the machine."""
        return None if self.kind == "cpu" else int(self._module().mem_get_info()[1])

    def set_determinism(self, deterministic: bool, threads: int | None) -> None:
        """Choose kernels by :data:`NUMERICS` and a fixed number of CPU threads for this process.

        An operator without a deterministic kernel is then an error; :meth:`naming_operators` turns
        it into one for users. The thread count matters to the bits: it decides how a reduction is
        split. Collectives read their settings when the first of them runs.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        numerics = NUMERICS[self.kind, deterministic]
        _set_unless_set(numerics.environment)
        # As torch.use_deterministic_algorithms, which imports torch's compiler for 2 s as well.
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        # Deterministic mode also fills fresh memory with NaN, a debugging aid that costs a pass
        # over every new tensor and changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = bool(numerics.search)
        if numerics.tf32 is not None:
            rounding = "tf32" if numerics.tf32 else "ieee"
            # Typed by torch as a module that has less in it.
            cudnn: Any = torch.backends.cudnn
            # By their old names first: torch refuses to read those, as its compiler and
            # ``cudnn.flags`` do here and there, where the new ones say something else.
            torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = numerics.tf32
            torch.backends.cuda.matmul.fp32_precision = rounding
            cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = rounding

    def numerics_text(self, deterministic: bool, precision: Precision) -> str:
        """One line that says what decides over speed and bits here, for logs and benchmarks."""
        numerics = NUMERICS[self.kind, deterministic]
        layout = "channels_last" if self.device_type in _CHANNELS_LAST else "contiguous"
        parts = [f"{self.kind} {self.device_name()}".strip(), precision, f"{layout} maps"]
        if numerics.tf32 is not None:
            parts.append(f"TF32 {'on' if numerics.tf32 else 'off'}")
        if numerics.search is not None:
            parts.append(f"cuDNN {'searches' if numerics.search else 'does not search'} kernels")
        parts.append("deterministic kernels or an error" if deterministic else "fastest kernels")
        if not self.shows_overflow():
            parts.append("overflow saturates, and only the card's flag shows it")
        parts += [f"{name}={os.environ.get(name, '')}" for name in sorted(numerics.environment)]
        text = ", ".join(parts)
        return f"{text}; not promised: {numerics.gives_up}" if numerics.gives_up else text

    @contextmanager
    def naming_operators(self) -> Iterator[None]:
        """Turn torch's error about an operator without a deterministic kernel into a user's.

        Raises:
            ConfigError: names the operator and the key.
        """
        try:
            yield
        except RuntimeError as error:
            found = _NONDETERMINISTIC.search(str(error))
            if found is None:
                raise
            raise ConfigError(
                f"train.deterministic: the operator {found[1]} has no deterministic kernel on "
                f"{self.kind}. Next: set train.deterministic=false, which gives up "
                f"{NUMERICS[self.kind, False].gives_up}, or use a detector without that operator"
            ) from error


def _without_torch_npu(error: ImportError | OSError) -> str:
    """What to do about a torch_npu that cannot be imported."""
    if getattr(error, "name", None) == "torch_npu":
        return (
            "cluster.accelerator: npu needs the package torch_npu, which is not installed here. "
            "Next: pip install the torch-npu that goes with torch "
            f"{torch.__version__.partition('+')[0]}"
        )
    return (
        f"cluster.accelerator: torch_npu is installed but cannot be imported: {first_line(error)}. "
        "Next: make Ascend's libraries known to this process, as "
        "'source /usr/local/Ascend/ascend-toolkit/set_env.sh' does, or ask for another accelerator"
    )


def kind_of(device: torch.device) -> Kind:
    """The kind a device is of."""
    return next(kind for kind, name in _DEVICE_TYPE.items() if name == device.type)


def as_network_input(images: Tensor) -> Tensor:
    """(N, H, W, 3) images to (N, 3, H, W), laid out as convolutions on their device are fastest.

    A view where kernels like channels_last, which it is as it stands; a copy on an NPU, whose every
    first convolution would make one otherwise.
    """
    seen = images.permute(0, 3, 1, 2)
    return seen if images.device.type in _CHANNELS_LAST else seen.contiguous()


def _set_unless_set(environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        os.environ.setdefault(name, value)


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
    offered = f"only {', '.join(present)}" if present else "no cpu, gpu or npu"
    raise ConfigError(
        f"cluster.accelerator: found {wanted!r}, but the cluster offers {offered}. Next: "
        f"{'use one of those or auto, or ' if present else ''}join a cluster that has {wanted}s"
    )


def of_this_process(wanted: str) -> Accelerator:
    """The accelerator to use in this very process, without Ray.

    What nobody asks for is left alone: torch_npu cannot be imported where Ascend's libraries are
    not, on the login node of a cluster for instance.
    """
    resources = {"CPU": float(os.cpu_count() or 1)}
    if torch.cuda.is_available():
        resources["GPU"] = float(torch.cuda.device_count())
    if wanted in ("auto", "npu") and importlib.util.find_spec("torch_npu") is not None:
        resources["NPU"] = float(Accelerator("npu")._module().device_count())
    return from_resources(wanted, resources)
