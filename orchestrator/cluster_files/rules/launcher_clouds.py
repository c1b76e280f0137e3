"""What must hold in a launcher's file for AWS or GCP beside what holds in every one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from orchestrator.cluster_files import instances
from orchestrator.cluster_files.models.launcher import (
    AwsLauncher,
    AwsNodeType,
    GcpLauncher,
    GcpNodeType,
    NodeType,
)
from orchestrator.cluster_files.quantities import gib
from orchestrator.cluster_files.sheet import Nodes, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean, nearest

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: Scopes by which a machine may write to a bucket.
_WRITING = ("cloud-platform", "devstorage.read_write", "devstorage.full_control")
#: Of the disk that a machine begins with.
LEAST_GB = 30
_GOOGLE = "iam.gserviceaccount.com"


def check_cloud(sheet: Sheet, file: AwsLauncher | GcpLauncher) -> None:
    """Report what is wrong with kinds of node, networks, images and rights."""
    _node_types(sheet, file)
    if isinstance(file, AwsLauncher):
        _aws(sheet, file)
    else:
        _gcp(sheet, file)


def _node_types(sheet: Sheet, file: AwsLauncher | GcpLauncher) -> None:
    types = file.available_node_types
    if file.head_node_type not in types:
        hint = did_you_mean(file.head_node_type, types)
        sheet.report(
            ("head_node_type",),
            f"{file.head_node_type!r} is none of available_node_types{hint}",
        )
    total = sum(each.min_workers for each in types.values())
    if file.max_workers is not None and total > file.max_workers:
        sheet.report(
            ("max_workers",),
            f"max_workers is {file.max_workers}, and the kinds of node want {total} at least",
        )
    for name, kind in types.items():
        path: KeyPath = ("available_node_types", name)
        if kind.min_workers > kind.max_workers:
            sheet.report(
                (*path, "min_workers"),
                f"min_workers is {kind.min_workers}, max_workers {kind.max_workers}",
            )
        if name == file.head_node_type and kind.min_workers:
            sheet.report((*path, "min_workers"), "there is one head; write 0")
        if file.max_workers is not None and kind.max_workers > file.max_workers:
            sheet.report(
                (*path, "max_workers"),
                f"max_workers is {kind.max_workers}, of the whole cluster {file.max_workers}",
            )
        _node_type(sheet, path, name == file.head_node_type, kind)


def _instance(kind: NodeType) -> tuple[str, str, instances.Instance | None]:
    """Key and name of a machine type, and its figures."""
    if isinstance(kind, AwsNodeType):
        name = kind.node_config.instance_type
        return "InstanceType", name, instances.ec2(name)
    assert isinstance(kind, GcpNodeType)
    name = kind.node_config.machine_type
    found = instances.gce(name)
    gpus = sum(each.accelerator_count for each in kind.node_config.guest_accelerators)
    if found is not None and gpus:
        found = instances.Instance(found.cpus, found.memory, gpus)
    return "machineType", name, found


def _node_type(sheet: Sheet, path: KeyPath, head: bool, kind: NodeType) -> None:
    key, name, machine = _instance(kind)
    here = (*path, "node_config", key)
    if machine is None and (not kind.resources or instances.is_known_family(name)):
        sheet.report(
            here,
            f"the figures of {name!r} are not known here; correct it, or write resources beside "
            "node_config",
        )
    known = {} if machine is None else {"CPU": float(machine.cpus), "GPU": float(machine.gpus)}
    for resource, value in kind.resources.items():
        at = (*path, "resources", resource)
        if resource in known and value > known[resource]:
            sheet.report(at, f"{resource} is {value:g}, and {name} has {known[resource]:g}")
            sheet.report(here, f"{name} has {known[resource]:g} {resource}s, told are {value:g}")
        elif resource in ("memory", "object_store_memory"):
            if machine is not None and value > machine.memory:
                sheet.report(
                    at, f"{resource} is {gib(value)}, and {name} has {gib(machine.memory)}"
                )
        elif resource not in ("CPU", "GPU", "NPU"):
            names = ["CPU", "GPU", "NPU", "memory", "object_store_memory"]
            same = [each for each in names if each.upper() == resource.upper()]
            guess = same[0] if same else nearest(resource, names)
            if guess and (same or len(resource) > 3):
                sheet.report(at, f"unknown resource; did you mean {guess!r}?")
    store, most = kind.resources.get("object_store_memory", 0.0), kind.resources.get("memory", 0.0)
    if machine is not None and store <= machine.memory >= most and store + most > machine.memory:
        sheet.report(
            (*path, "resources", "memory"),
            f"memory and object_store_memory are {gib(store + most)} together, and {name} has "
            f"{gib(machine.memory)}",
        )
    count = 1 if head else kind.min_workers
    resources = {**{name: value for name, value in known.items() if value}, **kind.resources}
    kinds = Nodes(
        str(path[-1]),
        count,
        resources,
        most=None if head else kind.max_workers,
        accelerator_type=instances.accelerator_type(name),
        labels=kind.labels,
    )
    sheet.nodes.append(kinds)


def _aws(sheet: Sheet, file: AwsLauncher) -> None:
    zones = (file.provider.availability_zone or "").replace(" ", "")
    for zone in filter(None, zones.split(",")):
        if not re.fullmatch(rf"{re.escape(file.provider.region)}(?:[a-z]|-\S+)", zone):
            sheet.report(
                ("provider", "availability_zone"),
                f"{zone} is not in region {file.provider.region}; write {file.provider.region}a",
            )
            sheet.report(
                ("provider", "region"), f"region is {file.provider.region}, zone {zone} of another"
            )
    group = file.provider.security_group
    for index, rule in enumerate(group.ip_permissions if group else []):
        for each, network in enumerate(rule.ip_ranges):
            base = ("provider", "security_group", "IpPermissions", index)
            at = (*base, "IpRanges", each, "CidrIp")
            if not _network(sheet, at, network.cidr_ip):
                continue
            if _is_world(network.cidr_ip):
                ports = f"{rule.from_port} to {rule.to_port}"
                sheet.report(
                    at, f"the whole internet reaches ports {ports}; write your own network"
                )
        outside = rule.ip_ranges and rule.ip_protocol != "icmp"
        if outside and (rule.from_port, rule.to_port) != (22, 22):
            sheet.report(
                ("provider", "security_group", "IpPermissions", index, "FromPort"),
                f"ports {rule.from_port} to {rule.to_port} are open from outside, where nothing is "
                "encrypted; leave 22 alone, and use `ray dashboard` or `ssh -L`",
            )
        if (rule.from_port, rule.ip_protocol) == (22, "udp"):
            sheet.report(
                ("provider", "security_group", "IpPermissions", index, "IpProtocol"),
                "SSH speaks tcp, and udp is let in",
            )
        if rule.from_port > rule.to_port:
            sheet.report(
                ("provider", "security_group", "IpPermissions", index, "FromPort"),
                f"FromPort is {rule.from_port}, ToPort {rule.to_port}",
            )
    for name, kind in file.available_node_types.items():
        node, path = kind.node_config, ("available_node_types", name, "node_config")
        if not node.image_id.startswith(("ami-", "resolve:ssm:")):
            sheet.report((*path, "ImageId"), f"{node.image_id!r} is no image; write ami-…")
        if node.instance_market_options is not None and name == file.head_node_type:
            sheet.report(
                (*path, "InstanceMarketOptions"),
                "a head that is taken away ends every run; let workers alone be spot nodes",
            )
        if "ubuntu" in node.image_id and file.auth.ssh_user != "ubuntu":
            sheet.report(
                ("auth", "ssh_user"),
                f"Ubuntu's images know no {file.auth.ssh_user}; write ubuntu",
            )
        for index, device in enumerate(node.block_device_mappings):
            disk = (*path, "BlockDeviceMappings", index)
            if "ubuntu" in node.image_id and device.device_name in ("/dev/xvda", "/dev/sda"):
                sheet.report(
                    (*disk, "DeviceName"),
                    f"{device.device_name} is a second disk, and the first stays as small as the "
                    "image; that of Ubuntu is /dev/sda1",
                )
            if device.ebs.volume_size < LEAST_GB:
                sheet.report((*disk, "Ebs", "VolumeSize"), too_small(device.ebs.volume_size))
            if not device.device_name.startswith("/dev/"):
                sheet.report(
                    (*disk, "DeviceName"),
                    f"{device.device_name!r} is no device; write /dev/sda1",
                )
        if node.metadata_options and node.metadata_options.http_tokens != "required":
            sheet.report(
                (*path, "MetadataOptions", "HttpTokens"),
                "any request that is passed on reads the machine's credentials; write required",
            )
    types = file.available_node_types
    for name, kind in types.items():
        message = _image_python(kind.node_config.image_id.replace(".", ""))
        if message:
            sheet.report(("available_node_types", name, "node_config", "ImageId"), message)
    _same(
        sheet,
        [(n, k.node_config.image_id) for n, k in types.items()],
        ("ImageId",),
        "Ray needs the same Python on all",
    )
    roles = {name: kind.node_config.iam_instance_profile for name, kind in types.items()}
    for name in (name for name, role in roles.items() if role is None and any(roles.values())):
        sheet.report(
            ("available_node_types", name, "node_config"),
            "without IamInstanceProfile these nodes do not reach the bucket, as the others do",
        )
    _slips(
        sheet,
        {name: role.name or role.arn or "" for name, role in roles.items() if role is not None},
        ("IamInstanceProfile",),
    )
    if any(not kind.node_config.security_group_ids for kind in types.values()):
        named = (group.group_name if group else None) or "the group that it makes"
        sheet.note(
            ("provider", "security_group") if group else ("provider",),
            "beside these rules Ray lets the whole internet knock at port 22, where keys alone are "
            f"taken; once `ray up` has made {named}, remove that rule: docs/clusters.md",
        )


def _gcp(sheet: Sheet, file: GcpLauncher) -> None:
    zone = file.provider.availability_zone
    if not re.fullmatch(rf"{re.escape(file.provider.region)}-[a-z]", zone):
        sheet.report(
            ("provider", "availability_zone"),
            f"{zone} is not in region {file.provider.region}; write {file.provider.region}-a",
        )
        sheet.report(
            ("provider", "region"), f"region is {file.provider.region}, zone {zone} of another"
        )
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", file.cluster_name):
        sheet.report(
            ("cluster_name",),
            f"machines are named after {file.cluster_name!r}, and Google takes lower case, digits "
            "and hyphens alone",
        )
    for name, kind in file.available_node_types.items():
        node, path = kind.node_config, ("available_node_types", name, "node_config")
        devices = bool(node.guest_accelerators) or node.machine_type.startswith(
            ("g2-", "a2-", "a3-")
        )
        spot = [
            index
            for index, each in enumerate(node.scheduling)
            if each.preemptible or each.provisioning_model == "SPOT"
        ]
        if spot and name == file.head_node_type:
            sheet.report(
                (*path, "scheduling"),
                "a head that is taken away ends every run; let workers alone be spot nodes",
            )
        stays = [
            index
            for index, each in enumerate(node.scheduling)
            if each.on_host_maintenance == "MIGRATE"
        ]
        if devices and (stays or not node.scheduling):
            at = (*path, "scheduling", stays[0]) if stays else path
            sheet.report(
                at, "a machine with devices cannot migrate; write onHostMaintenance: TERMINATE"
            )
        for index in spot:
            if node.scheduling[index].automatic_restart:
                sheet.report(
                    (*path, "scheduling", index),
                    "a spot machine cannot restart by itself; write automaticRestart: false",
                )
        for index, account in enumerate(node.service_accounts):
            project, domain = file.provider.project_id, account.email.rpartition("@")[2]
            if project and domain not in (f"{project}.{_GOOGLE}", f"developer.{_GOOGLE[4:]}"):
                sheet.report(
                    (*path, "serviceAccounts", index, "email"),
                    f"{account.email} is not of project_id {file.provider.project_id}",
                )
                sheet.report(
                    ("provider", "project_id"),
                    f"project_id is {project}, and machines act as {account.email}",
                )
            if not any(scope.rpartition("/")[2] in _WRITING for scope in account.scopes):
                sheet.report(
                    (*path, "serviceAccounts", index, "scopes"),
                    f"none of these lets the machine write to a bucket; write {_SCOPE}",
                )
            for each, scope in enumerate(account.scopes):
                if scope != _SCOPE and SequenceMatcher(None, scope, _SCOPE).ratio() > 0.93:
                    sheet.report(
                        (*path, "serviceAccounts", index, "scopes", each),
                        f"there is no scope {scope}; did you mean {_SCOPE}?",
                    )
        for index, disk in enumerate(node.disks):
            if not disk.auto_delete:
                sheet.report(
                    (*path, "disks", index, "autoDelete"),
                    "the disk is paid for when the machine is gone; write true",
                )
            if disk.boot and disk.initialize_params.disk_size_gb < LEAST_GB:
                sheet.report(
                    (*path, "disks", index, "initializeParams", "diskSizeGb"),
                    too_small(disk.initialize_params.disk_size_gb),
                )
            source = disk.initialize_params.source_image
            if not re.fullmatch(r"(https://\S+/)?projects/[^/]+/global/images/\S+", source):
                sheet.report(
                    (*path, "disks", index, "initializeParams", "sourceImage"),
                    f"{source!r} is no image; write projects/PROJECT/global/images/family/FAMILY",
                )
        if not any(disk.boot for disk in node.disks):
            last = (0, "boot") if len(node.disks) == 1 else ()
            sheet.report((*path, "disks", *last), "no disk has boot: true")
    accounts = {
        name: kind.node_config.service_accounts[0].email
        for name, kind in file.available_node_types.items()
        if kind.node_config.service_accounts
    }
    _slips(sheet, accounts, ("serviceAccounts", 0, "email"))
    images = [
        (n, k.node_config.disks[0].initialize_params.source_image.rpartition("/")[2])
        for n, k in file.available_node_types.items()
        if k.node_config.disks
    ]
    first = ("disks", 0, "initializeParams", "sourceImage")
    _same(sheet, images, first, "Ray needs the same Python on all")
    for name, image in images:
        message = _image_python(image)
        if message:
            sheet.report(("available_node_types", name, "node_config", *first), message)


def _image_python(image: str) -> str | None:
    """Ubuntu 22.04 and older bring a Python that constraints.txt has no versions for."""
    for old, python in (("1804", "3.6"), ("2004", "3.8"), ("2204", "3.10")):
        if f"ubuntu-{old}" in image or f"ubuntu{old}" in image or f"accelerator-{old}" in image:
            return f"image {image} has Python {python}, constraints.txt serves 3.11 and newer"
    return None


def too_small(size: int) -> str:
    """What is said of a first disk of so many GB."""
    return (
        f"{size} GB hold no system and the packages that constraints.txt names, which take 7 GB "
        f"and as much while they are installed; write {LEAST_GB} or more"
    )


def _same(sheet: Sheet, values: Sequence[tuple[str, str]], key: KeyPath, why: str) -> None:
    """What all kinds of node have to have in common, by their names."""
    for name, value in values:
        if value != values[0][1]:
            sheet.report(
                ("available_node_types", name, "node_config", *key),
                f"{key[-1]} is {value}, of {values[0][0]} {values[0][1]}; {why}",
            )


def _slips(sheet: Sheet, values: Mapping[str, str], key: KeyPath) -> None:
    """Names that are nearly those of most others, which may be different."""
    for name, value in values.items():
        for other in set(values.values()) - {value}:
            often = sum(each == other for each in values.values())
            alike = SequenceMatcher(None, value, other).ratio() > 0.93
            if alike and often > sum(each == value for each in values.values()):
                sheet.report(
                    ("available_node_types", name, "node_config", *key),
                    f"{key[-1]} is {value!r}; did you mean {other!r}, as elsewhere?",
                )


def _network(sheet: Sheet, path: KeyPath, text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        sheet.report(path, f"{text!r} is no network ({error})")
        return False
    return True


def _is_world(text: str) -> bool:
    return ipaddress.ip_network(text).prefixlen == 0
