"""Commands cut into words, quantities of Kubernetes and Docker, machines by their names."""

from __future__ import annotations

import pytest

from orchestrator.cluster_files.instances import Instance, ec2, gce
from orchestrator.cluster_files.quantities import QuantityError, amount, compose_bytes
from orchestrator.cluster_files.shell import ShellError, commands

GIB = 2**30


def words(text: str) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    return [(each.words, dict(each.env)) for each in commands(text)]


def test_a_text_is_cut_as_a_shell_cuts_it() -> None:
    text = """\
ulimit -n 65536; # it's a comment
A=1 B='x y' ray start --head \\
  --port=6379 > log 2>&1 && make install || exit 1
export C=2 D="$(cat file)"
bash -lc "ray stop; ray start --address=$H:1"
"""
    assert words(text) == [
        (("ulimit", "-n", "65536"), {}),
        (("ray", "start", "--head", "--port=6379"), {"A": "1", "B": "x y"}),
        (("make", "install"), {}),
        (("exit", "1"), {}),
        (("ray", "stop"), {"C": "2", "D": "$(cat file)"}),
        (("ray", "start", "--address=$H:1"), {"C": "2", "D": "$(cat file)"}),
    ]


def test_a_command_sees_what_is_exported() -> None:
    text = "A=1\ndeclare -x B=2 C\nC=3 D=4 ray stop --temp-dir=$A\nC=5\nset -a\nE=6\nray stop"
    first, second = (each for each in commands(text) if each.name == "ray")
    assert first.env == {"B": "2", "C": "3", "D": "4"}
    assert first.variables == {"A": "1", "B": "2"}
    assert second.env == {"B": "2", "C": "5", "E": "6"}
    assert second.variables == {"A": "1", "B": "2", "C": "5", "E": "6"}
    (inner,) = commands("A=1\nB=2 sh -c 'ray stop' name", {"C": "3"})
    assert inner.env == {"B": "2", "C": "3"}


@pytest.mark.parametrize(
    "launcher",
    [
        "srun",
        "srun --nodes=1 --ntasks=1",
        'srun -N 1 -n1 -w "$head" -u',
        "srun --nodelist node-1 --cpus-per-task 32 --exact --label",
        "timeout -k 5 30m",
        "timeout --preserve-status 30",
        "tini -g --",
    ],
)
def test_a_launcher_starts_what_is_behind_its_options(launcher: str) -> None:
    (command,) = commands(f"{launcher} ray start --head")
    assert command.words == ("ray", "start", "--head")
    assert " ".join(command.launcher) == launcher.replace('"', "")


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ('echo "node # 1 is up"', [("echo", "node # 1 is up")]),
        ("echo 'a # b' # it's\nls", [("echo", "a # b"), ("ls",)]),
        ("echo a#b $# \\# c;# d", [("echo", "a#b", "$#", "#", "c")]),
        ('echo "a\\"# b"', [("echo", 'a"# b')]),
        ("cat <<EOF > x && ls # it's\nit's # no command\nEOF\npwd", [("cat",), ("ls",), ("pwd",)]),
        ("cat <<-'E'\n\tray stop\n\tE\ncat <<< word", [("cat",), ("cat",)]),
        ("cat <<A\nA\ncat <<B\nA\nB", [("cat",), ("cat",)]),
        ("cat <<A\nx\nA\nls\ncat <<A\ny\nA", [("cat",), ("ls",), ("cat",)]),
        ("echo $((1 << 3))", None),
    ],
)
def test_comments_and_documents_are_no_commands(
    text: str, cut: list[tuple[str, ...]] | None
) -> None:
    found = [each.words for each in commands(text)]
    assert cut is None or found == cut


def test_words_before_a_command_leave_it_what_it_is() -> None:
    assert words("exec sudo A=1 ray stop") == [(("ray", "stop"), {"A": "1"})]
    assert words("srun --nodes=1 --ntasks=1 ray start --block")[0][0][:2] == ("ray", "start")
    assert words("until ray health-check; do sleep 5; done")[0][0] == ("ray", "health-check")
    with pytest.raises(ShellError, match="quotation"):
        list(commands("echo 'open"))


def test_options_take_values_in_both_forms() -> None:
    (command,) = commands("ray start --head --port 1 --num-cpus=2 -- --not-mine")
    assert command.options(frozenset({"--head"})) == {
        "--head": "",
        "--port": "1",
        "--num-cpus": "2",
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", 0.5),
        ("8Gi", 8 * GIB),
        ("1k", 1000),
        (4, 4),
        ("1.5G", 1.5e9),
        ("2Ti", 2048 * GIB),
        (".5", 0.5),
        ("2.", 2),
        ("1e3", 1000),
    ],
)
def test_quantities_of_kubernetes(text: str | int, number: float) -> None:
    assert amount(text) == number


@pytest.mark.parametrize("text", ["8GiB", "8gi", "8 Gi", "one", "", "-1", ".", "1e999"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(QuantityError):
        amount(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8gb", 8 * GIB),
        ("8g", 8 * GIB),
        ("512m", GIB / 2),
        ("64b", 64),
        ("100", 100),
        ("1KB", 1024),
    ],
)
def test_sizes_of_docker(text: str, number: float) -> None:
    assert compose_bytes(text) == number


# From the vendors' pages: vCPUs, memory, devices.
@pytest.mark.parametrize(
    ("machine", "figures"),
    [
        (ec2("m6i.2xlarge"), Instance(8, 32 * GIB)),
        (ec2("g5.12xlarge"), Instance(48, 192 * GIB, 4)),
        (ec2("g4dn.xlarge"), Instance(4, 16 * GIB, 1)),
        (ec2("p4d.24xlarge"), Instance(96, 1152 * GIB, 8)),
        (ec2("c6i.4xlarge"), Instance(16, 32 * GIB)),
        (gce("n2-standard-8"), Instance(8, 32 * GIB)),
        (gce("n1-standard-4"), Instance(4, 15 * GIB)),
        (gce("g2-standard-48"), Instance(48, 192 * GIB, 4)),
        (gce("a2-highgpu-8g"), Instance(96, 680 * GIB, 8)),
        (ec2("m6i.2xlrage"), None),
        (gce("n2-standrad-8"), None),
    ],
)
def test_machines(machine: Instance | None, figures: Instance | None) -> None:
    assert machine == figures
