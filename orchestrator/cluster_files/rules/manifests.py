"""What must hold in the manifests beside Ray's: storage, policies, services, trainer's jobs."""

from __future__ import annotations

import ipaddress

from pydantic import BaseModel

from orchestrator.cluster_files.models.kubernetes import (
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
from orchestrator.cluster_files.rules.places import check_places
from orchestrator.cluster_files.rules.pods import (
    GPU,
    check_env,
    check_pod,
    check_resources,
    check_server,
    container_commands,
    limits_of,
    quantity,
)
from orchestrator.cluster_files.sheet import Nodes, Run, Sheet
from orchestrator.errors import did_you_mean

_RAY_PORTS = {
    6379: "control store",
    8265: "dashboard",
    10001: "client",
    8080: "metrics",
    8000: "serve",
}


def check(sheet: Sheet, document: BaseModel, bundle: Bundle) -> None:
    """Report everything that is wrong with a manifest."""
    if isinstance(document, RayCluster):
        check_cluster(sheet, document, bundle)
    elif isinstance(document, RayJob):
        check_job(sheet, document, bundle)
    elif isinstance(document, PersistentVolumeClaim):
        _claim(sheet, document, bundle)
    elif isinstance(document, PersistentVolume):
        quantity(sheet, ("spec", "capacity", "storage"), document.spec.capacity.get("storage", ""))
        check_server(sheet, ("spec", "nfs", "server"), document.spec.nfs.server)
    elif isinstance(document, NetworkPolicy):
        _policy(sheet, document, bundle)
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
    elif isinstance(document, Job):
        check_pod(sheet, ("spec", "template"), document.spec.template, bundle)
        for index, each in enumerate(document.spec.template.spec.containers):
            at = ("spec", "template", "spec", "containers", index)
            env = {item.name: item.value or f"${item.name}" for item in each.env}
            container_commands(sheet, at, each.command, each.args, env)
    elif isinstance(document, TrainJob):
        _train_job(sheet, document, bundle)
    elif isinstance(document, TrainingRuntime):
        for index, job in enumerate(document.spec.template.spec.replicated_jobs):
            path = ("spec", "template", "spec", "replicatedJobs", index, "template", "spec")
            check_pod(sheet, (*path, "template"), job.template.spec.template, bundle)


def _claim(sheet: Sheet, document: PersistentVolumeClaim, bundle: Bundle) -> None:
    spec = document.spec
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
    if (spec.storage_class_name or "") != (volume.spec.storage_class_name or ""):
        sheet.report(
            ("spec", "storageClassName"),
            f"storageClassName is {spec.storage_class_name!r}, of the volume "
            f"{volume.spec.storage_class_name!r}; they are not bound",
        )


def _policy(sheet: Sheet, document: NetworkPolicy, bundle: Bundle) -> None:
    spec = document.spec
    labels = spec.pod_selector.match_labels
    if bundle.pods and not bundle.selects(labels):
        known = sorted({f"{key}: {value}" for pod in bundle.pods for key, value in pod.items()})
        text = ", ".join(f"{key}: {value}" for key, value in labels.items())
        hint = did_you_mean(text, known)
        sheet.report(
            ("spec", "podSelector"),
            f"the policy guards no pod of these files, none has {text or 'no labels'}{hint}",
        )
    if "Ingress" not in spec.policy_types:
        sheet.report(("spec", "policyTypes"), "what comes in is not guarded; write Ingress")
    bare = [
        pod
        for pod in bundle.pods
        if "ray.io/node-type" in pod and not labels.items() <= pod.items()
    ]
    if bare and bundle.selects(labels) and len(bundle.policies) == 1:
        sheet.report(
            ("spec", "podSelector"),
            f"the policy leaves {len(bare)} kinds of Ray's pods unguarded, which lack the labels "
            + ", ".join(f"{key}: {value}" for key, value in labels.items()),
        )
    together = False
    for index, rule in enumerate(spec.ingress):
        path = ("spec", "ingress", index)
        if not rule.from_:
            sheet.report(path, "without `from` everybody is let in; name pods or networks")
        for each, peer in enumerate(rule.from_):
            here = (*path, "from", each)
            if peer.ip_block is not None:
                try:
                    network = ipaddress.ip_network(peer.ip_block.cidr)
                except ValueError as error:
                    sheet.report((*here, "ipBlock", "cidr"), f"no network: {error}")
                    continue
                if network.prefixlen == 0:
                    sheet.report((*here, "ipBlock", "cidr"), "everybody is let in; name a network")
            elif peer.pod_selector is None and peer.namespace_selector is None:
                sheet.report(here, "an empty entry lets nobody in, or everybody; name pods")
            elif peer.pod_selector is not None and peer.namespace_selector is None:
                inner = peer.pod_selector.match_labels
                together |= inner == labels and not rule.ports
                if bundle.pods and inner and not bundle.selects(inner) and inner != labels:
                    sheet.report(
                        (*here, "podSelector"),
                        "no pod of these files has these labels; they are let in for nothing",
                    )
            elif (
                peer.namespace_selector is not None
                and not (
                    peer.namespace_selector.match_labels
                    or peer.namespace_selector.match_expressions
                )
                and not (peer.pod_selector and peer.pod_selector.match_labels)
            ):
                sheet.report(
                    (*here, "namespaceSelector"), "every pod of the cluster is let in; name one"
                )
        for each, port in enumerate(rule.ports):
            if isinstance(port.port, int) and port.port not in _RAY_PORTS:
                sheet.report(
                    (*path, "ports", each, "port"),
                    f"Ray does not listen at {port.port}; its ports are "
                    + ", ".join(f"{number} ({name})" for number, name in _RAY_PORTS.items()),
                )
            elif port.port in (6379, 8080, 10001):
                sheet.report(
                    (*path, "ports", each, "port"),
                    f"others need no port {port.port} ({_RAY_PORTS[int(port.port)]}); let them "
                    "in at 8265 alone, which asks for the token",
                )
    if bundle.pods and bundle.selects(labels) and not together:
        sheet.report(
            ("spec", "ingress") if spec.ingress else ("spec",),
            "Ray's nodes speak with each other at any port, and no rule without ports lets the "
            "pods of podSelector in",
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


def _train_job(sheet: Sheet, document: TrainJob, bundle: Bundle) -> None:
    spec, path = document.spec, ("spec", "trainer")
    trainer = spec.trainer
    reference = spec.runtime_ref
    runtime = bundle.runtimes.get(reference.name)
    if reference.kind == "TrainingRuntime" and runtime is None:
        hint = did_you_mean(reference.name, bundle.runtimes)
        sheet.report(
            ("spec", "runtimeRef", "name"),
            f"no TrainingRuntime {reference.name!r} in these files{hint}",
        )
    message = sheet.project.image_problem(trainer.image)
    if message:
        sheet.report((*path, "image"), message)
    check_env(sheet, path, trainer.env, bundle)
    check_resources(sheet, (*path, "resourcesPerNode"), trainer.resources_per_node)
    env = {each.name: each.value or f"${each.name}" for each in trainer.env}
    found = container_commands(sheet, path, trainer.command, trainer.args, env)
    limits = limits_of(trainer.resources_per_node)
    resources = {"CPU": limits.get("cpu", 0.0), "GPU": limits.get(GPU, 0.0)}
    nodes = Nodes(
        "nodes", trainer.num_nodes, {name: value for name, value in resources.items() if value}
    )
    sheet.nodes.append(nodes)
    for start in found.starts:
        wanted = start.options.get("--min-nodes", "")
        if wanted.isdigit() and int(wanted) != trainer.num_nodes:
            sheet.report(
                start.path,
                f"--min-nodes is {wanted}, numNodes {trainer.num_nodes}",
                "--min-nodes",
            )
            sheet.report(
                (*path, "numNodes"), f"numNodes is {trainer.num_nodes}, {wanted} are awaited"
            )
        host = start.options.get("--address", "").rpartition(":")[0]
        if host and "$" not in host and not host.startswith(f"{document.metadata.name}-"):
            sheet.report(
                start.path,
                f"--address names {host}; the first pod is {document.metadata.name}-JOB-0-0."
                f"{document.metadata.name}",
                "--address",
            )
        told = start.options.get("--num-gpus", "")
        if told.isdigit() and float(told) != limits.get(GPU, 0.0):
            sheet.report(
                start.path,
                f"--num-gpus is {told}, a pod gets {limits.get(GPU, 0.0):g}",
                "--num-gpus",
            )
    if not found.starts:
        sheet.report(path, "no command starts Ray; write ray symmetric-run")
    for at, experiment, overrides in found.runs:
        sheet.runs.append(Run(at, experiment, overrides, (nodes,)))
        if runtime is not None:
            groups = [
                (each.name, each.template.spec.template)
                for each in runtime.spec.template.spec.replicated_jobs
            ]
            check_places(sheet, at, experiment, overrides, groups)
