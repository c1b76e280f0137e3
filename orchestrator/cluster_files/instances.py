"""CPUs, memory and devices of rented machines, by the vendors' names.

From the vendors' pages on general-purpose, accelerated and N1 to N2, G2 and A2 machines. A type
that is not here is taken at what its file says of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_GIB = float(1 << 30)


@dataclass(frozen=True)
class Instance:
    """A machine.

    Attributes:
        cpus: virtual ones.
        memory: in bytes.
        gpus: devices.
    """

    cpus: int
    memory: float
    gpus: int = 0


#: CPUs per size of EC2; ``metal`` and the odd sizes are left out.
_EC2_CPUS = {
    "large": 2,
    "xlarge": 4,
    **{f"{size}xlarge": 4 * size for size in (2, 4, 8, 9, 12, 16, 18, 24, 32, 48)},
}
#: GiB per CPU of the families of EC2 without devices.
_EC2_PLAIN = {
    **dict.fromkeys(("m5", "m5a", "m6i", "m6a", "m7i", "m7a"), 4),
    **dict.fromkeys(("r5", "r6i", "r7i"), 8),
    **dict.fromkeys(("c5", "c6i", "c6a", "c7i", "c7a"), 2),
}
#: GPUs per size of the families of EC2 with devices, and GiB per CPU.
_EC2_GPU: dict[str, tuple[dict[str, int], float]] = {
    **dict.fromkeys(
        ("g5", "g6"),
        (
            {
                **dict.fromkeys(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), 1),
                "12xlarge": 4,
                "24xlarge": 4,
                "48xlarge": 8,
            },
            4,
        ),
    ),
    "g6e": (
        {
            **dict.fromkeys(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), 1),
            "12xlarge": 4,
            "24xlarge": 4,
            "48xlarge": 8,
        },
        8,
    ),
    "g4dn": (
        {
            **dict.fromkeys(("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge"), 1),
            "12xlarge": 4,
        },
        4,
    ),
}
_EC2_LARGE = {
    "p3.2xlarge": Instance(8, 61 * _GIB, 1),
    "p3.8xlarge": Instance(32, 244 * _GIB, 4),
    "p3.16xlarge": Instance(64, 488 * _GIB, 8),
    "p4d.24xlarge": Instance(96, 1152 * _GIB, 8),
    "p4de.24xlarge": Instance(96, 1152 * _GIB, 8),
    "p5.48xlarge": Instance(192, 2048 * _GIB, 8),
    "p5e.48xlarge": Instance(192, 2048 * _GIB, 8),
}
_GCE = re.compile(r"(n1|n2|n2d|e2|c3)-(standard|highmem|highcpu)-(\d+)$")
#: GiB per CPU.
_GCE_MEMORY = {
    ("n1", "standard"): 3.75,
    ("n1", "highmem"): 6.5,
    ("n1", "highcpu"): 0.9,
    ("c3", "highcpu"): 2,
    ("c3", "highmem"): 8,
}
_GCE_PLAIN = {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0}
_G2_GPUS = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
_A2 = re.compile(r"a2-(highgpu|ultragpu)-(\d)g$")
_A2_CPUS = {1: 12, 2: 24, 4: 48, 8: 96}


#: By family of machines, as ``ray.util.accelerators`` has them.
_TYPES = {
    "g4dn": "T4",
    "g5": "A10G",
    "g6": "L4",
    "g6e": "L40S",
    "p3": "V100",
    "p4d": "A100",
    "p4de": "A100",
    "p5": "H100",
    "p5e": "H200",
    "g2": "L4",
    "a2": "A100",
    "a3": "H100",
}


def ec2(name: str) -> Instance | None:
    """A machine of EC2; None where its figures are not known."""
    family, _, size = name.partition(".")
    if name in _EC2_LARGE:
        return _EC2_LARGE[name]
    cpus = _EC2_CPUS.get(size)
    if cpus is None:
        return None
    if family in _EC2_PLAIN:
        return Instance(cpus, cpus * _EC2_PLAIN[family] * _GIB)
    gpus, memory = _EC2_GPU.get(family, ({}, 0.0))
    return Instance(cpus, cpus * memory * _GIB, gpus[size]) if size in gpus else None


def gce(name: str) -> Instance | None:
    """A machine of Compute Engine without guest accelerators; None where it is not known."""
    found = _GCE.match(name)
    if found:
        cpus = int(found[3])
        each = _GCE_MEMORY.get((found[1], found[2]), _GCE_PLAIN[found[2]])
        return Instance(cpus, cpus * each * _GIB)
    if name.startswith("g2-standard-") and name.rpartition("-")[2].isdecimal():
        cpus = int(name.rpartition("-")[2])
        return Instance(cpus, cpus * 4 * _GIB, _G2_GPUS[cpus]) if cpus in _G2_GPUS else None
    found = _A2.match(name)
    if found and int(found[2]) in _A2_CPUS:
        gpus = int(found[2])
        memory = 85 if found[1] == "highgpu" else 170
        return Instance(_A2_CPUS[gpus], gpus * memory * _GIB, gpus)
    if name == "a3-highgpu-8g":
        return Instance(208, 1872 * _GIB, 8)
    return None


def is_known_family(name: str) -> bool:
    """Whether all machines of a name's family should be known, so that the name is a slip."""
    family = name.partition(".")[0] if "." in name else name.partition("-")[0]
    known = {*_EC2_PLAIN, *_EC2_GPU, *(each.partition(".")[0] for each in _EC2_LARGE)}
    return family in known | {"n1", "n2", "n2d", "e2", "c3", "g2", "a2"}


def accelerator_type(name: str) -> str | None:
    """What Ray calls the devices of a machine; None where it has none, or it is not known."""
    family = name.partition(".")[0] if "." in name else name.partition("-")[0]
    return _TYPES.get(family)
