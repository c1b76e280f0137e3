"""Manifests of KubeRay and of Kubeflow's trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from orchestrator.cluster_files.models.base import Camel, Count, Text
from orchestrator.cluster_files.models.kubernetes import (
    ConfigMap,
    Job,
    Manifest,
    Namespace,
    NetworkPolicy,
    PersistentVolume,
    PersistentVolumeClaim,
    Secret,
    Service,
)
from orchestrator.cluster_files.models.pods import (
    EnvFrom,
    EnvVar,
    PodMeta,
    PodTemplate,
    Resources,
    SecurityContext,
    VolumeMount,
)


class AuthOptions(Camel):
    """Whether Ray asks for a token."""

    mode: Literal["token", "disabled"] = "token"
    secret_name: Text | None = None


class AutoscalerOptions(Camel):
    """How workers come and go."""

    version: Literal["v1", "v2"] | None = None
    upscaling_mode: Literal["Default", "Conservative", "Aggressive"] | None = None
    idle_timeout_seconds: Count | None = None
    image: Text | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    resources: Resources | None = None
    env: list[EnvVar] = Field(default_factory=list)
    env_from: list[EnvFrom] = Field(default_factory=list)
    security_context: SecurityContext | None = None
    volume_mounts: list[VolumeMount] = Field(default_factory=list)


class HeadGroup(Camel):
    """The head."""

    ray_start_params: dict[str, str] = Field(default_factory=dict)
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    enable_ingress: bool = False
    template: PodTemplate


class ScaleStrategy(Camel):
    """Workers that are to go."""

    workers_to_delete: list[Text] = Field(default_factory=list)


class WorkerGroup(Camel):
    """Workers of one kind."""

    group_name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    replicas: Count = 0
    min_replicas: Count
    max_replicas: Count
    num_of_hosts: Annotated[int, Field(ge=1)] = 1
    idle_timeout_seconds: Count | None = None
    suspend: bool = False
    ray_start_params: dict[str, str] = Field(default_factory=dict)
    scale_strategy: ScaleStrategy | None = None
    template: PodTemplate


class ClusterSpec(Camel):
    """A Ray cluster."""

    ray_version: Text
    auth_options: AuthOptions | None = None
    enable_in_tree_autoscaling: bool = False
    autoscaler_options: AutoscalerOptions | None = None
    head_service_annotations: dict[str, str] = Field(default_factory=dict)
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = Field(default_factory=list)
    suspend: bool = False


class RayCluster(Manifest):
    """A Ray cluster, by name."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    spec: ClusterSpec


class SubmitterConfig(Camel):
    """The job that submits."""

    backoff_limit: Count = 2


class RayJobSpec(Camel):
    """A cluster that is there for one command."""

    entrypoint: Text
    ray_cluster_spec: ClusterSpec
    runtime_env_yaml: Annotated[str | None, Field(alias="runtimeEnvYAML")] = None
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = (
        "K8sJobMode"
    )
    shutdown_after_job_finishes: bool = False
    ttl_seconds_after_finished: Count = 0
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    backoff_limit: Count = 0
    entrypoint_num_cpus: Annotated[float, Field(ge=0)] = 0
    entrypoint_num_gpus: Annotated[float, Field(ge=0)] = 0
    entrypoint_resources: Text | None = None
    submitter_pod_template: PodTemplate | None = None
    submitter_config: SubmitterConfig | None = None
    suspend: bool = False
    job_id: Text | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class RayJob(Manifest):
    """A cluster that is there for one command, by name."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    spec: RayJobSpec


class RuntimeRef(Camel):
    """The template that a job is made from."""

    name: Text
    api_group: Literal["trainer.kubeflow.org"] = "trainer.kubeflow.org"
    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"


class Trainer(Camel):
    """The command on every node."""

    image: Text
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)
    num_nodes: Annotated[int, Field(ge=1)]
    num_proc_per_node: int | str | None = None
    resources_per_node: Resources


class TrainJobSpec(Camel):
    """A command on several nodes."""

    runtime_ref: RuntimeRef
    trainer: Trainer
    suspend: bool = False


class TrainJob(Manifest):
    """A command on several nodes, by name."""

    api_version: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    spec: TrainJobSpec


class RuntimeJobSpec(Camel):
    """The job of one kind of pod."""

    template: PodTemplate
    backoff_limit: Count = 6


class RuntimeJob(Camel):
    """The job of one kind of pod, with labels."""

    metadata: PodMeta = PodMeta()
    spec: RuntimeJobSpec


class ReplicatedJob(Camel):
    """One kind of pod."""

    name: Text
    group_name: Text | None = None
    replicas: Annotated[int, Field(ge=1)] = 1
    template: RuntimeJob


class JobNetwork(Camel):
    """Names of the pods."""

    enable_dns_hostnames: Annotated[bool, Field(alias="enableDNSHostnames")] = True
    publish_not_ready_addresses: bool = True


class JobSetSpec(Camel):
    """All kinds of pods."""

    replicated_jobs: list[ReplicatedJob]
    network: JobNetwork | None = None


class JobSet(Camel):
    """The template's body."""

    spec: JobSetSpec


class MlPolicy(Camel):
    """How many nodes."""

    num_nodes: Annotated[int, Field(ge=1)] = 1


class TrainingRuntimeSpec(Camel):
    """A template of jobs."""

    ml_policy: MlPolicy | None = None
    template: JobSet


class TrainingRuntime(Manifest):
    """A template of jobs, by name."""

    api_version: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainingRuntime"]
    spec: TrainingRuntimeSpec


#: By ``kind``.
KINDS: dict[str, type[BaseModel]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "TrainJob": TrainJob,
    "TrainingRuntime": TrainingRuntime,
    "PersistentVolumeClaim": PersistentVolumeClaim,
    "PersistentVolume": PersistentVolume,
    "NetworkPolicy": NetworkPolicy,
    "Service": Service,
    "ConfigMap": ConfigMap,
    "Secret": Secret,
    "Namespace": Namespace,
    "Job": Job,
}
