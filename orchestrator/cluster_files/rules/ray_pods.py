"""What must hold in a pod that Ray runs in: what Ray is told of it, memory, its end."""

from __future__ import annotations

import json

from orchestrator.cluster_files.models.pods import Container, PodSpec, PodTemplate
from orchestrator.cluster_files.models.ray import ClusterSpec, HeadGroup, WorkerGroup
from orchestrator.cluster_files.quantities import gib
from orchestrator.cluster_files.rules.commands import (
    GRACE_SECONDS,
    STORE_SHARE,
    option_problem,
    resources_of,
    start_options,
)
from orchestrator.cluster_files.rules.pods import (
    GPU,
    NPUS,
    check_variant,
    container_commands,
    env_of,
    limits_of,
    shm_of,
)
from orchestrator.cluster_files.sheet import Nodes, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean


def check_ray_pod(
    sheet: Sheet, path: KeyPath, spec: ClusterSpec, group: HeadGroup | WorkerGroup
) -> None:
    """Report what is wrong with the pods of a group, and note what nodes they are.

    Args:
        sheet: takes problems and nodes.
        path: of the group.
        spec: of the cluster.
        group: the head or a group of workers.
    """
    container, pod = group.template.spec.containers[0], group.template.spec
    at: KeyPath = (*path, "template", "spec", "containers", 0)
    resources = _start_params(sheet, path, group, container)
    limits = limits_of(container.resources)
    if "memory" not in container.resources.limits:
        sheet.report(
            (*at, "resources"), "no limit of memory: Ray would take the whole node's for its own"
        )
    _memory(sheet, path, group, container, limits)
    check_variant(sheet, (*at, "image"), container.image, limits)
    container_commands(sheet, at, container.command, container.args, env_of(container))
    if spec.enable_in_tree_autoscaling and pod.restart_policy not in ("Never",):
        sheet.report(
            (*path, "template", "spec", *(("restartPolicy",) if pod.restart_policy else ())),
            "a container that starts again in its pod is a node that Ray's autoscaler does not "
            "know; write restartPolicy: Never",
        )
    check_end(sheet, (*path, "template", "spec"), pod)
    if isinstance(group, WorkerGroup):
        hosts = group.num_of_hosts
        count = group.min_replicas if spec.enable_in_tree_autoscaling else group.replicas
        nodes = Nodes(group.group_name, count * hosts, resources, group.max_replicas * hosts)
        sheet.nodes.append(nodes)
    else:
        sheet.nodes.append(Nodes("head", 1, resources))


def check_end(sheet: Sheet, path: KeyPath, pod: PodSpec) -> None:
    """Report a pod that is killed before its job may have ended.

    Args:
        sheet: takes the problem.
        path: of the pod's spec.
        pod: the spec.
    """
    seconds = pod.termination_grace_period_seconds
    if seconds is None or seconds < GRACE_SECONDS:
        sheet.report(
            (*path, *(() if seconds is None else ("terminationGracePeriodSeconds",))),
            f"the pod is killed {30 if seconds is None else seconds} s after it was asked to end, "
            "which a step and its commit may not fit in; write terminationGracePeriodSeconds: "
            f"{GRACE_SECONDS} or more",
        )


def _start_params(
    sheet: Sheet, path: KeyPath, group: HeadGroup | WorkerGroup, container: Container
) -> dict[str, float]:
    """Check ``rayStartParams`` and say what Ray will take the pod for."""
    known = [name.removeprefix("--") for name in start_options() if name.startswith("--")]
    limits = limits_of(container.resources)
    at: KeyPath = (*path, "rayStartParams")
    cpus = limits.get("cpu", 0.0)
    have = {"CPU": float(int(cpus)) if cpus >= 1 else cpus, "GPU": limits.get(GPU, 0.0)}
    for name, value in group.ray_start_params.items():
        here = (*at, name)
        if name not in known:
            hint = did_you_mean(name, known)
            sheet.report(here, f"`ray start` has no option --{name}{hint}")
            continue
        if name == "resources":
            have |= _declared(sheet, here, value)
            continue
        message = option_problem(f"--{name}", value)
        if message is not None:
            sheet.report(here, message)
        elif name == "num-cpus":
            if float(value) > cpus:
                sheet.report(here, f"num-cpus is {value}, the container's limit {cpus:g} CPUs")
            have["CPU"] = float(value)
        elif name == "num-gpus":
            if float(value) != limits.get(GPU, 0.0):
                sheet.report(
                    here, f"num-gpus is {value}, the container's limit {limits.get(GPU, 0.0):g}"
                )
            have["GPU"] = float(value)
    npus = sum(limits.get(name, 0.0) for name in NPUS)
    if npus != have.get("NPU", 0.0):
        declared = f"{have['NPU']:g}" if "NPU" in have else "none"
        sheet.report(
            (*at, "resources") if "resources" in group.ray_start_params else at,
            f"the container gets {npus:g} NPUs and Ray is told of {declared}; write resources: "
            f'\'"{{\\"NPU\\": {npus:g}}}"\'',
        )
    return {name: value for name, value in have.items() if value}


def _declared(sheet: Sheet, path: KeyPath, value: str) -> dict[str, float]:
    text = value.strip()
    if text[:1] == text[-1:] == "'" and len(text) > 1:
        text = text[1:-1]
    elif text[:1] == '"':
        try:
            text = json.loads(text)
        except ValueError:
            sheet.report(path, f'found {value}, which no shell reads; write \'"{{\\"NPU\\": 8}}"\'')
            return {}
    else:
        sheet.report(
            path,
            f"found {value}, whose quotes the shell of the pod takes away; write "
            '\'"{\\"NPU\\": 8}"\'',
        )
        return {}
    found, message = resources_of(str(text))
    if message is not None:
        sheet.report(path, message)
    return found


def _memory(
    sheet: Sheet,
    path: KeyPath,
    group: HeadGroup | WorkerGroup,
    container: Container,
    limits: dict[str, float],
) -> None:
    memory = limits.get("memory", 0.0)
    shm = shm_of(container, group.template.spec)
    given = group.ray_start_params.get("object-store-memory", "")
    store = float(given) if given.isdecimal() else memory * STORE_SHARE
    at: KeyPath = (*path, "template", "spec")
    key = ("rayStartParams", "object-store-memory") if given else ("template", "spec", "volumes")
    if shm is None:
        sheet.report(
            at,
            "containers have 64 MiB of shared memory, and the object store needs "
            f"{gib(store)}; mount an emptyDir with medium: Memory at /dev/shm",
        )
    elif shm < store:
        index = _shm_index(group.template)
        here = (*path, *key) if index is None else (*at, "volumes", index, "emptyDir", "sizeLimit")
        sheet.report(
            here,
            f"/dev/shm holds {gib(shm)}, Ray's object store takes {gib(store)}"
            + ("" if given else f", {STORE_SHARE:.0%} of the memory")
            + "; it would be moved to a disk",
        )
    elif memory and shm != float("inf") and shm >= memory:
        index = _shm_index(group.template)
        sheet.report(
            (*at, "volumes", index or 0, "emptyDir", "sizeLimit"),
            f"/dev/shm may take {gib(shm)}, all of the container's {gib(memory)}",
        )
    most = group.ray_start_params.get("memory", "")
    if memory and most.isdecimal() and float(most) > memory:
        sheet.report(
            (*path, "rayStartParams", "memory"),
            f"memory is {gib(float(most))}, the container's limit {gib(memory)}",
        )
    elif memory and most.isdecimal() and float(most) + store > memory and given:
        sheet.report(
            (*path, "rayStartParams", "memory"),
            f"memory and object-store-memory are {gib(float(most) + store)} together, the "
            f"container's limit {gib(memory)}",
        )
    if memory and given.isdecimal() and store >= memory:
        sheet.report(
            (*path, "rayStartParams", "object-store-memory"),
            f"object-store-memory is {gib(store)}, the container's limit {gib(memory)}",
        )


def _shm_index(template: PodTemplate) -> int | None:
    container = template.spec.containers[0]
    name = next(
        (each.name for each in container.volume_mounts if each.mount_path == "/dev/shm"), ""
    )
    return next((n for n, each in enumerate(template.spec.volumes) if each.name == name), None)
