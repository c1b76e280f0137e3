"""What must hold in a file of Ray's cluster launcher.

Ray's own schema checks types alone: it takes a cluster that anyone may command, workers that never
start and a project that arrives without its data room.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from orchestrator.cluster_files import instances
from orchestrator.cluster_files.models.launcher import (
    AwsLauncher,
    AwsNodeType,
    GcpLauncher,
    GcpNodeType,
    Launcher,
    LocalLauncher,
    NodeType,
)
from orchestrator.cluster_files.quantities import gib
from orchestrator.cluster_files.rules.commands import Found, Started, examine
from orchestrator.cluster_files.sheet import Nodes, Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import nearest

HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
_TOKEN = "~/.ray/auth_token"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GOOGLE = "iam.gserviceaccount.com"
_BOOTSTRAP = "~/ray_bootstrap_config.yaml"


def check(sheet: Sheet, file: LocalLauncher | AwsLauncher | GcpLauncher) -> None:
    """Report everything that is wrong with a launcher file."""
    found = {
        key: [
            (index, examine(sheet, (key, index), text)) for index, text in enumerate(commands or [])
        ]
        for key, commands in _commands(file)
    }
    has_workers = bool(file.provider.worker_ips) if isinstance(file, LocalLauncher) else True
    _start_commands(sheet, file, found, has_workers)
    _token_file(sheet, file, has_workers)
    _mounts(sheet, file)
    if not any("make install" in text for text in file.setup_commands):
        sheet.report(
            ("setup_commands",),
            "nodes do not install what constraints.txt pins; write `make install` in the "
            "project's folder",
        )
    _images(sheet, file)
    key = file.auth.ssh_private_key
    if key is not None and key.endswith(".pub"):
        sheet.report(("auth", "ssh_private_key"), f"{key} is the public half; write the other")
    if isinstance(file, LocalLauncher):
        _addresses(sheet, file)
        _local_start(sheet, file, _head_start(found))
        return
    _node_types(sheet, file)
    if isinstance(file, AwsLauncher):
        _aws(sheet, file)
    else:
        _gcp(sheet, file)


def _commands(file: Launcher) -> Iterator[tuple[str, list[str]]]:
    for key in (
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
        HEAD,
        WORKER,
    ):
        yield key, getattr(file, key)


def _head_start(found: dict[str, list[tuple[int, Found]]]) -> Started | None:
    return next((start for _, each in found[HEAD] for start in each.starts), None)


def _start_commands(
    sheet: Sheet,
    file: Launcher,
    found: dict[str, list[tuple[int, Found]]],
    has_workers: bool,
) -> None:
    for key in (HEAD, WORKER):
        if not getattr(file, key) and not (key == WORKER and has_workers):
            continue
        everything = [command for _, each in found[key] for command in each.all]
        starts = [start for _, each in found[key] for start in each.starts]
        words = [each.words[:2] for each in everything]
        if ("ray", "start") in words and ("ray", "stop") not in words[
            : words.index(("ray", "start"))
        ]:
            sheet.report((key,), "a second `ray up` fails without `ray stop` first")
        if len(starts) != 1:
            sheet.report(
                (key,),
                f"{len(starts)} commands say `ray start`, one is needed"
                if getattr(file, key)
                else "required key is missing: no worker would join",
            )
    head = _head_start(found)
    workers = [start for _, each in found[WORKER] for start in each.starts]
    if head is None or not has_workers:
        return
    if not head.head:
        sheet.report(head.path, "the head is started without --head", "ray start")
    if "--autoscaling-config" not in head.options:
        sheet.report(
            head.path,
            "without --autoscaling-config=~/ray_bootstrap_config.yaml no worker is started",
            "ray start",
        )
    elif head.options["--autoscaling-config"] != _BOOTSTRAP:
        sheet.report(
            head.path,
            f"`ray up` puts what the head reads into {_BOOTSTRAP}, and --autoscaling-config is "
            f"{head.options['--autoscaling-config']}",
            "--autoscaling-config",
        )
    for worker in workers:
        wanted = f"$RAY_HEAD_IP:{head.options.get('--port', '6379')}"
        if worker.options.get("--address") != wanted:
            sheet.report(
                worker.path,
                f"--address is {worker.options.get('--address')}, the head listens at {wanted}",
                "--address",
            )
            sheet.report(
                head.path,
                f"the head listens at {wanted}, workers look for {worker.options.get('--address')}",
                "--port",
            )
        if "--head" in worker.options:
            sheet.report(worker.path, "a worker is started with --head", "--head")


def _token_file(sheet: Sheet, file: Launcher, has_workers: bool) -> None:
    setup = file.setup_commands
    made = any("ray get-auth-token --generate" in text for text in setup)
    if has_workers and file.file_mounts.get(_TOKEN) != _TOKEN:
        sheet.report(
            ("file_mounts", _TOKEN) if _TOKEN in file.file_mounts else ("file_mounts",),
            f"workers get no token; write {_TOKEN}: {_TOKEN}",
        )
    if not has_workers and not made:
        sheet.report(("setup_commands",), "no token is made; write `ray get-auth-token --generate`")
    if not any(f"chmod 600 {_TOKEN}" in text for text in setup):
        index = next((n for n, text in enumerate(setup) if _TOKEN in text), None)
        sheet.report(
            ("setup_commands",) if index is None else ("setup_commands", index),
            f"the token stays readable for everyone; write `chmod 600 {_TOKEN}`",
        )


def _mounts(sheet: Sheet, file: Launcher) -> None:
    for target, source in file.file_mounts.items():
        path: KeyPath = ("file_mounts", target)
        if not target.startswith(("/", "~/")):
            sheet.report(path, f"{target!r} is relative; write the path on the node in full")
        here = sheet.project.file(source)
        if not source.startswith(("/", "~")) and here is not None and not here.exists():
            sheet.report(path, f"{source} does not exist in the project's folder")
    if "." not in file.file_mounts.values():
        if any("cd ~/" in text and "make install" in text for text in file.setup_commands) and (
            file.file_mounts
        ):
            sheet.report(("file_mounts",), "the project itself is not copied; write FOLDER: .")
        return
    target = next(name for name, source in file.file_mounts.items() if source == ".")
    for index, text in enumerate(file.setup_commands):
        if "make install" in text and f"cd {target}" not in text:
            sheet.report(
                ("setup_commands", index),
                f"the project is copied to {target}, and another folder is installed",
            )
    if "/.git" not in file.rsync_exclude:
        sheet.report(
            ("rsync_exclude",), "the whole history would be copied to every node; write /.git"
        )
    if ".gitignore" not in file.rsync_filter:
        sheet.report(
            ("rsync_filter",),
            "data and runs, all that git ignores, would be copied to every node; write .gitignore",
        )
    # rsync matches a name without a slash in front at any depth: `data` is orchestrator/data too.
    for index, pattern in enumerate(file.rsync_exclude):
        if not pattern.startswith("/"):
            sheet.report(
                ("rsync_exclude", index),
                f"{pattern!r} is not anchored and leaves out folders of that name at any depth; "
                f"write /{pattern}",
            )


def _images(sheet: Sheet, file: Launcher) -> None:
    if file.docker is None:
        return
    names = ("image", "head_image", "worker_image")
    given = {name: getattr(file.docker, name) for name in names if getattr(file.docker, name)}
    for name, image in given.items():
        message = sheet.project.image_problem(image)
        if message:
            sheet.report(("docker", name), message)
    tags = {_python_and_ray(image) for image in given.values()}
    if len(tags) > 1:
        last = list(given)[-1]
        sheet.report(("docker", last), f"head and workers have different images: {given}")


def _python_and_ray(image: str) -> str:
    return image.rpartition(":")[2].removesuffix("-gpu").removesuffix("-cpu")


def _addresses(sheet: Sheet, file: LocalLauncher) -> None:
    provider = file.provider
    every: list[tuple[KeyPath, str]] = [
        (("provider", "head_ip"), provider.head_ip),
        *(
            (("provider", "worker_ips", index), address)
            for index, address in enumerate(provider.worker_ips)
        ),
    ]
    seen: dict[str, KeyPath] = {}
    for path, address in every:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            sheet.report(path, f"{address!r} is not an address; write one such as 192.168.1.10")
        if address in seen:
            sheet.report(path, f"{address} is given twice")
        seen[address] = path
    least, most = file.min_workers, file.max_workers
    count = len(provider.worker_ips)
    if most is not None and most > count:
        sheet.report(("max_workers",), f"max_workers is {most}, worker_ips names {count}")
    if least is not None and least > (count if most is None else min(most, count)):
        sheet.report(
            ("min_workers",),
            f"min_workers is {least}, and there are at most {min(most or count, count)}",
        )


def _local_start(sheet: Sheet, file: LocalLauncher, head: Started | None) -> None:
    if head is None:
        return
    head_ip = file.provider.head_ip
    for option in ("--node-ip-address", "--dashboard-host"):
        found = head.options.get(option)
        if found != head_ip:
            sheet.report(("provider", "head_ip"), f"head_ip is {head_ip}, {option} {found}")
            sheet.report(
                head.path,
                f"{option} is {found}, provider.head_ip is {head_ip}",
                option if found else "ray start",
            )
    if file.provider.worker_ips and head.env.get("RAY_enable_autoscaler_v2") != "0":
        sheet.report(
            head.path,
            "the second autoscaler starts no worker by address; write RAY_enable_autoscaler_v2=0",
            "RAY_enable_autoscaler_v2" if "RAY_enable_autoscaler_v2" in head.env else "ray start",
        )
    number = head.options.get("--num-cpus"), head.options.get("--num-gpus")
    described = any(number)
    resources = {
        name: float(value)
        for name, value in zip(("CPU", "GPU"), number, strict=True)
        if value and value.isdigit()
    }
    sheet.nodes.append(Nodes("head", 1, resources if described else None))
    if file.provider.worker_ips:
        sheet.nodes.append(Nodes("workers", len(file.provider.worker_ips), None))


def _node_types(sheet: Sheet, file: AwsLauncher | GcpLauncher) -> None:
    types = file.available_node_types
    if file.head_node_type not in types:
        guess = nearest(file.head_node_type, types)
        hint = f"; did you mean {guess!r}?" if guess else ""
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
        elif resource in ("memory", "object_store_memory"):
            if machine is not None and value > machine.memory:
                sheet.report(
                    at, f"{resource} is {gib(value)}, and {name} has {gib(machine.memory)}"
                )
        elif resource not in ("CPU", "GPU", "NPU"):
            guess = nearest(resource, ["CPU", "GPU", "NPU", "memory", "object_store_memory"])
            if guess and (resource.upper() == guess.upper() or len(resource) > 3):
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
        if not zone.startswith(file.provider.region):
            sheet.report(
                ("provider", "availability_zone"),
                f"{zone} is not in region {file.provider.region}",
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
        for index, device in enumerate(node.block_device_mappings):
            if not device.device_name.startswith("/dev/"):
                sheet.report(
                    (*path, "BlockDeviceMappings", index, "DeviceName"),
                    f"{device.device_name!r} is no device; write /dev/sda1",
                )
        if node.metadata_options and node.metadata_options.http_tokens != "required":
            sheet.report(
                (*path, "MetadataOptions", "HttpTokens"),
                "any request that is passed on reads the machine's credentials; write required",
            )
    _same(
        sheet,
        [(n, k.node_config.image_id) for n, k in file.available_node_types.items()],
        "ImageId",
    )


def _gcp(sheet: Sheet, file: GcpLauncher) -> None:
    zone = file.provider.availability_zone
    if not zone.startswith(file.provider.region):
        sheet.report(
            ("provider", "availability_zone"), f"{zone} is not in region {file.provider.region}"
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
            for each, scope in enumerate(account.scopes):
                if scope != _SCOPE and nearest(scope, [_SCOPE]) and len(scope) > 40:
                    sheet.report(
                        (*path, "serviceAccounts", index, "scopes", each),
                        f"there is no scope {scope}; did you mean {_SCOPE}?",
                    )
        for index, disk in enumerate(node.disks):
            source = disk.initialize_params.source_image
            if not re.fullmatch(r"(https://\S+/)?projects/[^/]+/global/images/\S+", source):
                sheet.report(
                    (*path, "disks", index, "initializeParams", "sourceImage"),
                    f"{source!r} is no image; write projects/PROJECT/global/images/family/FAMILY",
                )
        if not any(disk.boot for disk in node.disks):
            sheet.report((*path, "disks"), "no disk has boot: true")
    images = [
        (n, k.node_config.disks[0].initialize_params.source_image.rpartition("/")[2])
        for n, k in file.available_node_types.items()
        if k.node_config.disks
    ]
    for name, image in images:
        message = _image_python(image)
        if message:
            first = ("available_node_types", name, "node_config", "disks", 0, "initializeParams")
            sheet.report((*first, "sourceImage"), message)


def _image_python(image: str) -> str | None:
    """Ubuntu 22.04 and older bring a Python that constraints.txt has no versions for."""
    for old, python in (("1804", "3.6"), ("2004", "3.8"), ("2204", "3.10")):
        if f"ubuntu-{old}" in image or f"ubuntu{old}" in image or f"accelerator-{old}" in image:
            return f"image {image} has Python {python}, constraints.txt serves 3.11 and newer"
    return None


def _same(sheet: Sheet, values: Sequence[tuple[str, str]], key: str) -> None:
    """Head and workers have to have the same Python, so the same image."""
    for name, value in values:
        message = _image_python(value.replace(".", ""))
        if message:
            sheet.report(("available_node_types", name, "node_config", key), message)
    others = [(name, value) for name, value in values if value != values[0][1]]
    for name, value in others:
        sheet.report(
            ("available_node_types", name, "node_config", key),
            f"{key} is {value}, of {values[0][0]} {values[0][1]}; Ray needs the same Python on all",
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
