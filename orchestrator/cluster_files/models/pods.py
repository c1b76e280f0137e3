"""Pods of Kubernetes, as far as clusters need them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.cluster_files.models.base import Camel, Count, Port, Quantity, Text


class PodMeta(Camel):
    """Labels of a pod."""

    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class KeyRef(Camel):
    """A key of a secret or a config map."""

    name: Text
    key: Text
    optional: bool = False


class FieldRef(Camel):
    """A field of the pod."""

    field_path: Text
    api_version: Text | None = None


class ResourceRef(Camel):
    """A resource of a container."""

    resource: Text
    container_name: Text | None = None
    divisor: Quantity | None = None


class EnvSource(Camel):
    """Where the value of a variable comes from."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceRef | None = None


class EnvVar(Camel):
    """A variable of the environment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    value: str | None = None
    value_from: EnvSource | None = None


class NameRef(Camel):
    """Another object."""

    name: Text
    optional: bool = False


class EnvFrom(Camel):
    """All keys of an object as variables."""

    prefix: str = ""
    secret_ref: NameRef | None = None
    config_map_ref: NameRef | None = None


class ContainerPort(Camel):
    """A port that a container listens at."""

    container_port: Port
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,15}$")] | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    host_port: Port | None = None
    host_ip: Annotated[str | None, Field(alias="hostIP")] = None


class Resources(Camel):
    """What a container asks for and may take."""

    requests: dict[str, Quantity] = Field(default_factory=dict)
    limits: dict[str, Quantity] = Field(default_factory=dict)


class VolumeMount(Camel):
    """Where a volume appears."""

    name: Text
    mount_path: Annotated[str, Field(pattern=r"^/")]
    sub_path: Text | None = None
    read_only: bool = False


class Capabilities(Camel):
    """Of the kernel."""

    add: list[Text] = Field(default_factory=list)
    drop: list[Text] = Field(default_factory=list)


class SeccompProfile(Camel):
    """System calls that are allowed."""

    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]
    localhost_profile: Text | None = None


class RunAs(Camel):
    """Whom processes run as, and which system calls they have."""

    run_as_non_root: bool = False
    run_as_user: Count | None = None
    run_as_group: Count | None = None
    seccomp_profile: SeccompProfile | None = None


class SecurityContext(RunAs):
    """What a container may do."""

    privileged: bool = False
    allow_privilege_escalation: bool = True
    read_only_root_filesystem: bool = False
    capabilities: Capabilities | None = None


class PodSecurityContext(RunAs):
    """What all containers of a pod may do."""

    fs_group: Count | None = None
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    supplemental_groups: list[Count] = Field(default_factory=list)


class Exec(Camel):
    """A command."""

    command: list[Text]


class HttpGet(Camel):
    """A request."""

    path: Text
    port: int | str
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"


class TcpSocket(Camel):
    """A connection."""

    port: int | str


class Handler(Camel):
    """What is done at a turn of a container's life, or asked of it."""

    exec: Exec | None = None
    http_get: HttpGet | None = None


class Probe(Handler):
    """How a container is asked whether it is well."""

    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: Count = 0
    period_seconds: Annotated[int, Field(ge=1)] = 10
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    failure_threshold: Annotated[int, Field(ge=1)] = 3
    success_threshold: Annotated[int, Field(ge=1)] = 1


class Lifecycle(Camel):
    """Turns of a container's life."""

    post_start: Handler | None = None
    pre_stop: Handler | None = None


class Container(Camel):
    """One container."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    image: Text
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] = Field(default_factory=list)
    args: list[str] = Field(default_factory=list)
    working_dir: Text | None = None
    env: list[EnvVar] = Field(default_factory=list)
    env_from: list[EnvFrom] = Field(default_factory=list)
    ports: list[ContainerPort] = Field(default_factory=list)
    resources: Resources = Resources()
    volume_mounts: list[VolumeMount] = Field(default_factory=list)
    security_context: SecurityContext | None = None
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle | None = None


class EmptyDir(Camel):
    """A folder that lives as long as its pod."""

    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class ClaimRef(Camel):
    """Storage that was claimed."""

    claim_name: Text
    read_only: bool = False


class KeyToPath(Camel):
    """A key as a file."""

    key: Text
    path: Text
    mode: Count | None = None


class SecretVolume(Camel):
    """A secret as files."""

    secret_name: Text
    items: list[KeyToPath] = Field(default_factory=list)
    default_mode: Count | None = None
    optional: bool = False


class ConfigMapVolume(Camel):
    """A config map as files."""

    name: Text
    items: list[KeyToPath] = Field(default_factory=list)
    default_mode: Count | None = None


class HostPath(Camel):
    """A path of the node."""

    path: Annotated[str, Field(pattern=r"^/")]
    type: Text | None = None


class Nfs(Camel):
    """A folder of an NFS server."""

    server: Text
    path: Annotated[str, Field(pattern=r"^/")]
    read_only: bool = False


class Volume(Camel):
    """Storage of a pod."""

    name: Text
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: ClaimRef | None = None
    secret: SecretVolume | None = None
    config_map: ConfigMapVolume | None = None
    host_path: HostPath | None = None
    nfs: Nfs | None = None


class Toleration(Camel):
    """A taint that is put up with."""

    key: Text | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Count | None = None


class Expression(Camel):
    """A condition on labels."""

    key: Text
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = Field(default_factory=list)


class LabelSelector(Camel):
    """Objects by their labels."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: list[Expression] = Field(default_factory=list)


class NodeTerm(Camel):
    """Nodes by their labels."""

    match_expressions: list[Expression]


class NodeSelector(Camel):
    """Nodes of any of the terms."""

    node_selector_terms: list[NodeTerm]


class PreferredNode(Camel):
    """Nodes that would be better."""

    weight: Annotated[int, Field(ge=1, le=100)]
    preference: NodeTerm


class NodeAffinity(Camel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredNode] = Field(
        default_factory=list
    )


class PodTerm(Camel):
    """Beside or apart from which pods."""

    label_selector: LabelSelector
    topology_key: Text


class PreferredPod(Camel):
    """Beside or apart from which pods would be better."""

    weight: Annotated[int, Field(ge=1, le=100)]
    pod_affinity_term: PodTerm


class PodAffinity(Camel):
    """Beside or apart from other pods."""

    required_during_scheduling_ignored_during_execution: list[PodTerm] = Field(default_factory=list)
    preferred_during_scheduling_ignored_during_execution: list[PreferredPod] = Field(
        default_factory=list
    )


class Affinity(Camel):
    """Where a pod may run."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


class PodSpec(Camel):
    """A pod."""

    containers: Annotated[list[Container], Field(min_length=1)]
    init_containers: list[Container] = Field(default_factory=list)
    volumes: list[Volume] = Field(default_factory=list)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    affinity: Affinity | None = None
    service_account_name: Text | None = None
    automount_service_account_token: bool = True
    image_pull_secrets: list[NameRef] = Field(default_factory=list)
    security_context: PodSecurityContext | None = None
    termination_grace_period_seconds: Count | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None
    priority_class_name: Text | None = None
    runtime_class_name: Text | None = None
    scheduler_name: Text | None = None
    host_network: bool = False
    host_ipc: Annotated[bool, Field(alias="hostIPC")] = False
    host_pid: Annotated[bool, Field(alias="hostPID")] = False


class PodTemplate(Camel):
    """A pod to be made."""

    metadata: PodMeta = PodMeta()
    spec: PodSpec
