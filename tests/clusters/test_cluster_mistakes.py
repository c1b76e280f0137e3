"""Mistakes in the shipped cluster files, each found with file and line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.cli.main import VERBS
from orchestrator.cluster_files.check import check_files

ROOT = Path(__file__).resolve().parents[2]


class Mistake(NamedTuple):
    """A slip of the pen.

    Attributes:
        file: below ``clusters``.
        old: text that is replaced.
        new: text that replaces it.
        says: pattern of the message.
        nth: which of the places where ``old`` stands, from 0.
        at: text on the line that is to be named; the new text's first line by default.
    """

    file: str
    old: str
    new: str
    says: str
    nth: int = 0
    at: str = ""


ONPREM, AWS, GCP, COMPOSE = "onprem.yaml", "aws.yaml", "gcp.yaml", "compose.yaml"
CLUSTER, JOB, NPU = (
    f"kuberay/{name}.yaml" for name in ("raycluster-gpu", "rayjob-gpu", "rayjob-npu")
)
SKY, TRAIN, SLURM, IMAGE = "skypilot.yaml", "trainjob.yaml", "slurm.sbatch", "docker/Dockerfile.gpu"

MISTAKES = [
    # Keys.
    Mistake(ONPREM, "setup_commands:", "setup_comands:", "unknown key.*'setup_commands'"),
    Mistake(ONPREM, "  ssh_user:", "  ssh_usr:", "unknown key.*'ssh_user'"),
    Mistake(ONPREM, "  worker_ips:", "  worker_ip:", "unknown key.*'worker_ips'"),
    Mistake(ONPREM, "cluster_name: detection-onprem\n", "cluster_name: a\ncluster_name: b\n",
            "duplicate key", at="cluster_name: b"),
    Mistake(AWS, "      InstanceType: m6i", "      InstanceTyp: m6i",
            "unknown key.*'InstanceType'"),
    Mistake(AWS, "VolumeType: gp3", "VolumType: gp3", "unknown key.*'VolumeType'"),
    Mistake(AWS, "MarketType: spot", "MarketType: sopt", "found 'sopt', allowed is 'spot'"),
    Mistake(AWS, "  type: aws", "  type: asw", "no rules for 'asw'.*did you mean 'aws'"),
    Mistake(GCP, "      machineType: n2", "      machinetype: n2", "unknown key.*'machineType'"),
    Mistake(GCP, "diskSizeGb: 200", "diskSizeGB: 200", "unknown key.*'diskSizeGb'"),
    Mistake(CLUSTER, "minReplicas: 2", "minReplica: 2", "unknown key.*'minReplicas'"),
    Mistake(CLUSTER, "mountPath: /shared", "mountpath: /shared", "unknown key.*'mountPath'"),
    Mistake(CLUSTER, "kind: RayCluster", "kind: RayClustre", "did you mean 'RayCluster'"),
    Mistake(CLUSTER, "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1",
            "allowed is 'ray.io/v1'"),
    Mistake(COMPOSE, "    shm_size: 2gb", "    shmsize: 2gb", "unknown key.*'shm_size'"),
    Mistake(COMPOSE, "condition: service_healthy", "condition: service_healty",
            "did you mean 'service_healthy'"),
    Mistake(COMPOSE, "  head:\n", "   head:\n", "this is not YAML|unknown key|did not find",
            at="worker:"),
    Mistake(JOB, "  shutdownAfterJobFinishes", "  shutdownAfterJobFinish",
            "unknown key.*'shutdownAfterJobFinishes'"),
    Mistake(SKY, "num_nodes: 2", "num_node: 2", "unknown key.*'num_nodes'"),
    Mistake(SLURM, "#SBATCH --cpus-per-task", "#SBATCH --cpu-per-task", "--cpus-per-task"),
    # Versions and images.
    Mistake(CLUSTER, 'rayVersion: "2.60.0"', 'rayVersion: "2.52.0"', "pins 2.60.0"),
    Mistake(CLUSTER, "orchestrator:0.1.0-gpu", "orchestrator:0.1.0-cpu", "of the head", nth=1),
    Mistake(JOB, "orchestrator:0.1.0-gpu", "orchestrator:latest", "built last"),
    Mistake(NPU, "orchestrator:0.1.0-npu", "orchestrator:0.2.0-npu", "the project of 0.1.0"),
    Mistake(COMPOSE, "image: postgres:17", "image: postgres", "has no version"),
    Mistake(ONPREM, "&& make install", "&& make install && pip install ray==2.54.0", "ray 2.54.0"),
    Mistake(IMAGE, "BASE=python:3.11-slim", "BASE=python:3.9-slim", "Python 3.9"),
    # Arithmetic.
    Mistake(AWS, "min_workers: 2", "min_workers: 3", "min_workers is 3, max_workers 2"),
    Mistake(AWS, "resources: {CPU: 48, GPU: 4}", "resources: {CPU: 48, GPU: 8}",
            "g5.12xlarge has 4"),
    Mistake(AWS, "resources: {CPU: 8}", "resources: {CPU: 8, memory: 68719476736}", "has 32 GiB"),
    Mistake(AWS, "max_workers: 4", "max_workers: 1", "want 2 at least"),
    Mistake(GCP, "resources: {CPU: 8}", "resources: {CPU: 16}", "n2-standard-8 has 8"),
    Mistake(CLUSTER, "replicas: 2\n", "replicas: 3\n", "allowed are 2 to 2"),
    Mistake(CLUSTER, "minReplicas: 0", "minReplicas: 5", "minReplicas is 5, maxReplicas 2"),
    Mistake(CLUSTER, 'num-gpus: "4"', 'num-gpus: "8"', "num-gpus is 8, the container's limit 4"),
    Mistake(CLUSTER, 'limits: {cpu: "4", memory: 16Gi}', 'limits: {cpu: "4", memory: 8Gi}',
            "16Gi is asked for, the limit is 8Gi", at='requests: {cpu: "4"'),
    Mistake(CLUSTER, 'limits: {cpu: "32", memory: 128Gi, nvidia.com/gpu: "4"}',
            'limits: {cpu: "32", memory: 128Gi}', "asked for without a limit",
            at='requests: {cpu: "32"'),
    Mistake(CLUSTER, "sizeLimit: 48Gi", "sizeLimit: 4Gi", "object store takes 38.4 GiB"),
    Mistake(NPU, "'\"{\\\"NPU\\\": 8}\"'", "'\"{\\\"NPU\\\" 8}\"'", "no JSON"),
    Mistake(NPU, '\\"NPU\\": 8', '\\"NPU\\": 4', "gets 8 NPUs and Ray is told of 4"),
    Mistake(COMPOSE, "shm_size: 2gb", "shm_size: 512mb", "object store takes 1 GiB"),
    Mistake(COMPOSE, "--num-cpus=2 --dashboard", "--num-cpus=4 --dashboard", "the limit 2",
            at="--num-cpus=4"),
    Mistake(TRAIN, "numNodes: 2\n    command", "numNodes: 3\n    command", "numNodes 3",
            at="--min-nodes=2"),
    Mistake(JOB, "replicas: 2\n        minReplicas: 2\n        maxReplicas: 2",
            "replicas: 1\n        minReplicas: 1\n        maxReplicas: 1", "does not fit",
            at="python -m orchestrator.run"),
    # Tokens, secrets, ports.
    Mistake(ONPREM, "RAY_AUTH_MODE=token ray start --address", "ray start --address",
            "without a token"),
    Mistake(ONPREM, "RAY_AUTH_MODE=token RAY_JOB", "RAY_AUTH_MODE=disabled RAY_JOB",
            "without a token"),
    Mistake(ONPREM, "  - chmod 600 ~/.ray/auth_token", "  - chmod 644 ~/.ray/auth_token",
            "readable for everyone"),
    Mistake(CLUSTER, "authOptions: {mode: token}", "authOptions: {mode: disabled}", "write token"),
    Mistake(SLURM, "export RAY_AUTH_MODE=token", "export RAY_AUTH_MOD=token",
            "did you mean RAY_AUTH_MODE", at="export RAY_AUTH_MOD"),
    Mistake(COMPOSE, "      POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password",
            "      POSTGRES_PASSWORD: hunter2", "secret in plain text"),
    Mistake(COMPOSE, "psycopg2://mlflow@", "psycopg2://mlflow:hunter2@", "password stands here"),
    Mistake(CLUSTER, "valueFrom: {secretKeyRef: {name: object-store, key: secret_access_key}}",
            'value: "abcdefgh"', "secret in plain text"),
    Mistake(CLUSTER, "{name: object-store, key: access_key_id}",
            "{name: objectstore, key: access_key_id}", "did you mean 'object-store'"),
    Mistake(COMPOSE, "secrets: [ray_token]", "secrets: [raytoken]", "did you mean 'ray_token'"),
    Mistake(COMPOSE, '"127.0.0.1:8265:8265"', '"8265:8265"', "every network"),
    Mistake(COMPOSE, "--app-name basic-auth --host", "--host", "answers anyone", at="exec mlflow"),
    Mistake(ONPREM, "--dashboard-host=192.168.1.10", "--dashboard-host=0.0.0.0", "every network"),
    Mistake(AWS, "203.0.113.0/24", "0.0.0.0/0", "whole internet"),
    Mistake(JOB, "  podSelector: {matchLabels: {app: detection-gpu-job}}",
            "  podSelector: {matchLabels: {app: detection-gpu-jbo}}", "guards no pod"),
    Mistake(CLUSTER, "app: detection-gpu}\n      spec:", "app: detection-gpus}\n      spec:",
            "leaves 1 kinds", at="podSelector:"),
    Mistake(CLUSTER, "- podSelector: {matchLabels: {app: detection-gpu}}",
            "- ipBlock: {cidr: 0.0.0.0/0}", "everybody is let in"),
    # Commands and addresses.
    Mistake(ONPREM, "make install", "make instal", "did you mean 'make install'"),
    Mistake(ONPREM, "--disable-usage-stats", "--disable-usage-stat", "did you mean --disable"),
    Mistake(JOB, "orchestrator.run experiments", "orchestrator.rnu experiments",
            "orchestrator.run"),
    Mistake(JOB, "retinanet_spinenet49.yaml", "retinanet_spinet49.yaml",
            "did you mean experiments/"),
    Mistake(JOB, "    storage=s3://", "    storge=s3://", "did you mean 'storage'"),
    Mistake(ONPREM, "head_ip: 192.168.1.10", "head_ip: 192.168.1.20", "head_ip is 192.168.1.20",
            at="--node-ip-address"),
    Mistake(ONPREM, "192.168.1.12]", "192.168.1.11]", "given twice"),
    Mistake(ONPREM, "$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6380", "the head listens at"),
    Mistake(COMPOSE, "--address=head:6379\n", "--address=haed:6379\n", "the head is head:6379"),
    Mistake(COMPOSE, "http://mlflow:5000", "http://mlfow:5000", "did you mean 'mlflow'"),
    # Mounts and storage.
    Mistake(CLUSTER, "claimName: detection-shared", "claimName: detection-share",
            "did you mean 'detection-shared'"),
    Mistake(CLUSTER, "- {name: shm, mountPath: /dev/shm}", "- {name: shn, mountPath: /dev/shm}",
            "did you mean 'shm'"),
    Mistake(CLUSTER, "volumeName: detection-shared", "volumeName: detection-storage",
            "did you mean 'detection-shared'"),
    Mistake(NPU, "storage=/shared/runs", "storage=/share/runs", "mounts no storage there"),
    Mistake(COMPOSE, 'volumes: ["artifacts:', 'volumes: ["artefacts:', "did you mean 'artifacts'"),
    Mistake(ONPREM, "  - /.git\n", "  - .git\n", "not anchored"),
    Mistake(IMAGE, "COPY native native", "COPY natives native", "natives does not exist"),
]  # fmt: skip


def edited(mistake: Mistake) -> tuple[str, int]:
    """The text with the mistake, and the line that has to be named."""
    text = (ROOT / "clusters" / mistake.file).read_text()
    # Comments tell how files are used, and are no place for these mistakes.
    body = re.search(r"(?m)^(?!#(?!SBATCH))", text)
    start = body.start() if body else 0
    for _ in range(mistake.nth + 1):
        start = text.index(mistake.old, start) + 1
    start -= 1
    changed = text[:start] + mistake.new + text[start + len(mistake.old) :]
    if mistake.at:
        position = changed.index(mistake.at, body.start() if body else 0)
    else:
        position = start + len(mistake.new) - len(mistake.new.lstrip())
    return changed, changed[:position].count("\n") + 1


def test_there_are_sixty_and_all_differ() -> None:
    assert len({(each.file, each.old, each.new, each.nth) for each in MISTAKES}) >= 60


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda each: f"{each.file}: {each.new[:40]!r}")
def test_a_mistake_is_found_with_its_line(mistake: Mistake, tmp_path: Path) -> None:
    text, line = edited(mistake)
    # Files that the edited one names stand beside it, as they do in the project.
    for name in ("setup.cfg", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in (
        "experiments", "orchestrator", "detectors", "native", "setup.py", "pyproject.toml",
        "README.md", "LICENSE",
    ):  # fmt: skip
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "clusters", tmp_path / "clusters")
    path = tmp_path / "clusters" / mistake.file
    path.write_text(text)
    (report,) = check_files([path], verbs=frozenset(VERBS))
    found = [(each.place.line, each.message) for each in report.problems]
    assert any(number == line and re.search(mistake.says, message) for number, message in found), (
        line,
        [str(problem) for problem in report.problems],
    )
    assert all(problem.place.source == str(path) for problem in report.problems)
