"""Machines on this one: each with an address, a name, processes and disks of its own.

A machine is a network, mount, process and UTS namespace. Its ``/mnt``, ``/tmp`` and ``/dev/shm``
are empty and its own; ``/mnt/data`` is the same on all of them. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_TOOLS = ("ip", "unshare", "nsenter", "mount")
needs_machines = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(tool) is None for tool in _TOOLS),
    reason="makes namespaces, which takes root, iproute2 and util-linux",
)

_SUBNET = "10.77.0"
PORT = 6379


@dataclass
class Machine:
    """A machine that runs.

    Attributes:
        name: of the host.
        address: of its only interface beside the loopback.
        namespace: of its network, as ``ip netns`` names it.
        hub: the namespace of the bridge that joins them.
        init: the process that ends with it.
        link: the process that holds frames up on the way to and from it, if :meth:`delay` has
            started one.
    """

    name: str
    address: str
    namespace: str
    hub: str
    init: subprocess.Popen[bytes]
    link: subprocess.Popen[str] | None = None

    @property
    def root(self) -> Path:
        """Its file system, seen from here."""
        return Path(f"/proc/{self._pid}/root")

    @property
    def _pid(self) -> int:
        # The child of unshare is the first process in the namespace.
        return entered(self.init)

    def start(
        self, *words: str, surroundings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command there, in ``/mnt/home``."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))},
            "HOME": "/mnt/home",
            "TMPDIR": "/tmp",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_USAGE_STATS_ENABLED": "0",
            **(surroundings or {}),
        }
        enter = ["nsenter", "-t", str(self._pid), "-m", "-u", "-n", "-p"]
        enter += ["sh", "-c", 'cd /mnt/home && exec "$@"', "sh"]
        return subprocess.Popen(
            [*enter, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *words: str, timeout: float = 120.0, surroundings: Mapping[str, str] | None = None
    ) -> str:
        """Run a command there; its output."""
        process = self.start(*words, surroundings=surroundings)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, output
        return output

    def join(
        self, head: Machine, *, cpus: int, surroundings: Mapping[str, str] | None = None
    ) -> None:
        """Start Ray on it: as the head, or as a node of another machine's cluster."""
        place = [f"--address={head.ray}"]
        if head is self:
            place = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        self.run(
            str(Path(sys.executable).with_name("ray")),
            "start",
            *place,
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
            "--object-store-memory=200000000",
            surroundings=surroundings,
        )

    @property
    def ray(self) -> str:
        """Address of the cluster whose head it is."""
        return f"{self.address}:{PORT}"

    def power_off(self) -> None:
        """End everything on it at once; its disks are gone."""
        with suppress(ProcessLookupError, OSError, IndexError):
            os.kill(self._pid, signal.SIGKILL)
        self.init.kill()
        self.init.wait()
        if self.link is not None:
            self.link.kill()
            self.link.wait()

    def delay(self, seconds: float) -> None:
        """Let every packet to and from it take as long; before anything is started on it."""
        port = f"p{self.name[1:]}"
        _ip("-n", self.hub, "link", "del", port)
        words = (self.hub, port, self.namespace, "eth0", str(seconds))
        self.link = subprocess.Popen(
            [sys.executable, "-m", "tests.support.delayed_link", *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.link.stdout is not None
        assert self.link.stdout.readline() == "ready\n"
        _plug_in(self.namespace, self.address, self.hub, port)

    def set_apart(self, apart: bool) -> None:
        """Let no packet pass between it and others that are set apart; all else passes."""
        port, state = f"p{self.name[1:]}", "on" if apart else "off"
        _ip("-n", self.hub, "link", "set", port, "type", "bridge_slave", "isolated", state)


@contextmanager
def machines(
    folder: Path, data: Path, count: int, *, hosts: str = "127.0.0.1 localhost\n"
) -> Iterator[list[Machine]]:
    """Machines ``m1``, ``m2`` and so on, in a network of their own.

    Args:
        folder: for their files of hosts.
        data: a folder that is ``/mnt/data`` on each of them, read-only.
        count: of machines.
        hosts: ``/etc/hosts`` of each; ``{name}`` stands for its name.
    """
    mark = uuid.uuid4().hex[:6]
    hub = f"hub-{mark}"
    started: list[Machine] = []
    _ip("netns", "add", hub)
    try:
        _ip("-n", hub, "link", "add", "br0", "type", "bridge")
        _ip("-n", hub, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            started.append(_machine(folder, data, number, mark, hub, hosts))
        yield started
    finally:
        for machine in started:
            machine.power_off()
            _ip("netns", "del", machine.namespace, check=False)
        _ip("netns", "del", hub, check=False)


def _machine(folder: Path, data: Path, number: int, mark: str, hub: str, hosts: str) -> Machine:
    name, namespace = f"m{number}", f"m{number}-{mark}"
    address = f"{_SUBNET}.{number}"
    _ip("netns", "add", namespace)
    port = f"p{number}"
    _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")
    _plug_in(namespace, address, hub, port)
    table = folder / f"hosts-{name}"
    table.write_text(hosts.format(name=name))
    script = f"""
        mount --make-rprivate / && hostname {name} &&
        mount --bind {table} /etc/hosts &&
        mount -t tmpfs none /mnt && mkdir /mnt/home /mnt/data &&
        mount --bind {data} /mnt/data && mount -o remount,bind,ro /mnt/data &&
        mount -t tmpfs none /dev/shm && mount -t tmpfs none /tmp && touch /mnt/ready &&
        exec sleep infinity
    """
    enter = ["ip", "netns", "exec", namespace, "unshare", "-m", "-u", "-p", "-f", "--mount-proc"]
    init = subprocess.Popen([*enter, "sh", "-c", script], start_new_session=True)
    machine = Machine(name, address, namespace, hub, init)
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError, IndexError):
            if (machine.root / "mnt" / "ready").exists():
                return machine
        assert init.poll() is None, "the machine did not start"
        assert time.monotonic() < deadline, "the machine does not start"
        time.sleep(0.05)


def _plug_in(namespace: str, address: str, hub: str, port: str) -> None:
    _ip("-n", hub, "link", "set", port, "master", "br0", "up")
    _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")


def entered(process: subprocess.Popen[Any]) -> int:
    """Process number, here, of the command that :meth:`Machine.start` has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return int(children.split()[0])


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)
