"""What must hold for a pod to find a node: labels, taints, and sizes of machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from orchestrator.cluster_files import instances
from orchestrator.cluster_files.models.pods import PodSpec
from orchestrator.cluster_files.quantities import gib
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import nearest

_GPU = "nvidia.com/gpu"
#: Devices by which nodes are tainted.
_TAINTS = (_GPU, "amd.com/gpu", "huawei.com/Ascend910", "huawei.com/Ascend310P")
_ARCH = "kubernetes.io/arch"
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
}
#: What vendors write behind these labels.
_SPOT_VALUES = {
    "karpenter.sh/capacity-type": ("spot", "on-demand", "reserved"),
    "eks.amazonaws.com/capacityType": ("SPOT", "ON_DEMAND", "CAPACITY_BLOCK"),
    "cloud.google.com/gke-spot": ("true",),
}


def _alike(word: str, known: str) -> bool:
    """Whether a word is a slip of a known one, and not another of the same vendor."""
    return abs(len(word) - len(known)) < 3 and SequenceMatcher(None, word, known).ratio() > 0.9


def check_scheduling(
    sheet: Sheet, path: KeyPath, spec: PodSpec, limits: Sequence[Mapping[str, float]]
) -> None:
    """Report labels, taints and sizes by which a pod finds no node.

    Args:
        sheet: takes the problems.
        path: of the pod's spec.
        spec: of the pod.
        limits: what each of its containers may take.
    """
    for key, value in spec.node_selector.items():
        here = (*path, "nodeSelector", key)
        known = (*SPOT_LABELS, _INSTANCE_TYPE, _ARCH, "kubernetes.io/os", "kubernetes.io/hostname")
        guess = nearest(key, known)
        if guess is not None and key not in known and _alike(key, guess):
            sheet.report(here, f"no node has a label {key!r}; did you mean {guess!r}?")
        if value not in _SPOT_VALUES.get(key, (value,)):
            allowed = " and ".join(_SPOT_VALUES[key])
            sheet.report(here, f"found {value!r}, allowed are {allowed}")
        if key == _ARCH and value not in ("amd64", "arm64"):
            sheet.report(here, f"found {value!r}, allowed are amd64 and arm64")
    for index, taint in enumerate(spec.tolerations):
        known = (*SPOT_LABELS, *_TAINTS)
        guess = nearest(taint.key or "", known)
        if guess is not None and taint.key not in known and _alike(taint.key or "", guess):
            sheet.report(
                (*path, "tolerations", index, "key"),
                f"no node has a taint {taint.key!r}; did you mean {guess!r}?",
            )
        if taint.operator == "Exists" and taint.value is not None:
            sheet.report(
                (*path, "tolerations", index, "value"), "operator Exists takes no value; remove it"
            )
        elif taint.operator == "Equal" and taint.value is None:
            sheet.report(
                (*path, "tolerations", index),
                f"only a taint {taint.key!r} without a value is put up with; write operator: "
                "Exists, or a value",
            )
    name = spec.node_selector.get(_INSTANCE_TYPE)
    machine = None if name is None else instances.ec2(name) or instances.gce(name)
    if machine is None:
        return
    total: dict[str, float] = {}
    for each in limits:
        for resource, number in each.items():
            total[resource] = total.get(resource, 0.0) + number
    checks = (("cpu", machine.cpus, ""), ("memory", machine.memory, "b"), (_GPU, machine.gpus, ""))
    for resource, most, unit in checks:
        if total.get(resource, 0.0) > most:
            shown = (
                (gib(total[resource]), gib(most)) if unit else (f"{total[resource]:g}", f"{most}")
            )
            sheet.report(
                (*path, "containers", 0, "resources", "limits", resource),
                f"the pod takes {shown[0]} of {resource}, and a {name} has {shown[1]}",
            )
