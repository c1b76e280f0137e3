"""What the head and the workers of a Ray cluster on Kubernetes have to have in common."""

from __future__ import annotations

from orchestrator.cluster_files.models.ray import ClusterSpec
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath


def check_agreement(sheet: Sheet, path: KeyPath, spec: ClusterSpec) -> None:
    """Report images, variables, users and storage that are not the same on all nodes."""
    head = spec.head_group_spec.template.spec.containers[0]
    head_at = (*path, "headGroupSpec", "template", "spec", "containers", 0)
    variables = {each.name: each for each in head.env}
    places = {each.name: index for index, each in enumerate(head.env)}
    for index, group in enumerate(spec.worker_group_specs):
        worker = group.template.spec.containers[0]
        at = (*path, "workerGroupSpecs", index, "template", "spec", "containers", 0)
        if worker.image != head.image:
            sheet.report(
                (*at, "image"),
                f"image is {worker.image!r}, of the head {head.image!r}; Ray, Python and the "
                "project have to be the same on all nodes",
            )
            sheet.report(
                (*head_at, "image"),
                f"image is {head.image!r}, of group {group.group_name!r} {worker.image!r}",
            )
        for position, each in enumerate(worker.env):
            other = variables.get(each.name)
            if other is not None and (other.value, other.value_from) != (
                each.value,
                each.value_from,
            ):
                sheet.report(
                    (*at, "env", position),
                    f"{each.name} is another one on the head; write the same on both",
                )
                sheet.report(
                    (*head_at, "env", places[each.name]),
                    f"{each.name} is another one in group {group.group_name!r}",
                )
        missing = [
            each.name
            for each in head.env
            if each.name.startswith(("AWS_", "GOOGLE_"))
            and each.name not in {own.name for own in worker.env}
        ]
        if missing and not worker.env_from:
            sheet.report(
                (*at, "env") if worker.env else at,
                f"{missing[0]} is on the head alone, and workers read and write, too",
            )
        users = [
            template.spec.security_context.run_as_user if template.spec.security_context else None
            for template in (spec.head_group_spec.template, group.template)
        ]
        if users[0] != users[1]:
            sheet.report(
                (*at[:-2], "securityContext", *(() if users[1] is None else ("runAsUser",))),
                f"processes run as {users[1]}, on the head as {users[0]}; one cannot write what "
                "the other has made",
            )
        if worker.env_from != head.env_from:
            sheet.report(
                (*at, "envFrom") if worker.env_from else at,
                "the head takes its variables from other secrets; write the same envFrom on both",
            )
        parts = {each.name: each.sub_path for each in head.volume_mounts}
        for position, mount in enumerate(worker.volume_mounts):
            if parts.get(mount.name, mount.sub_path) != mount.sub_path:
                sheet.report(
                    (*at, "volumeMounts", position, *(("subPath",) if mount.sub_path else ())),
                    f"subPath of {mount.name} is {mount.sub_path}, on the head "
                    f"{parts[mount.name]}; that is another folder",
                )
        mounts = {each.name: each.mount_path for each in head.volume_mounts}
        for position, mount in enumerate(worker.volume_mounts):
            if mounts.get(mount.name, mount.mount_path) != mount.mount_path:
                sheet.report(
                    (*at, "volumeMounts", position, "mountPath"),
                    f"{mount.name} is at {mount.mount_path}, on the head at {mounts[mount.name]}; "
                    "runs name one path",
                )
                at_head = [each.name for each in head.volume_mounts].index(mount.name)
                sheet.report(
                    (*head_at, "volumeMounts", at_head, "mountPath"),
                    f"{mount.name} is at {mounts[mount.name]}, in group {group.group_name!r} at "
                    f"{mount.mount_path}",
                )
        kinds = {each.name: each for each in spec.head_group_spec.template.spec.volumes}
        for position, volume in enumerate(group.template.spec.volumes):
            claim = volume.persistent_volume_claim
            theirs = kinds.get(volume.name)
            other_claim = theirs.persistent_volume_claim if theirs else None
            if claim and other_claim and claim.claim_name != other_claim.claim_name:
                sheet.report(
                    (*path, "workerGroupSpecs", index, "template", "spec", "volumes", position),
                    f"claims {claim.claim_name!r}, the head {other_claim.claim_name!r}",
                )
