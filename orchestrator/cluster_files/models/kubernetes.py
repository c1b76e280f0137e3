"""Manifests of Kubernetes other than pods, as far as clusters need them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from orchestrator.cluster_files.models.base import Camel, Count, Port, Quantity, Text
from orchestrator.cluster_files.models.pods import (
    LabelSelector,
    Nfs,
    PodMeta,
    PodTemplate,
    Resources,
)

AccessModes: TypeAlias = Annotated[
    list[Literal["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]],
    Field(min_length=1),
]


class ObjectMeta(PodMeta):
    """Name and labels of an object."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
    namespace: Text | None = None


class Manifest(Camel):
    """An object, by name."""

    metadata: ObjectMeta


class ClaimSpec(Camel):
    """Storage that is asked for."""

    access_modes: AccessModes
    resources: Resources
    storage_class_name: str | None = None
    volume_name: Text | None = None
    volume_mode: Literal["Filesystem", "Block"] = "Filesystem"


class PersistentVolumeClaim(Manifest):
    """Storage that is asked for, by name."""

    api_version: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    spec: ClaimSpec


class VolumeSpec(Camel):
    """Storage that there is."""

    capacity: dict[str, Quantity]
    access_modes: AccessModes
    nfs: Nfs
    mount_options: list[Text] = Field(default_factory=list)
    persistent_volume_reclaim_policy: Literal["Retain", "Delete", "Recycle"] = "Retain"
    storage_class_name: str | None = None


class PersistentVolume(Manifest):
    """Storage that there is, by name."""

    api_version: Literal["v1"]
    kind: Literal["PersistentVolume"]
    spec: VolumeSpec


class IpBlock(Camel):
    """A network."""

    cidr: Text
    except_: Annotated[list[Text], Field(alias="except")] = Field(default_factory=list)


class Peer(Camel):
    """Whom a policy lets in or out."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IpBlock | None = None


class PolicyPort(Camel):
    """A port of a policy."""

    port: int | str
    end_port: Port | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Ingress(Camel):
    """What comes in."""

    from_: Annotated[list[Peer], Field(alias="from")] = Field(default_factory=list)
    ports: list[PolicyPort] = Field(default_factory=list)


class Egress(Camel):
    """What goes out."""

    to: list[Peer] = Field(default_factory=list)
    ports: list[PolicyPort] = Field(default_factory=list)


class PolicySpec(Camel):
    """Whom pods speak with."""

    pod_selector: LabelSelector
    policy_types: Annotated[list[Literal["Ingress", "Egress"]], Field(min_length=1)]
    ingress: list[Ingress] = Field(default_factory=list)
    egress: list[Egress] = Field(default_factory=list)


class NetworkPolicy(Manifest):
    """Whom pods speak with, by name."""

    api_version: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    spec: PolicySpec


class ServicePort(Camel):
    """A port of a service."""

    port: Port
    name: Text | None = None
    target_port: int | str | None = None
    node_port: Port | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class ServiceSpec(Camel):
    """A name for pods."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    cluster_ip: Annotated[str | None, Field(alias="clusterIP")] = None
    selector: dict[str, str]
    ports: list[ServicePort] = Field(default_factory=list)
    load_balancer_source_ranges: list[Text] = Field(default_factory=list)


class Service(Manifest):
    """A name for pods, by name."""

    api_version: Literal["v1"]
    kind: Literal["Service"]
    spec: ServiceSpec


class ConfigMap(Manifest):
    """Files and values that are no secrets."""

    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    data: dict[str, str] = Field(default_factory=dict)


class Secret(Manifest):
    """A secret, which a file must not hold."""

    api_version: Literal["v1"]
    kind: Literal["Secret"]
    type: Text | None = None
    data: dict[str, str] = Field(default_factory=dict)
    string_data: dict[str, str] = Field(default_factory=dict)


class Namespace(Manifest):
    """A room of its own."""

    api_version: Literal["v1"]
    kind: Literal["Namespace"]


class JobSpec(Camel):
    """A pod that ends."""

    template: PodTemplate
    backoff_limit: Count = 6
    completions: Count | None = None
    parallelism: Count | None = None
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    ttl_seconds_after_finished: Count | None = None


class Job(Manifest):
    """A pod that ends, by name."""

    api_version: Literal["batch/v1"]
    kind: Literal["Job"]
    spec: JobSpec
