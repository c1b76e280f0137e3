"""Where an experiment reads and writes, against what the pods of a file mount."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from orchestrator.cluster_files.models.pods import PodTemplate
from orchestrator.cluster_files.project import FOLDER
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.places import places_of
from orchestrator.config.problems import KeyPath

#: Folders of a pod's own that its user may write.
_OF_POD = ("/tmp/", "/var/tmp/", "/home/")
_KEYS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})


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
    for named in places_of(resolved):
        key, place = named.key, named.location
        if key == "data.cache":
            continue  # Each node has one of its own.
        keys = (f"{key}=", *(("data.root=",) if key.startswith("data.") else ()))
        needle = next((word for word in overrides if word.startswith(keys)), experiment)
        scheme = urlsplit(place).scheme
        if scheme and f"{scheme}://" not in place:
            sheet.report(
                path, f"{key} is {place!r}, a folder of that name; write {scheme}://…", needle
            )
            continue
        if scheme == "s3":
            for who, template in groups:
                if not _has_keys(template):
                    sheet.report(
                        path,
                        f"{key} is in a bucket, and {who} has neither AWS_ACCESS_KEY_ID and "
                        "AWS_SECRET_ACCESS_KEY nor a serviceAccountName",
                        needle,
                    )
                    break
        elif not scheme:
            # What is written may be on the driver's disk alone, as long as that outlives the pod;
            # of a run in a bucket it need not.
            asked = groups[:1] if named.is_written else groups
            if key != "scratch" or not place.startswith(_OF_POD):
                _mounted(sheet, path, key, place, needle, asked)
            if named.is_written:
                _writable(sheet, path, key, place, needle, groups)


def _mounted(
    sheet: Sheet,
    path: KeyPath,
    key: str,
    name: str,
    needle: str,
    groups: Sequence[tuple[str, PodTemplate]],
) -> None:
    for who, template in groups:
        if not name.startswith("/") or not _is_mounted(name, template):
            missing = "is relative to a folder that goes with the pod"
            if name.startswith("/"):
                missing = f"{who} mounts no storage there"
            sheet.report(
                path, f"{key} is {name!r}, and {missing}; name a folder that all pods mount", needle
            )
            return


def _writable(
    sheet: Sheet,
    path: KeyPath,
    key: str,
    name: str,
    needle: str,
    groups: Sequence[tuple[str, PodTemplate]],
) -> None:
    for who, template in groups:
        claimed = {
            each.name: each.persistent_volume_claim or each.nfs for each in template.spec.volumes
        }
        for mount in template.spec.containers[0].volume_mounts:
            below = f"{name}/".startswith(f"{mount.mount_path.rstrip('/')}/")
            storage = claimed.get(mount.name)
            if below and (mount.read_only or (storage is not None and storage.read_only)):
                sheet.report(
                    path, f"{key} is {name!r}, which {who} mounts for reading alone", needle
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
