"""Where an experiment reads and writes, against what the pods of a file mount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from orchestrator.cluster_files.models.pods import PodTemplate
from orchestrator.cluster_files.project import FOLDER
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.places import NamedPlace, places_of
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
        key = named.key
        if key == "data.cache":
            continue  # Each node has one of its own.
        keys = (f"{key}=", *(("data.root=",) if key.startswith("data.") else ()))
        needle = next((word for word in overrides if word.startswith(keys)), experiment)
        for problem in _problems(named, groups):
            sheet.report(path, f"{key} is {problem}", needle)


def _problems(named: NamedPlace, groups: Sequence[tuple[str, PodTemplate]]) -> Iterator[str]:
    """What is wrong with a place of an experiment, in these pods."""
    place = named.location
    scheme = urlsplit(place).scheme
    if scheme and f"{scheme}://" not in place:
        yield f"{place!r}, a folder of that name; write {scheme}://…"
    elif scheme == "s3":
        without = next((who for who, template in groups if not _has_keys(template)), None)
        if without is not None:
            yield (
                f"in a bucket, and {without} has neither AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY nor a serviceAccountName"
            )
    elif not scheme:
        # What is written may be on the driver's disk alone, as long as that outlives the pod;
        # of a run in a bucket it need not.
        asked = groups[:1] if named.is_written else groups
        absent = next((who for who, template in asked if not _is_mounted(place, template)), None)
        if absent is not None and (named.key != "scratch" or not place.startswith(_OF_POD)):
            missing = "is relative to a folder that goes with the pod"
            if place.startswith("/"):
                missing = f"{absent} mounts no storage there"
            yield f"{place!r}, and {missing}; name a folder that all pods mount"
        closed = next((who for who, template in groups if _is_read_only(place, template)), None)
        if named.is_written and closed is not None:
            yield f"{place!r}, which {closed} mounts for reading alone"


def _is_mounted(name: str, template: PodTemplate) -> bool:
    spec = template.spec
    shared = {
        volume.name for volume in spec.volumes if volume.persistent_volume_claim or volume.nfs
    }
    return any(
        mount.name in shared and f"{name}/".startswith(f"{mount.mount_path.rstrip('/')}/")
        for mount in spec.containers[0].volume_mounts
    ) or name.startswith(f"{FOLDER}/experiments/")


def _is_read_only(name: str, template: PodTemplate) -> bool:
    spec = template.spec
    claims = [volume.persistent_volume_claim or volume.nfs for volume in spec.volumes]
    closed = {
        volume.name
        for volume, claim in zip(spec.volumes, claims, strict=True)
        if claim is not None and claim.read_only
    }
    return any(
        (mount.read_only or mount.name in closed)
        and f"{name}/".startswith(f"{mount.mount_path.rstrip('/')}/")
        for mount in spec.containers[0].volume_mounts
    )


def _has_keys(template: PodTemplate) -> bool:
    container = template.spec.containers[0]
    return (
        {each.name for each in container.env} >= _KEYS
        or bool(container.env_from)
        or template.spec.service_account_name is not None
    )
