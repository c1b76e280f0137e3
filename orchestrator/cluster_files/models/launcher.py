"""Files of Ray's cluster launcher, ``ray up FILE``, below ``provider`` and ``node_config`` too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.cluster_files.models.base import Camel, Count, Pascal, Snake, Text

Commands = list[Text]


class Auth(Snake):
    """How the launcher logs in."""

    ssh_user: Text
    ssh_private_key: Text | None = None
    ssh_public_key: Text | None = None
    ssh_proxy_command: Text | None = None


class Docker(Snake):
    """The container that Ray runs in."""

    image: Text | None = None
    head_image: Text | None = None
    worker_image: Text | None = None
    container_name: Text | None = None
    pull_before_run: bool = True
    run_options: list[Text] = Field(default_factory=list)
    head_run_options: list[Text] = Field(default_factory=list)
    worker_run_options: list[Text] = Field(default_factory=list)
    disable_automatic_runtime_detection: bool = False
    disable_shm_size_detection: bool = False
    use_podman: bool = False


class NodeDocker(Snake):
    """The container of one kind of node."""

    pull_before_run: bool = True
    worker_image: Text | None = None
    worker_run_options: list[Text] = Field(default_factory=list)


class LocalProvider(Snake):
    """Machines that are there already."""

    type: Literal["local"]
    head_ip: Text
    worker_ips: list[Text] = Field(default_factory=list)
    external_head_ip: Text | None = None
    coordinator_address: Text | None = None
    cache_stopped_nodes: bool = True


class IpRange(Pascal):
    """A network a rule lets in."""

    cidr_ip: Text
    description: Text | None = None


class IpPermission(Pascal):
    """A rule of a security group."""

    from_port: int
    to_port: int
    ip_protocol: Literal["tcp", "udp", "icmp", "-1"]
    ip_ranges: list[IpRange] = Field(default_factory=list)


class SecurityGroup(Pascal):
    """Who may reach the nodes."""

    group_name: Text | None = None
    ip_permissions: list[IpPermission] = Field(default_factory=list)


class AwsProvider(Snake):
    """EC2."""

    type: Literal["aws"]
    region: Text
    availability_zone: Text | None = None
    cache_stopped_nodes: bool = True
    use_internal_ips: bool = False
    security_group: SecurityGroup | None = None


class GcpProvider(Snake):
    """Compute Engine."""

    type: Literal["gcp"]
    region: Text
    availability_zone: Text
    project_id: Text | None
    cache_stopped_nodes: bool = True
    use_internal_ips: bool = False


class Ebs(Pascal):
    """A disk."""

    volume_size: Annotated[int, Field(ge=8)]
    volume_type: Literal["gp2", "gp3", "io1", "io2", "st1"] = "gp3"
    encrypted: bool = False
    iops: Count | None = None
    throughput: Count | None = None
    delete_on_termination: bool = True


class BlockDevice(Pascal):
    """Where a disk is attached."""

    device_name: Text
    ebs: Ebs


class SpotOptions(Pascal):
    """Of a machine that may be taken away."""

    max_price: Text | None = None
    spot_instance_type: Literal["one-time", "persistent"] = "one-time"
    instance_interruption_behavior: Literal["terminate", "stop", "hibernate"] = "terminate"


class MarketOptions(Pascal):
    """How a machine is bought."""

    market_type: Literal["spot"]
    spot_options: SpotOptions | None = None


class InstanceProfile(Pascal):
    """The role a machine acts in."""

    arn: Text | None = None
    name: Text | None = None


class Tag(Pascal):
    """A label of a machine."""

    key: Text
    value: str


class TagSpecification(Pascal):
    """Labels by kind of resource."""

    resource_type: Text
    tags: list[Tag]


class MetadataOptions(Pascal):
    """How the machine's own credentials are read."""

    http_tokens: Literal["required", "optional"] = "required"
    http_endpoint: Literal["enabled", "disabled"] = "enabled"
    http_put_response_hop_limit: Annotated[int, Field(ge=1, le=64)] = 1


class AwsNode(Pascal):
    """A machine of EC2, as ``RunInstances`` takes it."""

    instance_type: Text
    image_id: Text
    block_device_mappings: list[BlockDevice] = Field(default_factory=list)
    instance_market_options: MarketOptions | None = None
    iam_instance_profile: InstanceProfile | None = None
    metadata_options: MetadataOptions | None = None
    key_name: Text | None = None
    subnet_ids: list[Text] = Field(default_factory=list)
    security_group_ids: list[Text] = Field(default_factory=list)
    tag_specifications: list[TagSpecification] = Field(default_factory=list)


class DiskParameters(Camel):
    """How a disk begins."""

    disk_size_gb: Annotated[int, Field(ge=10)]
    source_image: Text
    disk_type: Text | None = None


class Disk(Camel):
    """A disk."""

    boot: bool
    auto_delete: bool = True
    type: Literal["PERSISTENT", "SCRATCH"] = "PERSISTENT"
    initialize_params: DiskParameters


class GuestAccelerator(Camel):
    """Devices of a machine."""

    accelerator_type: Text
    accelerator_count: Annotated[int, Field(ge=1)]


class Scheduling(Camel):
    """What happens when the machine is needed elsewhere."""

    preemptible: bool = False
    provisioning_model: Literal["STANDARD", "SPOT"] = "STANDARD"
    on_host_maintenance: Literal["MIGRATE", "TERMINATE"] = "MIGRATE"
    automatic_restart: bool = True
    instance_termination_action: Literal["STOP", "DELETE"] | None = None


class MetadataItem(Camel):
    """One value a machine can read about itself."""

    key: Text
    value: str


class Metadata(Camel):
    """Values a machine can read about itself."""

    items: list[MetadataItem] = Field(default_factory=list)


class ServiceAccount(Camel):
    """Whom a machine acts as."""

    email: Text
    scopes: list[Text]


class GcpNode(Camel):
    """A machine of Compute Engine, as its ``instances.insert`` takes it."""

    machine_type: Text
    disks: list[Disk]
    guest_accelerators: list[GuestAccelerator] = Field(default_factory=list)
    scheduling: list[Scheduling] = Field(default_factory=list)
    metadata: Metadata | None = None
    service_accounts: list[ServiceAccount] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)


class NodeType(Snake):
    """A kind of node without its ``node_config``."""

    min_workers: Count = 0
    max_workers: Count = 0
    resources: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    worker_setup_commands: Commands = Field(default_factory=list)
    initialization_commands: Commands = Field(default_factory=list)
    docker: NodeDocker | None = None


class AwsNodeType(NodeType):
    """A kind of node on EC2."""

    node_config: AwsNode


class GcpNodeType(NodeType):
    """A kind of node on Compute Engine."""

    node_config: GcpNode


class Launcher(Snake):
    """What launcher files of every provider hold."""

    cluster_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    max_workers: Count | None = None
    upscaling_speed: Annotated[float, Field(gt=0)] = 1.0
    idle_timeout_minutes: Annotated[float, Field(gt=0)] = 5
    docker: Docker | None = None
    auth: Auth
    file_mounts: dict[str, Text] = Field(default_factory=dict)
    cluster_synced_files: list[Text] = Field(default_factory=list)
    file_mounts_sync_continuously: bool = False
    rsync_exclude: list[Text] = Field(default_factory=list)
    rsync_filter: list[Text] = Field(default_factory=list)
    initialization_commands: Commands = Field(default_factory=list)
    setup_commands: Commands = Field(default_factory=list)
    head_setup_commands: Commands = Field(default_factory=list)
    worker_setup_commands: Commands = Field(default_factory=list)
    head_start_ray_commands: Commands
    worker_start_ray_commands: Commands = Field(default_factory=list)


class LocalLauncher(Launcher):
    """A cluster of machines that are there already."""

    provider: LocalProvider
    min_workers: Count | None = None


class AwsLauncher(Launcher):
    """A cluster on EC2."""

    provider: AwsProvider
    available_node_types: dict[str, AwsNodeType]
    head_node_type: Text


class GcpLauncher(Launcher):
    """A cluster on Compute Engine."""

    provider: GcpProvider
    available_node_types: dict[str, GcpNodeType]
    head_node_type: Text


#: By ``provider.type``.
LAUNCHERS: dict[Any, type[LocalLauncher] | type[AwsLauncher] | type[GcpLauncher]] = {
    "local": LocalLauncher,
    "aws": AwsLauncher,
    "gcp": GcpLauncher,
}
