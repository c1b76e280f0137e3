"""The shipped cluster files have no problem, fit every experiment, and agree with the pages."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.cli.main import VERBS, main
from orchestrator.cluster_files.check import FileReport, check_files
from orchestrator.cluster_files.fit import misfit
from orchestrator.cluster_files.project import Project
from orchestrator.cluster_files.sheet import Nodes
from orchestrator.cluster_files.shell import commands
from orchestrator.config.resolve import load_experiment
from tests.support.cluster_mistakes import report_of as edited_report

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = [ROOT / "clusters" / f"{name}.yaml" for name in ("local", "onprem", "aws", "gcp")]
SHIPPED = sorted(
    [
        *(ROOT / "clusters").glob("*.yaml"),
        *(ROOT / "clusters" / "kuberay").glob("*.yaml"),
        *(ROOT / "clusters" / "docker").glob("Dockerfile*"),
        ROOT / "clusters" / "slurm.sbatch",
    ]
)
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))


@functools.cache
def report_of(path: Path) -> FileReport:
    (report,) = check_files([path], experiments=EXPERIMENTS, verbs=frozenset(VERBS))
    return report


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_problem_in(path: Path) -> None:
    (report,) = check_files([path], verbs=frozenset(VERBS))
    assert [str(problem) for problem in report.problems] == []
    assert report.kinds


def test_all_kinds_are_shipped() -> None:
    kinds = {kind for path in SHIPPED for kind in report_of(path).kinds}
    assert kinds >= {
        "LocalLauncher",
        "AwsLauncher",
        "GcpLauncher",
        "Compose",
        "RayCluster",
        "RayJob",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "TrainJob",
        "SkyTask",
        "sbatch",
        "Dockerfile",
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_fits_one(experiment: Path) -> None:
    fitting = [
        path.name for path in SHIPPED if report_of(path).fits.get(str(experiment), "no") is None
    ]
    assert fitting, experiment.name


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_ray_takes_the_launcher_files(path: Path) -> None:
    loaded = yaml.safe_load(path.read_text())
    validate_config(prepare_config(copy.deepcopy(loaded)))


def test_the_verb_names_file_and_line_and_ends_with_64(tmp_path: Path, capsys: Any) -> None:
    text = (ROOT / "clusters/onprem.yaml").read_text().replace("auth:", "auht:", 1)
    path = tmp_path / "edited.yaml"
    path.write_text(text)
    assert main(["check-cluster", str(path), "--json"]) == 64
    line = text.splitlines().index("auht:") + 1
    printed = capsys.readouterr()
    assert f"{path}:{line} auht: unknown key" in printed.err
    report = json.loads(printed.out)
    assert report["problems"] == len(report["files"][0]["problems"]) > 0
    assert {"line": line, "key": "auht"}.items() <= report["files"][0]["problems"][-1].items()


CLUSTER = "kuberay/raycluster-gpu.yaml"
SLURM, IMAGE = "slurm.sbatch", "docker/Dockerfile.gpu"
JOB, SKY, AWS, GCP = "kuberay/rayjob-gpu.yaml", "skypilot.yaml", "aws.yaml", "gcp.yaml"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (CLUSTER, "\n---\n", "\n---\n# nothing\n---\n"),
        (SLURM, "set -u", 'echo "node # 1 is up"\ncat <<END\nit\'s no command\nEND\nset -u'),
        (SLURM, "#SBATCH --requeue", "#SBATCH --requeue --nodelist=n[1-8] --mem-bind=local # both"),
        (SLURM, "#SBATCH --nodes=2", "#SBATCH -N 2"),
        (SLURM, "#SBATCH --nodes=2", "#SBATCH -N2 --exclusive"),
        (SLURM, "#SBATCH --nodes=2", "#SBATCH --nodes=2-4"),
        (SLURM, "#SBATCH --cpus-per-task=32", "#SBATCH -c 32 --comment 'two words'"),
        (SLURM, "#SBATCH --gpus-per-node=4", "#SBATCH --gpus-per-node=a100:4"),
        (SLURM, "#SBATCH --gpus-per-node=4", "#SBATCH --gres=shard:1,gpu:a100:4"),
        (SLURM, "#SBATCH --gpus-per-node=4", "#SBATCH -G 8"),
        (SLURM, '--nodelist="$head"', '-w "$head" --exact'),
        (SLURM, "export RAY_AUTH_MODE=token", "set -a\nRAY_AUTH_MODE=token\nset +a\nexport A=1"),
        (JOB, "scratch=/shared/scratch", "scratch=/tmp/scratch"),
        (GCP, "/cloud-platform]", "/devstorage.read_write]"),
        (CLUSTER, "policyTypes: [Ingress]", "policyTypes: [Ingress, Egress]\n  egress:\n    - {}"),
        (AWS, "$RAY_HEAD_IP:6379", "${RAY_HEAD_IP}:6379"),
        (SKY, "{recover_on_exit_codes: [75]}", "EAGER_NEXT_REGION"),
        (SKY, "{recover_on_exit_codes: [75]}", "{strategy: FAILOVER, max_restarts_on_errors: 3}"),
        (IMAGE, "RUN apt-get", "run apt-get"),
        (IMAGE, "FROM ${BASE}", "from --platform=linux/amd64 ${BASE} as base"),
        (IMAGE, "USER 1000", "user\t1000"),
        (IMAGE, "FROM ${BASE}", "FROM ${BASE} AS a\nUSER root\nFROM scratch AS b\nFROM a"),
        (IMAGE, "USER 1000", "USER 1000\nFROM ${BASE} AS last\nUSER 1000\nFROM last"),
        (IMAGE, "ARG PIP_INDEX_URL=", "ARG PIP_INDEX_URL=https://$NAME:$TOKEN@pypi.example"),
        (IMAGE, "USER 1000", "RUN <<EOF\n# it's\n\nmake install\nEOF\nUSER 1000"),
        (IMAGE, "USER 1000", "RUN <<EOF\n#!/usr/bin/python3\nit = 'a'\nEOF\nUSER 1000"),
        (IMAGE, "USER 1000", 'COPY <<-"X" /etc/words\n\tit\'s\n\tX\nUSER 1000'),
        (IMAGE, "COPY . .", 'COPY --chown=1000 [".", "."]'),
        (IMAGE, "COPY . .", "COPY . . \\  \n\n# in between\n  ."),
    ],
)
def test_what_the_tools_take_is_no_problem(file: str, old: str, new: str, tmp_path: Path) -> None:
    text = (ROOT / "clusters" / file).read_text() + "\n---\n" * (file == CLUSTER)
    assert old in text
    path = tmp_path / Path(file).name
    path.write_text(text.replace(old, new, 1))
    (report,) = check_files([path], verbs=frozenset(VERBS))
    (shipped,) = check_files([ROOT / "clusters" / file], verbs=frozenset(VERBS))
    assert [str(each) for each in report.problems] == []
    assert [each.message for each in report.notes] == [each.message for each in shipped.notes]
    assert report.nodes == shipped.nodes


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (SLURM, "#SBATCH --nodes=2", "#SBATCH -N 2 -N 3", "--nodes is given twice"),
        (SLURM, "#SBATCH --nodes=2", "#SBATCH -N '2", "close the quotes"),
        (SLURM, "#SBATCH --gpus-per-node=4", "#SBATCH --gres=gpu:2", "a node gets 2, --num-gpus"),
        (SLURM, "#SBATCH --requeue", "#SBATCH --requeu", "did you mean --requeue"),
        (IMAGE, "RUN useradd", "rnu useradd", "no instruction RNU; did you mean RUN"),
        (IMAGE, "USER 1000", "user root", "runs as root"),
        (IMAGE, "USER 1000", "USER 1000\nFROM ${BASE} AS last", "runs as root"),
        (IMAGE, "USER 1000", "run <<EOF\nmake instal\nEOF\nUSER 1000", "no target 'instal'"),
        (IMAGE, "FROM ${BASE}", "FROM", "FROM says nothing"),
    ],
)
def test_what_the_tools_refuse_is_a_problem_in_every_spelling(
    file: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / Path(file).name
    text = (ROOT / "clusters" / file).read_text()
    line = text[: text.index(old)].count("\n") + 1
    path.write_text(text.replace(old, new, 1))
    (report,) = check_files([path], verbs=frozenset(VERBS))
    (message,) = [each.message for each in report.problems if abs(each.place.line - line) <= 1]
    assert says in message


@pytest.mark.parametrize("text", [None, "extends: quickstart.yaml\n", "name: x\ntrain: {}\n"])
def test_an_experiment_is_told_from_a_cluster_file(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text or (ROOT / "experiments/quickstart.yaml").read_text())
    (report,) = check_files([path])
    (problem,) = report.problems
    assert problem.message == f"this is an experiment; give it with --experiment {path}"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        (SLURM, "retinanet_spinenet49", "x" * 300, "there is no experiment"),
        (SLURM, "orchestrator.run", "orchestrator." + "x" * 300, "there is no module"),
        (IMAGE, "COPY native", f"COPY {'x' * 300}", "does not exist"),
        (IMAGE, "ARG PIP_INDEX_URL=", "ARG $(=1\nARG PIP_INDEX_URL=", ""),
        ("compose.yaml", "context: ..", f"context: {'x' * 300}", "there is no folder"),
        ("compose.yaml", "Dockerfile.cpu", "x" * 300, "there is no file"),
        ("onprem.yaml", "orchestrator: .", f"orchestrator: ./{'x' * 300}", "does not exist"),
    ],
)
def test_names_that_no_system_takes_end_nothing(
    file: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    report = edited_report((ROOT / "clusters" / file).read_text().replace(old, new), file, tmp_path)
    assert any(says in problem.message for problem in report.problems) or not says


@pytest.mark.parametrize("name", ["detection-orchestrator", "r.example:5000/ray", "python"])
def test_a_digest_alone_is_a_version(name: str) -> None:
    assert Project(ROOT).image_problem(f"{name}@sha256:{'0' * 64}") is None
    assert "has no version" in (Project(ROOT).image_problem(name) or "")


def test_a_port_that_ray_opens_itself_is_noted(capsys: Any) -> None:
    file = ROOT / "clusters/aws.yaml"
    assert main(["check-cluster", str(file)]) == 0
    line = file.read_text().splitlines().index("  security_group:") + 1
    said = capsys.readouterr().out
    assert f"note: {file}:{line} provider.security_group: beside these rules Ray lets" in said
    assert "the whole internet knock at port 22" in said


def test_an_option_of_a_plugin_is_noted(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "job.sbatch"
    text = (ROOT / "clusters" / SLURM).read_text()
    path.write_text(text.replace("--requeue\n", "--requeue --container-mounts=/a:/a\n", 1))
    assert main(["check-cluster", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    said = "the option --container-mounts of sbatch is not known here and was passed over"
    line = text[: text.index("#SBATCH --requeue")].count("\n") + 1
    assert f"note: {path}:{line}:1: {said}" in printed.err
    (file,) = json.loads(printed.out)["files"]
    assert [(each["line"], each["message"]) for each in file["notes"]] == [(line, said)]


_NO_UTF8 = "byte 0xe9, which is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize("name", ["job.sbatch", "Dockerfile", "cluster.yaml"])
def test_a_file_that_is_not_utf8_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes("# Häuser\n# caf\n".encode().replace(b"caf", b"caf\xe9"))
    (report,) = check_files([path])
    assert [str(each) for each in report.problems] == [f"{path}:2:6: found {_NO_UTF8}"]


def test_a_dockerfile_of_compose_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_bytes(b"FROM scratch\n# caf\xe9\n")
    path = tmp_path / "compose.yaml"
    path.write_text("services:\n  head:\n    build: {context: ., args: {A: b}}\n")
    (report,) = check_files([path])
    assert f"{tmp_path / 'Dockerfile'}:2:6: found {_NO_UTF8}" in report.problems[-1].message


def test_the_verb_says_nothing_against_the_shipped_files(capsys: Any) -> None:
    file = str(ROOT / "clusters/kuberay/raycluster-gpu.yaml")
    experiment = str(ROOT / "experiments/retinanet_spinenet49.yaml")
    assert main(["check-cluster", file, "--experiment", experiment]) == 0
    assert f"{experiment}: fits" in capsys.readouterr().out
    npu = str(ROOT / "experiments/m2det_npu.yaml")
    assert main(["check-cluster", file, "--experiment", npu]) == 64
    assert "8 workers x 1 CPU and 1 NPU = 8 NPU, and there are 0" in capsys.readouterr().out
    assert main(["check-cluster", file + "x"]) == 64


@pytest.mark.parametrize(
    ("workers", "file", "code", "said"),
    [
        ("1", "kuberay/raycluster-gpu.yaml", 0, "fits"),
        ("1", "onprem.yaml", 0, "not known: the file does not say what its nodes have"),
        ("1", "docker/Dockerfile.gpu", 0, "not known: the file describes no nodes"),
        ("8000", "kuberay/raycluster-gpu.yaml", 64, "= 8001 CPU, and there are 64"),
    ],
)
def test_an_experiment_is_placed_wherever_its_data_is(
    workers: str, file: str, code: int, said: str, tmp_path: Path, capsys: Any
) -> None:
    far = tmp_path / "far.yaml"
    far.write_text(
        "name: far\nseed: 1\n"
        "detector: {name: ssd, variant: ssd300_mobilenet_v2}\n"
        "data: {root: /nowhere/on/this/machine}\n"
        "train: {epochs: 1, batch_size: 8000, optimizer: {name: sgd, lr: 0.01}}\n"
        f"cluster: {{workers: {workers}, accelerator: gpu}}\n"
        "storage: runs\n"
    )
    words = ["check-cluster", str(ROOT / "clusters" / file), "--experiment", str(far)]
    assert main(words) == code
    assert said in capsys.readouterr().out.partition(f"  {far}: ")[2]


@pytest.mark.parametrize(
    ("cpus", "fits"),
    # Two nodes of 2 CPUs have 4, and hold no worker of 3; three of 1 leave one CPU for reading,
    # four leave none.
    [("1 3", False), ("2 1", True), ("3 1", True), ("4 1", False), ("2 2", False), ("1 2", True)],
)
def test_a_worker_is_placed_on_one_node(cpus: str, fits: bool) -> None:
    workers, each = cpus.split()
    experiment = load_experiment(
        ROOT / "experiments/quickstart.yaml",
        [
            f"cluster.workers={workers}",
            f"cluster.cpus_per_worker={each}",
            "train.batch_size=12",
        ],
    ).experiment
    assert (misfit(experiment, [Nodes("node", 2, {"CPU": 2.0})]) is None) == fits


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ("cluster.workers=8", True),
        ("cluster.workers=9", False),
        ("cluster.workers=8 cluster.placement=strict_spread", False),
        ("cluster.workers=4 cluster.placement=strict_pack", True),
        ("cluster.workers=5 cluster.placement=strict_pack", False),
        ("cluster.workers=2 cluster.accelerator_type=A10G", True),
        ("cluster.workers=2 cluster.accelerator_type=H100", False),
        ("cluster.workers=2 cluster.labels={market-type: spot}", False),
    ],
)
def test_two_machines_of_four_devices(overrides: str, fits: bool) -> None:
    experiment = load_experiment(
        ROOT / "experiments/retinanet_spinenet49.yaml",
        [*re.split(" (?=cluster)", overrides), "train.batch_size=360", "train.accumulate=1"],
    ).experiment
    nodes = report_of(ROOT / "clusters/aws.yaml").nodes
    assert (misfit(experiment, nodes) is None) == fits


def commands_of(page: Path) -> list[str]:
    """The lines of the shell blocks of a page, with continuations joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def starts_in(text: str) -> list[dict[str, str]]:
    flags = frozenset({"--head", "--disable-usage-stats", "--block"})
    return [
        {**each.options(flags), "mode": each.env.get("RAY_AUTH_MODE", "")}
        for each in commands(text)
        if each.words[:2] == ("ray", "start")
    ]


def test_the_page_starts_ray_exactly_as_the_local_file_does() -> None:
    local = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
    (written,) = starts_in(local["head_start_ray_commands"][-1])
    lines = commands_of(ROOT / "clusters/README.md")
    starts = [start for line in lines for start in starts_in(line)]
    assert starts
    assert all(start == written for start in starts)


@pytest.mark.parametrize("page", ["clusters/README.md", "docs/clusters.md"])
def test_a_page_names_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(
        re.findall(r"\b(?:experiments|clusters|docs)/[\w./-]+\.(?:yaml|md|sh|sbatch)", text)
    )
    assert any(name.startswith("clusters/") for name in named)
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_no_registry_is_written_into_the_images() -> None:
    for path in SHIPPED:
        for image in re.findall(r"(?:image:|ARG BASE=)\s*([\w./:-]+)", path.read_text()):
            assert "." not in image.partition("/")[0] or "/" not in image, (path.name, image)
