"""What must hold in a manifest: each kind by its rules, and here storage and services."""

from __future__ import annotations

from pydantic import BaseModel

from orchestrator.cluster_files.models.kubernetes import (
    ConfigMap,
    Job,
    NetworkPolicy,
    PersistentVolume,
    PersistentVolumeClaim,
    Secret,
    Service,
)
from orchestrator.cluster_files.models.ray import RayCluster, RayJob, TrainingRuntime, TrainJob
from orchestrator.cluster_files.quantities import amount_or_none
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.rules.kuberay import check_cluster, check_job
from orchestrator.cluster_files.rules.pods import (
    check_pod,
    check_restarts,
    check_server,
    container_commands,
    quantity,
)
from orchestrator.cluster_files.rules.policies import check_policy
from orchestrator.cluster_files.rules.trainer import check_runtime, check_train_job
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.credentials import names_secret
from orchestrator.errors import did_you_mean


def check(sheet: Sheet, document: BaseModel, bundle: Bundle) -> None:
    """Report everything that is wrong with a manifest."""
    if isinstance(document, RayCluster):
        check_cluster(sheet, document, bundle)
    elif isinstance(document, RayJob):
        check_job(sheet, document, bundle)
    elif isinstance(document, PersistentVolumeClaim):
        _claim(sheet, document, bundle)
    elif isinstance(document, PersistentVolume):
        _volume(sheet, document, bundle)
    elif isinstance(document, NetworkPolicy):
        check_policy(sheet, document, bundle)
    elif isinstance(document, Service):
        _service(sheet, document, bundle)
    elif isinstance(document, Secret):
        values = {**document.data, **document.string_data}
        key = "data" if document.data else "stringData"
        for name in values:
            sheet.report(
                (key, name),
                f"a secret stands in the file; write how it is made instead: kubectl create secret "
                f"generic {document.metadata.name} --from-file={name}=FILE",
            )
    elif isinstance(document, ConfigMap):
        for name, value in document.data.items():
            if names_secret(name) and value:
                sheet.report(
                    ("data", name),
                    f"{name} is a secret, and everybody who may read the namespace reads this; "
                    f"write how a secret is made instead: kubectl create secret generic "
                    f"{document.metadata.name} --from-file={name}=FILE",
                )
    elif isinstance(document, Job):
        check_pod(sheet, ("spec", "template"), document.spec.template, bundle)
        check_restarts(sheet, ("spec", "template", "spec"), document.spec.template.spec)
        for index, each in enumerate(document.spec.template.spec.containers):
            at = ("spec", "template", "spec", "containers", index)
            env = {item.name: item.value or f"${item.name}" for item in each.env}
            container_commands(sheet, at, each.command, each.args, env)
    elif isinstance(document, TrainJob):
        check_train_job(sheet, document, bundle)
    elif isinstance(document, TrainingRuntime):
        check_runtime(sheet, document, bundle)


def _volume(sheet: Sheet, document: PersistentVolume, bundle: Bundle) -> None:
    spec = document.spec
    named = {claim.spec.volume_name for claim in bundle.claims.values()} - {None}
    if named and document.metadata.name not in named:
        sheet.report(
            ("metadata", "name"), f"no claim of these files names volume {document.metadata.name!r}"
        )
    quantity(sheet, ("spec", "capacity", "storage"), spec.capacity.get("storage", ""))
    check_server(sheet, ("spec", "nfs", "server"), spec.nfs.server)
    for claim in bundle.claims.values():
        if claim.spec.volume_name == document.metadata.name:
            lacking = set(claim.spec.access_modes) - set(spec.access_modes)
            if lacking:
                sheet.report(
                    ("spec", "accessModes"),
                    f"claim {claim.metadata.name!r} asks for {', '.join(sorted(lacking))}, too",
                )
    if spec.persistent_volume_reclaim_policy != "Retain":
        sheet.report(
            ("spec", "persistentVolumeReclaimPolicy"),
            f"{spec.persistent_volume_reclaim_policy} loses data and results with the claim; "
            "write Retain",
        )
    for index, option in enumerate(spec.mount_options):
        if option == "soft":
            sheet.report(
                ("spec", "mountOptions", index),
                "a soft mount gives up a write that takes long, and files stay cut off; write hard",
            )


def _claim(sheet: Sheet, document: PersistentVolumeClaim, bundle: Bundle) -> None:
    spec, name = document.spec, document.metadata.name
    if bundle.claimed and name not in bundle.claimed:
        hint = did_you_mean(name, bundle.claimed)
        sheet.report(("metadata", "name"), f"no pod of these files claims {name!r}{hint}")
    asked = spec.resources.requests.get("storage")
    if asked is None:
        sheet.report(("spec", "resources"), "requests.storage is missing")
        return
    number = quantity(sheet, ("spec", "resources", "requests", "storage"), asked)
    if spec.volume_name is None:
        return
    volume = bundle.volumes.get(spec.volume_name)
    if volume is None:
        hint = did_you_mean(spec.volume_name, bundle.volumes)
        sheet.report(
            ("spec", "volumeName"),
            f"no PersistentVolume {spec.volume_name!r} in these files{hint}",
        )
        return
    capacity = amount_or_none(volume.spec.capacity.get("storage", 0))
    if capacity is None:
        return
    if number is not None and number > capacity:
        sheet.report(
            ("spec", "resources", "requests", "storage"),
            f"{asked} is asked for, volume {spec.volume_name!r} has "
            f"{volume.spec.capacity['storage']}",
        )
    if not set(spec.access_modes) <= set(volume.spec.access_modes):
        sheet.report(
            ("spec", "accessModes"),
            f"{', '.join(spec.access_modes)} is asked for, volume {spec.volume_name!r} offers "
            f"{', '.join(volume.spec.access_modes)}",
        )
    if spec.storage_class_name is None:
        sheet.report(
            ("spec",),
            "without storageClassName the cluster's default class counts, and the claim is not "
            f"bound to volume {spec.volume_name!r}; write storageClassName: "
            f'"{volume.spec.storage_class_name or ""}"',
        )
    elif spec.storage_class_name != (volume.spec.storage_class_name or ""):
        sheet.report(
            ("spec", "storageClassName"),
            f"storageClassName is {spec.storage_class_name!r}, of the volume "
            f"{volume.spec.storage_class_name!r}; they are not bound",
        )


def _service(sheet: Sheet, document: Service, bundle: Bundle) -> None:
    spec = document.spec
    if spec.type != "ClusterIP":
        guarded = any(
            policy.spec.pod_selector.match_labels.items() <= spec.selector.items()
            for policy in bundle.policies
        )
        if not guarded and not spec.load_balancer_source_ranges:
            sheet.report(
                ("spec", "type"),
                f"{spec.type} opens the ports beyond the cluster and no NetworkPolicy guards them",
            )
    if bundle.pods and not bundle.selects(spec.selector):
        sheet.report(("spec", "selector"), "no pod of these files has these labels")
