"""``clusters/onprem.yaml`` as it is written, on three machines that are reached over SSH.

The launching machine is a fourth. What is not tried is ``make install`` on each of them: they have
the environment that the tests run in.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.data.demo.digits import Recipe, build_digits
from tests.support.machines import Machine, machines, needs_machines
from tests.support.waiting import wait_for

_SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    needs_machines,
    pytest.mark.skipif(
        _SSHD is None or shutil.which("rsync") is None, reason="needs sshd and rsync"
    ),
]

ROOT = Path(__file__).parents[2]
#: Addresses and login of the file as it is shipped, and of the machines here.
EDITED = {
    "192.168.1.10": "10.77.0.1",
    "192.168.1.11": "10.77.0.2",
    "192.168.1.12": "10.77.0.3",
    "ssh_user: ray": "ssh_user: root",
    "make install": f"ln -sfn {sys.prefix} .venv",
}
SERVER = """\
HostKey /mnt/host_key
AuthorizedKeysFile /mnt/home/.ssh/authorized_keys
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile /tmp/sshd.pid
"""
#: One has a login, without a password; the server wants another one to exist.
USERS = """\
root:*:0:0:root:/mnt/home:/bin/bash
sshd:*:65533:65534::/run/sshd:/usr/sbin/nologin
"""
#: Of a shipped experiment, to make it short.
OVERRIDES = (
    "name=tiny",
    "data.root=/mnt/data",
    "storage=/mnt/home/runs",
    "detector.width=0.1",
    "train={epochs: 2, batch_size: 6, optimizer: {name: adamw, lr: 0.001}}",
    "cluster={workers: 3, placement: strict_spread, threads_per_worker: 1}",
    "tracking.mlflow=null",
)


@pytest.fixture
def reached(tmp_path: Path) -> Iterator[list[Machine]]:
    """Three machines that the fourth has a key for, each with a home of its own."""
    build_digits(tmp_path / "digits", Recipe(train=24, val=6, seed=3))
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    with machines(tmp_path, tmp_path / "digits", 4) as made:
        for machine in made:
            (machine.root / "mnt/passwd").write_text(USERS)
            machine.run("mount", "--bind", "/mnt/passwd", "/etc/passwd")
            home = machine.root / "mnt/home"
            shutil.copytree("/etc/skel", home, dirs_exist_ok=True)
            (home / ".ssh").mkdir(mode=0o700)
        *nodes, launcher = made
        for machine in nodes:
            shutil.copy(f"{key}.pub", machine.root / "mnt/home/.ssh/authorized_keys")
            shutil.copy(key, machine.root / "mnt/host_key")
            (machine.root / "mnt/sshd_config").write_text(SERVER)
            assert _SSHD is not None
            machine.run(_SSHD, "-f", "/mnt/sshd_config")
        home = launcher.root / "mnt/home"
        shutil.copy(key, home / ".ssh/detection_cluster")
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("0" * 64)
        yield made


def programs(machine: Machine) -> list[str]:
    """Programs of Ray's that run there; the first process of these machines buries no dead ones."""
    lines = machine.run("ps", "-eo", "stat,args").splitlines()
    alive = [line for line in lines if not line.startswith("Z")]
    return [line for line in alive if "ray::" in line or "/ray/" in line or "ray start" in line]


def test_three_machines_train_and_are_left_as_they_were(reached: list[Machine]) -> None:
    head, second, third, launcher = reached
    text = (ROOT / "clusters/onprem.yaml").read_text()
    for shipped, here in EDITED.items():
        assert shipped in text
        text = text.replace(shipped, here)
    home = launcher.root / "mnt/home"
    (home / "onprem.yaml").write_text(text)
    ray = str(Path(sys.executable).with_name("ray"))

    def in_project(*words: str, timeout: float = 300.0) -> str:
        return launcher.run("sh", "-c", f'cd "{ROOT}" && exec "$@"', "sh", *words, timeout=timeout)

    in_project(ray, "up", "-y", "/mnt/home/onprem.yaml")
    # The head starts the others.
    for machine in (second, third):
        wait_for(lambda machine=machine: any("raylet" in p for p in programs(machine)), 180)
    cli = (sys.executable, "-m", "orchestrator.cli.main")
    address = f"http://{head.address}:8265"
    words = ("experiments/quickstart.yaml", *OVERRIDES, "--address", address)
    in_project(*cli, "submit", *words, timeout=600.0)
    found = json.loads((head.root / "mnt/home/runs/tiny/result.json").read_text())
    assert (found["state"], found["steps"], found["workers"]) == ("done", 8, 3)

    in_project(ray, "down", "-y", "/mnt/home/onprem.yaml")
    assert programs(head) == []
    # Ray's provider of machines given by address stops the head alone.
    for machine in (second, third):
        machine.run("bash", "-ic", "ray stop")
        assert programs(machine) == []
