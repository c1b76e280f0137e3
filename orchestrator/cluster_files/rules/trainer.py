"""What must hold in the manifests of Kubeflow Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.cluster_files.models.pods import PodTemplate
from orchestrator.cluster_files.models.ray import TrainingRuntime, TrainJob
from orchestrator.cluster_files.quantities import gib
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.rules.commands import STORE_SHARE
from orchestrator.cluster_files.rules.places import check_places
from orchestrator.cluster_files.rules.pods import (
    GPU,
    check_env,
    check_pod,
    check_resources,
    check_restarts,
    check_variant,
    container_commands,
    limits_of,
    shm_of,
)
from orchestrator.cluster_files.rules.ray_pods import check_end
from orchestrator.cluster_files.rules.starts import check_token
from orchestrator.cluster_files.sheet import Nodes, Run, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean

#: Which job a trainer changes, and which of its containers.
_STEP, _CONTAINER = "trainer.kubeflow.org/trainjob-ancestor-step", "node"
#: For how long `ray symmetric-run` waits for other nodes.
_WAIT = "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT"


def check_train_job(sheet: Sheet, document: TrainJob, bundle: Bundle) -> None:
    """Report everything that is wrong with a TrainJob."""
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
    check_token(sheet, (*path, "env") if trainer.env else path, found, ())
    jobs = ["JOB"]
    if runtime is not None:
        jobs = [each.name for each in runtime.spec.template.spec.replicated_jobs]
    limits = limits_of(trainer.resources_per_node)
    check_variant(sheet, (*path, "image"), trainer.image, limits)
    resources = {"CPU": limits.get("cpu", 0.0), "GPU": limits.get(GPU, 0.0)}
    nodes = Nodes(
        "nodes", trainer.num_nodes, {name: value for name, value in resources.items() if value}
    )
    sheet.nodes.append(nodes)
    for start in found.starts:
        wanted = start.options.get("--min-nodes", "")
        if wanted.isdecimal() and int(wanted) != trainer.num_nodes:
            sheet.report(
                start.path,
                f"--min-nodes is {wanted}, numNodes {trainer.num_nodes}",
                "--min-nodes",
            )
            sheet.report(
                (*path, "numNodes"), f"numNodes is {trainer.num_nodes}, {wanted} are awaited"
            )
        host = start.options.get("--address", "").rpartition(":")[0]
        first = [f"{document.metadata.name}-{job}-0-0.{document.metadata.name}" for job in jobs]
        if host and "$" not in host and host not in first:
            sheet.report(
                start.path,
                f"--address names {host}; the first pod is {' or '.join(first)}",
                "--address",
            )
        if trainer.num_nodes > 1 and _WAIT not in start.env and "--min-nodes" in start.options:
            sheet.report(
                start.path,
                f"it waits 30 s for the other pods, whose images may take minutes; set {_WAIT}",
                "--min-nodes",
            )
        told = start.options.get("--num-gpus", "")
        if told.isdecimal() and float(told) != limits.get(GPU, 0.0):
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
            _shared_memory(sheet, at, [template for _, template in groups], limits)


def _shared_memory(
    sheet: Sheet, path: KeyPath, templates: Sequence[PodTemplate], limits: Mapping[str, float]
) -> None:
    """Whether the object store fits what the runtime gives the pods."""
    store = limits.get("memory", 0.0) * STORE_SHARE
    for template in templates:
        shm = shm_of(template.spec.containers[0], template.spec)
        if shm is None or shm < store:
            has = "64 MiB" if shm is None else gib(shm)
            sheet.report(
                path,
                f"Ray's object store takes {gib(store)}, {STORE_SHARE:.0%} of the memory, and the "
                f"runtime's pods have {has} at /dev/shm",
                "ray ",
            )


def check_runtime(sheet: Sheet, document: TrainingRuntime, bundle: Bundle) -> None:
    """Report everything that is wrong with a TrainingRuntime."""
    jobs = document.spec.template.spec.replicated_jobs
    base: KeyPath = ("spec", "template", "spec", "replicatedJobs")
    for index, job in enumerate(jobs):
        path = (*base, index, "template", "spec")
        check_pod(sheet, (*path, "template"), job.template.spec.template, bundle)
        check_restarts(sheet, (*path, "template", "spec"), job.template.spec.template.spec)
        check_end(sheet, (*path, "template", "spec"), job.template.spec.template.spec)
    steps = [job for job in jobs if job.template.metadata.labels.get(_STEP) == "trainer"]
    if not steps:
        at = (*base, 0, "template", *(("metadata",) if jobs[0].template.metadata.labels else ()))
        sheet.report(
            at, f"no job is the one that a TrainJob's trainer changes; label it {_STEP}: trainer"
        )
    for job in steps:
        names = [each.name for each in job.template.spec.template.spec.containers]
        if _CONTAINER not in names:
            here = (*base, jobs.index(job), "template", "spec", "template", "spec", "containers", 0)
            sheet.report(
                (*here, "name"),
                f"image and command of a TrainJob go to the container {_CONTAINER!r}, and there "
                f"is {', '.join(names)}",
            )
