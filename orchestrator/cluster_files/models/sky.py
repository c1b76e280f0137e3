"""Tasks of SkyPilot."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, Field

from orchestrator.cluster_files.models.base import Count, Snake, Text

ExitCode: TypeAlias = Annotated[int, Field(ge=0, le=255)]


class JobRecovery(Snake):
    """When a managed job is started again."""

    strategy: Text | None = None
    max_restarts_on_errors: Count | None = None
    recover_on_exit_codes: ExitCode | list[ExitCode] = Field(default_factory=list)


def _as_section(value: object) -> object:
    """A strategy alone may be written as its name."""
    return {"strategy": value} if isinstance(value, str) else value


class SkyResources(Snake):
    """What every node has."""

    infra: Text | None = None
    accelerators: Text | None = None
    cpus: int | str | None = None
    memory: int | str | None = None
    instance_type: Text | None = None
    use_spot: bool = False
    disk_size: Annotated[int, Field(ge=10)] | None = None
    image_id: Text | None = None
    ports: int | str | None = None
    job_recovery: Annotated[JobRecovery | None, BeforeValidator(_as_section)] = None
    labels: dict[str, str] = Field(default_factory=dict)


class SkyTask(Snake):
    """A command on several nodes."""

    name: Text | None = None
    workdir: Text | None = None
    num_nodes: Annotated[int, Field(ge=1)] = 1
    resources: SkyResources
    envs: dict[str, str | None] = Field(default_factory=dict)
    secrets: dict[str, str | None] = Field(default_factory=dict)
    file_mounts: dict[str, str] = Field(default_factory=dict)
    setup: Text | None = None
    run: Text
