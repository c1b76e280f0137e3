"""What must hold in a pod: storage, secrets, devices, memory, and what it may do."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator, Mapping

from orchestrator.cluster_files.models.pods import (
    Container,
    EnvVar,
    PodSpec,
    PodTemplate,
    Resources,
    Volume,
)
from orchestrator.cluster_files.project import IMAGE
from orchestrator.cluster_files.quantities import QuantityError, amount, amount_or_none
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.rules.commands import Found, check_mode, check_name, examine
from orchestrator.cluster_files.rules.scheduling import check_scheduling
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean

GPU = "nvidia.com/gpu"
NPUS = ("huawei.com/Ascend910", "huawei.com/Ascend310P", "huawei.com/Ascend310")
_DEVICES = (GPU, "amd.com/gpu", *NPUS)
_PLAIN = ("cpu", "memory", "ephemeral-storage")
#: Capabilities of the kernel that make a container the ruler of its node.
_POWERS = ("ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF")
#: What the driver of Ascend devices brings to a pod.
_HOST_PATHS = ("/usr/local/Ascend", "/usr/local/dcmi", "/usr/local/bin/npu-smi", "/etc/ascend")
#: Of a bucket.
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: Ports by the names that Ray's documents give them.
_PORTS = {"gcs": 6379, "gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}


def check_pod(sheet: Sheet, path: KeyPath, template: PodTemplate, bundle: Bundle) -> None:
    """Report what is wrong with a pod template.

    Args:
        sheet: takes the problems.
        path: of the template.
        template: of the pod.
        bundle: other documents.
    """
    spec, at = template.spec, (*path, "spec")
    _permissions(sheet, at, spec)
    _volumes(sheet, at, spec, bundle)
    for key, containers in (
        ("containers", spec.containers),
        ("initContainers", spec.init_containers),
    ):
        names = [each.name for each in containers]
        for index, container in enumerate(containers):
            here = (*at, key, index)
            if container.name in names[:index]:
                sheet.report((*here, "name"), f"container {container.name!r} is there twice")
            _container(sheet, here, container, spec, bundle)
    check_scheduling(sheet, at, spec, [limits_of(each.resources) for each in spec.containers])


def env_of(container: Container) -> dict[str, str]:
    """Variables of a container; those that come from elsewhere as ``$NAME``."""
    return {
        each.name: f"${each.name}" if each.value is None else each.value for each in container.env
    }


def container_commands(
    sheet: Sheet, path: KeyPath, command: list[str], args: list[str], env: dict[str, str]
) -> Found:
    """Check what a container runs.

    Args:
        sheet: takes the problems.
        path: of the container.
        command: its entry point.
        args: what follows it.
        env: variables it is given.
    """
    words = [("command", n, word) for n, word in enumerate(command)]
    words += [("args", n, word) for n, word in enumerate(args)]
    if not words:
        return Found()
    for position, (_, _, word) in enumerate(words[:-1]):
        if re.fullmatch(r"-[a-z]*c", word) and position <= 2:
            key, index, text = words[position + 1]
            return examine(sheet, (*path, key, index), text, env=env, inside=True)
    text = shlex.join(word for _, _, word in words)
    return examine(sheet, (*path, words[0][0]), text, env=env, inside=True)


def check_env(sheet: Sheet, path: KeyPath, env: list[EnvVar], bundle: Bundle) -> None:
    """Report plain secrets, and references to what is not there."""
    names = [each.name for each in env]
    for index, each in enumerate(env):
        here = (*path, "env", index)
        check_name(sheet, (*here, "name"), each.name)
        check_mode(sheet, (*here, "value"), each.name, each.value)
        if each.name in names[:index]:
            sheet.report((*here, "name"), f"variable {each.name} is set twice")
        if each.value is not None and each.value_from is not None:
            sheet.report(here, f"{each.name} has a value and a valueFrom; keep one")
        if each.value is None and each.value_from is None:
            sheet.report(here, f"{each.name} has no value; write value or valueFrom")
        if each.value and names_secret(each.name) and "$" not in each.value:
            sheet.report(
                (*here, "value"),
                f"{each.name} is a secret in plain text; write valueFrom with a secretKeyRef",
            )
        source = each.value_from
        if source is None:
            continue
        given = [
            key
            for key in ("secret_key_ref", "config_map_key_ref", "field_ref", "resource_field_ref")
            if getattr(source, key)
        ]
        if len(given) != 1:
            sheet.report((*here, "valueFrom"), "one source is needed, such as secretKeyRef")
        if source.secret_key_ref is not None:
            reference = source.secret_key_ref
            check_secret(
                sheet, (*here, "valueFrom", "secretKeyRef"), reference.name, reference.key, bundle
            )
        if source.config_map_key_ref is not None:
            name, key = source.config_map_key_ref.name, source.config_map_key_ref.key
            _known(sheet, (*here, "valueFrom", "configMapKeyRef"), name, key, bundle)


def check_keys(sheet: Sheet, path: KeyPath, env: list[EnvVar]) -> None:
    """Report keys of a bucket that are taken from each other's places."""
    sources = {
        each.name: each.value_from.secret_key_ref
        for each in env
        if each.value_from is not None and each.value_from.secret_key_ref is not None
    }
    for name, other in (_KEYS, _KEYS[::-1]):
        mine, theirs = sources.get(name), sources.get(other)
        if mine is None or theirs is None or mine.name != theirs.name:
            continue
        index = next(n for n, each in enumerate(env) if each.name == name)
        at = (*path, "env", index, "valueFrom", "secretKeyRef", "key")
        if mine.key == theirs.key:
            sheet.report(at, f"{name} and {other} are the same key, {mine.key!r}")
        elif _is_key_of(mine.key, other) and not _is_key_of(mine.key, name):
            sheet.report(at, f"{name} is given {mine.key!r}, which looks like {other}")


def _is_key_of(key: str, variable: str) -> bool:
    plain = key.lower().replace("-", "_").removeprefix("aws_")
    return plain == variable.lower().removeprefix("aws_")


def check_restarts(sheet: Sheet, path: KeyPath, spec: PodSpec) -> None:
    """Report a pod that a Job makes and that never ends."""
    if spec.restart_policy not in ("OnFailure", "Never"):
        sheet.report(
            (*path, "restartPolicy") if spec.restart_policy else path,
            f"a Job takes no pod with restartPolicy {spec.restart_policy or 'Always, the default'}"
            "; write OnFailure or Never",
        )


def check_variant(sheet: Sheet, path: KeyPath, image: str, limits: Mapping[str, float]) -> None:
    """Report an image of this project that was made for other devices than a pod has."""
    base, _, tag = image.rpartition("/")[2].partition(":")
    variant = tag.rpartition("-")[2]
    wanted = "gpu" if limits.get(GPU) else "npu" if any(limits.get(n) for n in NPUS) else None
    if base == IMAGE and wanted and variant in ("cpu", "gpu", "npu") and variant != wanted:
        sheet.report(path, f"image {image!r} is for {variant.upper()}s, the pod has {wanted}s")


def check_secret(
    sheet: Sheet, path: KeyPath, name: str, key: str | None, bundle: Bundle, at: str = "name"
) -> None:
    """Report a secret that nothing says how to make, or a key that it does not get."""
    if name not in bundle.secrets:
        hint = did_you_mean(name, bundle.secrets)
        sheet.report(
            (*path, at),
            f"no comment of these files says how secret {name!r} is made (`kubectl create secret "
            f"generic {name} …`){hint}",
        )
    elif key is not None and key not in bundle.secrets[name]:
        hint = did_you_mean(key, bundle.secrets[name])
        sheet.report((*path, "key"), f"secret {name!r} is made without a key {key!r}{hint}")


def _known(sheet: Sheet, path: KeyPath, name: str, key: str | None, bundle: Bundle) -> None:
    if name not in bundle.configs:
        hint = did_you_mean(name, bundle.configs)
        sheet.report((*path, "name"), f"there is no ConfigMap {name!r} in these files{hint}")
    elif key is not None and key not in bundle.configs[name]:
        hint = did_you_mean(key, bundle.configs[name])
        sheet.report((*path, "key"), f"ConfigMap {name!r} has no key {key!r}{hint}")


def _permissions(sheet: Sheet, path: KeyPath, spec: PodSpec) -> None:
    for key, field in (
        ("hostNetwork", "host_network"),
        ("hostIPC", "host_ipc"),
        ("hostPID", "host_pid"),
    ):
        if getattr(spec, field):
            sheet.report((*path, key), f"{key} opens the node to the pod; remove it")
    context = spec.security_context
    profile = None if context is None else context.seccomp_profile
    if profile is not None and profile.type == "Unconfined":
        sheet.report(
            (*path, "securityContext", "seccompProfile", "type"),
            "every system call is allowed; write RuntimeDefault",
        )
    for index, container in enumerate(spec.containers):
        own = container.security_context
        here = (*path, "containers", index)
        if own is not None and own.privileged:
            sheet.report(
                (*here, "securityContext", "privileged"),
                "a privileged container is root on its node; remove it",
            )
        elif own is not None and own.allow_privilege_escalation:
            sheet.report((*here, "securityContext"), "write allowPrivilegeEscalation: false")
        added = [] if own is None or own.capabilities is None else own.capabilities.add
        for position, name in enumerate(added):
            if name.upper().removeprefix("CAP_") in _POWERS:
                sheet.report(
                    (*here, "securityContext", "capabilities", "add", position),
                    f"with {name} the container rules its node; Ray needs none of these",
                )
        profile = None if own is None else own.seccomp_profile
        if profile is not None and profile.type == "Unconfined":
            sheet.report(
                (*here, "securityContext", "seccompProfile", "type"),
                "every system call is allowed; write RuntimeDefault",
            )
        users = [each.run_as_user for each in (own, context) if each is not None]
        if 0 in users:
            sheet.report(
                (*path, "securityContext", "runAsUser")
                if own is None or own.run_as_user is None
                else (*here, "securityContext", "runAsUser"),
                "the pod runs as root; write runAsUser: 1000",
            )


def _volumes(sheet: Sheet, path: KeyPath, spec: PodSpec, bundle: Bundle) -> None:
    names = [each.name for each in spec.volumes]
    mounted = {
        mount.name
        for container in (*spec.containers, *spec.init_containers)
        for mount in container.volume_mounts
    }
    for index, volume in enumerate(spec.volumes):
        here = (*path, "volumes", index)
        if volume.name in names[:index]:
            sheet.report((*here, "name"), f"volume {volume.name!r} is there twice")
        if volume.name not in mounted:
            sheet.report((*here, "name"), f"volume {volume.name!r} is mounted nowhere")
        sources = [key for key, value in _sources(volume) if value]
        if len(sources) != 1:
            sheet.report(here, f"volume {volume.name!r} has {len(sources)} sources, one is needed")
        _source(sheet, here, volume, bundle)


def _sources(volume: Volume) -> Iterator[tuple[str, bool]]:
    for key in ("empty_dir", "persistent_volume_claim", "secret", "config_map", "host_path", "nfs"):
        yield key, getattr(volume, key) is not None


def _source(sheet: Sheet, path: KeyPath, volume: Volume, bundle: Bundle) -> None:
    claim = volume.persistent_volume_claim
    if claim is not None and claim.claim_name not in bundle.claims:
        hint = did_you_mean(claim.claim_name, bundle.claims)
        sheet.report(
            (*path, "persistentVolumeClaim", "claimName"),
            f"no PersistentVolumeClaim {claim.claim_name!r} in these files{hint}",
        )
    if volume.secret is not None:
        check_secret(
            sheet, (*path, "secret"), volume.secret.secret_name, None, bundle, "secretName"
        )
        for index, item in enumerate(volume.secret.items):
            if volume.secret.secret_name in bundle.secrets:
                check_secret(
                    sheet,
                    (*path, "secret", "items", index),
                    volume.secret.secret_name,
                    item.key,
                    bundle,
                )
    if volume.config_map is not None:
        _known(sheet, (*path, "configMap"), volume.config_map.name, None, bundle)
    if volume.host_path is not None and not volume.host_path.path.startswith(_HOST_PATHS):
        sheet.report(
            (*path, "hostPath", "path"),
            "a path of the node is another one on each node, and opens it to the pod; use a "
            "PersistentVolumeClaim",
        )
    if volume.nfs is not None:
        check_server(sheet, (*path, "nfs", "server"), volume.nfs.server)
    if volume.empty_dir is not None and volume.empty_dir.size_limit is not None:
        quantity(sheet, (*path, "emptyDir", "sizeLimit"), volume.empty_dir.size_limit)


def check_server(sheet: Sheet, path: KeyPath, server: str) -> None:
    """Report an address that is none."""
    parts = server.split(".")
    if re.fullmatch(r"[\d.]+", server) or (
        len(parts) == 4 and sum(each.isdecimal() for each in parts) == 3
    ):
        try:
            ipaddress.ip_address(server)
        except ValueError:
            sheet.report(path, f"{server!r} is no address")


def quantity(sheet: Sheet, path: KeyPath, text: int | float | str) -> float | None:
    """A quantity as a number; None where it is none, which is reported."""
    try:
        return amount(text)
    except QuantityError as error:
        sheet.report(path, str(error))
        return None


def limits_of(resources: Resources) -> dict[str, float]:
    """What a container may take, in CPUs, bytes and devices; what is no quantity is left out."""
    given = {**resources.requests, **resources.limits}.items()
    numbers = ((name, amount_or_none(text)) for name, text in given)
    return {name: number for name, number in numbers if number is not None}


def shm_of(container: Container, spec: PodSpec) -> float | None:
    """Bytes of shared memory that a container has; None for the 64 MiB of the runtime."""
    for mount in container.volume_mounts:
        if mount.mount_path == "/dev/shm":
            volume = next((each for each in spec.volumes if each.name == mount.name), None)
            if volume is None or volume.empty_dir is None or volume.empty_dir.medium != "Memory":
                return None
            if volume.empty_dir.size_limit is None:
                return float("inf")
            return amount_or_none(volume.empty_dir.size_limit)
    return None


def check_resources(sheet: Sheet, path: KeyPath, resources: Resources) -> None:
    """Report quantities that are none, requests above limits, devices without limits."""
    for part in ("requests", "limits"):
        for name, text in getattr(resources, part).items():
            here = (*path, part, name)
            number = quantity(sheet, here, text)
            if name not in _PLAIN and not name.startswith("hugepages-"):
                _device(sheet, here, part, name, number, resources)
            elif number is not None and name == "memory" and number < (64 << 20):
                sheet.report(here, f"{text} is {number:g} bytes; is a unit such as Gi missing?")
    for name, text in resources.requests.items():
        limit = resources.limits.get(name)
        if limit is None:
            continue
        asked, most = amount_or_none(text), amount_or_none(limit)
        if asked is not None and most is not None and asked > most:
            sheet.report(
                (*path, "requests", name), f"{name} of {text} is asked for, the limit is {limit}"
            )


def _device(
    sheet: Sheet,
    path: KeyPath,
    part: str,
    name: str,
    number: float | None,
    resources: Resources,
) -> None:
    if name not in _DEVICES:
        hint = did_you_mean(name, (*_DEVICES, *_PLAIN))
        if hint or "/" not in name:
            sheet.report(path, f"unknown resource {name!r}{hint}")
        return
    if number is not None and number != int(number):
        sheet.report(path, f"devices are not divided: {name} of {number:g}")
    if part == "requests" and name not in resources.limits:
        sheet.report(
            path, f"{name} is asked for without a limit, which Kubernetes refuses; write limits"
        )
    elif part == "requests" and limits_of(Resources(limits=resources.limits)).get(name) != number:
        sheet.report(path, f"{name} has to be the same in requests and limits")
        sheet.report(
            (*path[:-2], "limits", name), f"{name} has to be the same in requests and limits"
        )


def _container(
    sheet: Sheet, path: KeyPath, container: Container, spec: PodSpec, bundle: Bundle
) -> None:
    message = sheet.project.image_problem(container.image)
    if message:
        sheet.report((*path, "image"), message)
    check_env(sheet, path, container.env, bundle)
    check_keys(sheet, path, container.env)
    for index, each in enumerate(container.env_from):
        here = (*path, "envFrom", index)
        if each.secret_ref is not None:
            check_secret(sheet, (*here, "secretRef"), each.secret_ref.name, None, bundle)
        if each.config_map_ref is not None:
            _known(sheet, (*here, "configMapRef"), each.config_map_ref.name, None, bundle)
    names = [each.name for each in spec.volumes]
    paths = [mount.mount_path for mount in container.volume_mounts]
    for index, mount in enumerate(container.volume_mounts):
        here = (*path, "volumeMounts", index)
        if mount.name not in names:
            hint = did_you_mean(mount.name, names)
            sheet.report((*here, "name"), f"the pod has no volume {mount.name!r}{hint}")
        if mount.mount_path in paths[:index]:
            sheet.report((*here, "mountPath"), f"{mount.mount_path} is mounted twice")
        if mount.mount_path.startswith("/dev/") and mount.mount_path != "/dev/shm":
            sheet.report((*here, "mountPath"), f"{mount.mount_path}; did you mean /dev/shm?")
    seen: dict[int, int] = {}
    labels: set[str] = set()
    for index, port in enumerate(container.ports):
        here = (*path, "ports", index)
        if port.container_port in seen:
            sheet.report((*here, "containerPort"), f"port {port.container_port} is there twice")
        if _PORTS.get(port.name or "", port.container_port) != port.container_port:
            sheet.report(
                (*here, "containerPort"),
                f"port {port.name!r} is {port.container_port}, Ray's is {_PORTS[port.name or '']}",
            )
        if port.name is not None and port.name in labels:
            sheet.report((*here, "name"), f"port name {port.name!r} is there twice")
        seen[port.container_port] = index
        labels |= {port.name} if port.name else set()
        if port.host_port is not None:
            sheet.report(
                (*here, "hostPort"), "the port is open on the node's own address; remove hostPort"
            )
    check_resources(sheet, (*path, "resources"), container.resources)
