"""Where an experiment reads and writes, against what the pods of a file mount."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from orchestrator.cluster_files.models.kubernetes import PodTemplate
from orchestrator.cluster_files.project import FOLDER
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.config.schema import Experiment

_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})


def places_of(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Every place that an experiment names, by its key; paths of the data below ``data.root``."""
    data = experiment.data
    yield "storage", experiment.storage
    if experiment.in_bucket:
        yield "scratch", experiment.scratch
    if experiment.tracking.mlflow:
        yield "tracking.mlflow", experiment.tracking.mlflow
    for name, split in (("train", data.train), ("val", data.val)):
        for key in ("images", "annotations", "shards"):
            given = getattr(split, key)
            if given is not None:
                yield f"data.{name}.{key}", _below(data.root, given)
    if data.classes is not None:
        yield "data.classes", _below(data.root, data.classes)
    if experiment.train.init_from:
        yield "train.init_from", experiment.train.init_from


def _below(root: str, given: str) -> str:
    if "://" in given or os.path.isabs(given):  # noqa: PTH117
        return given
    return f"{root.rstrip('/')}/{given}" if "://" in root else os.path.normpath(f"{root}/{given}")


def check_places(
    sheet: Sheet,
    path: KeyPath,
    experiment: str,
    overrides: Sequence[str],
    groups: Sequence[tuple[str, PodTemplate]],
) -> None:
    """Report places of an experiment that some pods do not have.

    Args:
        sheet: takes the problems.
        path: of the command.
        experiment: file that it names.
        overrides: of it.
        groups: pods that have to see the places, with what they are called.
    """
    resolved = sheet.project.experiment(experiment, overrides)
    if resolved is None:
        return
    for key, place in places_of(resolved):
        keys = (f"{key}=", *(("data.root=",) if key.startswith("data.") else ()))
        needle = next((word for word in overrides if word.startswith(keys)), experiment)
        scheme = urlsplit(place).scheme
        if scheme in ("s3", "gs"):
            for who, template in groups:
                if scheme == "s3" and not _has_keys(template):
                    sheet.report(
                        path,
                        f"{key} is in a bucket, and {who} has neither AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY nor a serviceAccountName",
                        needle,
                    )
                    break
            continue
        if scheme and scheme != "sqlite":
            continue
        name = place.removeprefix("sqlite:///") if scheme else place
        _mounted(sheet, path, key, name, needle, groups)


def _mounted(
    sheet: Sheet,
    path: KeyPath,
    key: str,
    name: str,
    needle: str,
    groups: Sequence[tuple[str, PodTemplate]],
) -> None:
    # One download by name happens in each process that has a network.
    if key == "train.init_from" and "/" not in name and not name.endswith((".pth", ".safetensors")):
        return
    for who, template in groups:
        if not name.startswith("/") or not _is_mounted(name, template):
            missing = "is relative to a folder that goes with the pod"
            if name.startswith("/"):
                missing = f"{who} mounts no storage there"
            sheet.report(
                path, f"{key} is {name!r}, and {missing}; name a folder that all pods mount", needle
            )
            return


def _is_mounted(name: str, template: PodTemplate) -> bool:
    spec = template.spec
    shared = {
        volume.name for volume in spec.volumes if volume.persistent_volume_claim or volume.nfs
    }
    return any(
        mount.name in shared and f"{name}/".startswith(f"{mount.mount_path.rstrip('/')}/")
        for mount in spec.containers[0].volume_mounts
    ) or name.startswith(f"{FOLDER}/experiments/")


def _has_keys(template: PodTemplate) -> bool:
    container = template.spec.containers[0]
    return (
        {each.name for each in container.env} >= _KEYS
        or bool(container.env_from)
        or template.spec.service_account_name is not None
    )
