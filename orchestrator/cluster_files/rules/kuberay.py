"""What must hold in a RayCluster and a RayJob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from orchestrator.cluster_files.models.kubernetes import NetworkPolicy
from orchestrator.cluster_files.models.pods import PodTemplate
from orchestrator.cluster_files.models.ray import (
    ClusterSpec,
    RayCluster,
    RayJob,
    WorkerGroup,
)
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.rules.cluster_agreement import check_agreement
from orchestrator.cluster_files.rules.commands import (
    GRACE,
    GRACE_SECONDS,
    MODE,
    examine,
    grace,
)
from orchestrator.cluster_files.rules.places import check_places
from orchestrator.cluster_files.rules.pods import (
    check_pod,
    check_resources,
    check_restarts,
    env_of,
)
from orchestrator.cluster_files.rules.ray_pods import check_ray_pod
from orchestrator.cluster_files.rules.scheduling import SPOT_LABELS
from orchestrator.cluster_files.sheet import Run, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean

_RUNTIME_ENV = (
    "working_dir",
    "py_modules",
    "py_executable",
    "excludes",
    "pip",
    "uv",
    "conda",
    "env_vars",
    "image_uri",
    "config",
)


def check_cluster(sheet: Sheet, document: RayCluster, bundle: Bundle) -> None:
    """Report everything that is wrong with a RayCluster."""
    _spec(sheet, ("spec",), document.spec, bundle)


def check_job(sheet: Sheet, document: RayJob, bundle: Bundle) -> None:
    """Report everything that is wrong with a RayJob."""
    spec, path = document.spec, ("spec", "entrypoint")
    before = len(sheet.nodes)
    _spec(sheet, ("spec", "rayClusterSpec"), spec.ray_cluster_spec, bundle)
    nodes = tuple(sheet.nodes[before:])
    head = spec.ray_cluster_spec.head_group_spec.template.spec.containers[0]
    env = {**env_of(head), **_runtime_env(sheet, spec.runtime_env_yaml)}
    found = examine(sheet, path, spec.entrypoint, env=env, inside=True)
    if not found.all or not any(each.name in ("python", "orchestrator") for each in found.all):
        sheet.report(
            path, "the entrypoint runs no experiment; write python -m orchestrator.run FILE"
        )
    for at, experiment, overrides in found.runs:
        sheet.runs.append(Run(at, experiment, overrides, nodes))
        check_places(sheet, at, experiment, overrides, _groups(spec.ray_cluster_spec))
    if spec.ttl_seconds_after_finished and not spec.shutdown_after_job_finishes:
        sheet.report(
            ("spec", "ttlSecondsAfterFinished"),
            "it counts only with shutdownAfterJobFinishes: true",
        )
    # With any of these Ray starts the driver on whichever node has them, else on the head.
    for key, resource, wanted in (
        ("entrypointNumCpus", "CPU", spec.entrypoint_num_cpus),
        ("entrypointNumGpus", "GPU", spec.entrypoint_num_gpus),
    ):
        most = max((each.resources or {}).get(resource, 0.0) for each in nodes)
        if wanted > most:
            sheet.report(
                ("spec", key),
                f"the entry point wants {wanted:g} {resource}s, and no node has more than {most:g} "
                "for Ray",
            )
    if spec.submitter_pod_template is not None:
        at = ("spec", "submitterPodTemplate")
        check_pod(sheet, at, spec.submitter_pod_template, bundle)
        check_restarts(sheet, (*at, "spec"), spec.submitter_pod_template.spec)
        labels = spec.submitter_pod_template.metadata.labels
        if _guards(bundle) and not _lets_in(bundle, labels):
            sheet.report(
                (*at, "metadata", "labels"),
                "no policy of these files lets pods with these labels in at the head, so the job "
                "is never submitted",
            )
        image = spec.submitter_pod_template.spec.containers[0].image
        if image != head.image:
            sheet.report(
                (*at, "spec", "containers", 0, "image"),
                f"image is {image!r}, of the head {head.image!r}; write the same",
            )


def _groups(spec: ClusterSpec) -> list[tuple[str, PodTemplate]]:
    groups = [(f"group {each.group_name}", each.template) for each in spec.worker_group_specs]
    return [("the head", spec.head_group_spec.template), *groups]


def _runtime_env(sheet: Sheet, text: str | None) -> dict[str, str]:
    path: KeyPath = ("spec", "runtimeEnvYAML")
    if text is None:
        return {}
    try:
        found: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        sheet.report(path, f"this is not YAML: {str(error).splitlines()[0]}")
        return {}
    if not isinstance(found, dict):
        sheet.report(path, "allowed is a mapping such as 'env_vars: {…}'")
        return {}
    for key in found:
        if key not in _RUNTIME_ENV:
            hint = did_you_mean(str(key), _RUNTIME_ENV)
            sheet.report(path, f"a runtime environment has no key {key!r}{hint}", str(key))
    variables = found.get("env_vars") or {}
    for name, value in variables.items() if isinstance(variables, dict) else ():
        if not isinstance(value, str):
            sheet.report(path, f"env_vars.{name} is {value!r}, allowed is text", str(name))
        elif names_secret(str(name)) and value:
            sheet.report(
                path,
                f"{name} is a secret in plain text; give it to the pods by a secretKeyRef",
                name,
            )
    if GRACE in variables:
        value = str(variables[GRACE])
        if not value.isdecimal() or int(value) < GRACE_SECONDS:
            sheet.report(path, f"{GRACE} is {value}, allowed is {GRACE_SECONDS} and more", GRACE)
    return {str(name): str(value) for name, value in variables.items()}


def _spec(sheet: Sheet, path: KeyPath, spec: ClusterSpec, bundle: Bundle) -> None:
    pinned = sheet.project.pins["ray"]
    if spec.ray_version != pinned:
        sheet.report(
            (*path, "rayVersion"), f"Ray {spec.ray_version} is named, constraints.txt pins {pinned}"
        )
    _token(sheet, path, spec)
    head_path: KeyPath = (*path, "headGroupSpec")
    _head(sheet, head_path, spec, bundle)
    names = [group.group_name for group in spec.worker_group_specs]
    for index, group in enumerate(spec.worker_group_specs):
        here = (*path, "workerGroupSpecs", index)
        if group.group_name in names[:index]:
            sheet.report((*here, "groupName"), f"group {group.group_name!r} is there twice")
        _group(sheet, here, spec, group, bundle)
    check_agreement(sheet, path, spec)
    _shared_claims(sheet, path, spec, bundle)
    options = spec.autoscaler_options
    if options is not None and options.resources is not None:
        check_resources(sheet, (*path, "autoscalerOptions", "resources"), options.resources)
    if options is not None and not spec.enable_in_tree_autoscaling:
        sheet.report(
            (*path, "autoscalerOptions"),
            "nothing scales by them without enableInTreeAutoscaling: true",
        )
        sheet.report(
            (*path, "enableInTreeAutoscaling"),
            "nothing scales by autoscalerOptions; write true, or leave them out",
        )


def _head(sheet: Sheet, path: KeyPath, spec: ClusterSpec, bundle: Bundle) -> None:
    head = spec.head_group_spec
    check_pod(sheet, (*path, "template"), head.template, bundle)
    check_ray_pod(sheet, path, spec, head)
    container = head.template.spec.containers[0]
    at = (*path, "template", "spec", "containers", 0)
    variables = env_of(container)
    if GRACE not in variables:
        grace(sheet, (*at, "env") if container.env else at, None)
    else:
        index = next(n for n, each in enumerate(container.env) if each.name == GRACE)
        if not variables[GRACE].startswith("$"):
            grace(sheet, (*at, "env", index, "value"), variables[GRACE])
    shown = head.ray_start_params.get("dashboard-host", "0.0.0.0")
    if shown in ("127.0.0.1", "localhost", "::1"):
        sheet.report(
            (*path, "rayStartParams", "dashboard-host"),
            f"neither KubeRay nor who submits a job reaches {shown} of the pod; write 0.0.0.0",
        )
    if spec.enable_in_tree_autoscaling and not head.template.spec.automount_service_account_token:
        sheet.report(
            (*path, "template", "spec", "automountServiceAccountToken"),
            "the autoscaler beside the head asks Kubernetes for pods by that token; write true",
        )
    if not _guards(bundle):
        sheet.report(
            path,
            "no NetworkPolicy of these files guards the head: every pod of the cluster reads its "
            "metrics, which ask nobody; write one with a podSelector of the head's labels",
        )
    if head.service_type != "ClusterIP" and not _lets_networks_in(bundle):
        sheet.report(
            (*path, "serviceType"),
            f"{head.service_type} opens the dashboard, the client and the control store beyond the "
            "cluster and no NetworkPolicy of these files names the networks that may come in; "
            "write ClusterIP and use `kubectl port-forward`",
        )
    if head.enable_ingress and not _lets_networks_in(bundle):
        sheet.report(
            (*path, "enableIngress"),
            "an ingress opens the dashboard beyond the cluster; use `kubectl port-forward`",
        )
    for key, value in SPOT_LABELS.items():
        if head.template.spec.node_selector.get(key) == value:
            sheet.report(
                (*path, "template", "spec", "nodeSelector", key),
                "a head that is taken away ends every run; let workers alone be on spot nodes",
            )


def _guards(bundle: Bundle) -> list[NetworkPolicy]:
    """Policies that guard a head."""
    heads = [pod for pod in bundle.pods if pod.get("ray.io/node-type") == "head"]
    return [
        policy
        for policy in bundle.policies
        if "Ingress" in policy.spec.policy_types
        and any(policy.spec.pod_selector.match_labels.items() <= head.items() for head in heads)
    ]


def _lets_in(bundle: Bundle, labels: Mapping[str, str]) -> bool:
    """Whether a policy of the head lets pods with some labels in."""
    return any(
        peer.pod_selector is not None and peer.pod_selector.match_labels.items() <= labels.items()
        for policy in _guards(bundle)
        for rule in policy.spec.ingress
        for peer in rule.from_
    )


def _lets_networks_in(bundle: Bundle) -> bool:
    return any(
        peer.ip_block is not None
        for policy in _guards(bundle)
        for rule in policy.spec.ingress
        for peer in rule.from_
    )


def _group(
    sheet: Sheet, path: KeyPath, spec: ClusterSpec, group: WorkerGroup, bundle: Bundle
) -> None:
    check_pod(sheet, (*path, "template"), group.template, bundle)
    least, count, most = group.min_replicas, group.replicas, group.max_replicas
    if least > most:
        sheet.report((*path, "minReplicas"), f"minReplicas is {least}, maxReplicas {most}")
        sheet.report((*path, "maxReplicas"), f"maxReplicas is {most}, minReplicas {least}")
    elif not least <= count <= most:
        sheet.report(
            (*path, "replicas"), f"replicas is {count}, allowed are {least} to {most} of this group"
        )
    if not spec.enable_in_tree_autoscaling and least != most:
        sheet.report(
            (*path, "maxReplicas"),
            f"without enableInTreeAutoscaling there are always {count}, never {most}; write it, "
            "or the same number for all three",
        )
    check_ray_pod(sheet, path, spec, group)


def _token(sheet: Sheet, path: KeyPath, spec: ClusterSpec) -> None:
    options = spec.auth_options
    if options is not None:
        if options.mode != "token":
            sheet.report(
                (*path, "authOptions", "mode"),
                "anyone who reaches the cluster runs commands there; write token",
            )
        return
    for where, template in _groups(spec):
        container = template.spec.containers[0]
        variables = env_of(container)
        if variables.get(MODE) != "token" or not (
            {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(variables)
        ):
            sheet.report(
                path,
                f"{where} starts without a token, so anyone who reaches the cluster runs commands "
                "there; write authOptions: {mode: token}",
            )
            return


def _shared_claims(sheet: Sheet, path: KeyPath, spec: ClusterSpec, bundle: Bundle) -> None:
    """What pods on several nodes mount has to be mountable there."""
    pods = 1 + sum(group.max_replicas for group in spec.worker_group_specs)
    if pods < 2:
        return
    for name, claim in bundle.claims.items():
        modes = claim.spec.access_modes
        used = any(
            volume.persistent_volume_claim and volume.persistent_volume_claim.claim_name == name
            for _, template in _groups(spec)
            for volume in template.spec.volumes
        )
        if used and not {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
            sheet.report(
                path,
                f"claim {name!r} is {', '.join(modes)}, and {pods} pods on several nodes mount it; "
                "write ReadWriteMany",
            )
