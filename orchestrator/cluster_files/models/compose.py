"""Files of Docker Compose, with one way of writing each thing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.cluster_files.models.base import Count, Snake, Text


class Build(Snake):
    """How an image is made."""

    context: Text
    dockerfile: Text = "Dockerfile"
    args: dict[str, str] = Field(default_factory=dict)
    target: Text | None = None


class Depends(Snake):
    """What has to be there first."""

    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]
    restart: bool = False
    required: bool = True


class Healthcheck(Snake):
    """How a container is asked whether it is well."""

    test: list[Text]
    interval: Text | None = None
    timeout: Text | None = None
    retries: Count | None = None
    start_period: Text | None = None
    start_interval: Text | None = None


class Device(Snake):
    """Devices that are reserved."""

    driver: Text | None = None
    count: int | Literal["all"] | None = None
    device_ids: list[Text] = Field(default_factory=list)
    capabilities: list[Text]


class Limits(Snake):
    """What a container may take."""

    cpus: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = None
    memory: Text | None = None
    pids: Count | None = None


class Reservations(Snake):
    """What a container is sure to get."""

    cpus: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = None
    memory: Text | None = None
    devices: list[Device] = Field(default_factory=list)


class DeployResources(Snake):
    """What a container takes and gets."""

    limits: Limits = Limits()
    reservations: Reservations = Reservations()


class Deploy(Snake):
    """How many containers, and of what size."""

    replicas: Count = 1
    resources: DeployResources = DeployResources()


class Ulimit(Snake):
    """A limit of the kernel."""

    soft: int
    hard: int


class ServiceFile(Snake):
    """One service; it is started by ``docker compose up``."""

    image: Text | None = None
    build: Build | None = None
    command: list[str] | str | None = None
    entrypoint: list[str] | str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    ports: list[Text] = Field(default_factory=list)
    expose: list[Text] = Field(default_factory=list)
    volumes: list[Text] = Field(default_factory=list)
    networks: list[Text] = Field(default_factory=list)
    secrets: list[Text] = Field(default_factory=list)
    configs: list[Text] = Field(default_factory=list)
    depends_on: dict[str, Depends] = Field(default_factory=dict)
    healthcheck: Healthcheck | None = None
    deploy: Deploy = Deploy()
    shm_size: Text | None = None
    ulimits: dict[str, Ulimit] = Field(default_factory=dict)
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    user: Text | None = None
    hostname: Text | None = None
    working_dir: Text | None = None
    init: bool = False
    read_only: bool = False
    tmpfs: list[Text] = Field(default_factory=list)
    cap_drop: list[Text] = Field(default_factory=list)
    cap_add: list[Text] = Field(default_factory=list)
    security_opt: list[Text] = Field(default_factory=list)
    privileged: bool = False
    network_mode: Text | None = None
    stop_grace_period: Text | None = None
    profiles: list[Text] = Field(default_factory=list)
    extra_hosts: list[Text] = Field(default_factory=list)
    devices: list[Text] = Field(default_factory=list)
    pull_policy: Literal["always", "never", "missing", "build"] | None = None


class ComposeVolume(Snake):
    """A volume by name."""

    driver: Text | None = None
    driver_opts: dict[str, str] = Field(default_factory=dict)
    external: bool = False
    name: Text | None = None


class ComposeNetwork(Snake):
    """A network by name."""

    driver: Text | None = None
    internal: bool = False
    external: bool = False
    name: Text | None = None


class ComposeSecret(Snake):
    """Where a secret comes from: a file or a variable, never the YAML."""

    file: Text | None = None
    environment: Text | None = None
    external: bool = False
    name: Text | None = None


class ComposeConfig(Snake):
    """A file that is no secret."""

    file: Text | None = None
    content: Text | None = None


class Compose(Snake):
    """A file of Docker Compose."""

    name: Text | None = None
    services: dict[str, ServiceFile]
    volumes: dict[str, ComposeVolume | None] = Field(default_factory=dict)
    networks: dict[str, ComposeNetwork | None] = Field(default_factory=dict)
    secrets: dict[str, ComposeSecret] = Field(default_factory=dict)
    configs: dict[str, ComposeConfig] = Field(default_factory=dict)
