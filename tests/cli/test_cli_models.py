"""``orchestrator models``: the table, the comparison and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from detectors import counted, published
from detectors.figures import Published
from detectors.measure import measure
from detectors.registry import variant_config, variants
from orchestrator.cli.main import main


def test_the_table_names_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["variant", "input", "parameters", "multiply-adds", "priors"]
    assert [line.split()[0] for line in lines[:-1]] == list(variants())
    (row,) = (line for line in lines if line.startswith("ssd300_mobilenet_v2"))
    assert row.split()[1:] == ["300", "x", "300", "4,393,461", "0.75", "G", "1,917"]


@pytest.mark.parametrize("variant", counted.own_variants())
def test_figures_in_the_file_are_those_of_the_networks(variant: str) -> None:
    rows = {row["variant"]: row for row in json.loads(counted.FILE.read_bytes())}
    assert list(rows) == counted.own_variants(), "python -m detectors.counted writes the file"
    built = measure(variant_config(variant), num_classes=counted.CLASSES)
    assert rows[variant]["figures"] == built._asdict(), "python -m detectors.counted writes it"
    assert counted.count(variant, num_classes=counted.CLASSES) == built


def test_other_numbers_of_classes_are_counted_when_they_are_asked_for() -> None:
    config = variant_config("ssd300_mobilenet_v2")
    for classes in (3, 81):
        built = measure(config, num_classes=classes)
        assert counted.count("ssd300_mobilenet_v2", num_classes=classes) == built


def test_the_table_does_not_wait_for_torch() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from orchestrator.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['models']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "ssd300_vgg16", "--json", "--classes", "20"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["variant"] == "ssd300_vgg16"
    assert (row["parameters"], row["priors"], row["classes"]) == (26_285_486, 8732, 20)
    assert row["multiply_adds"] > 30e9


def test_the_check_prints_both_values_and_exits_with_1_where_they_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models", "--check", "ssd300_mobilenet_v2"]) == 0
    shown = capsys.readouterr().out
    (line,) = (row for row in shown.splitlines() if " parameters " in row)
    assert line.split()[4:7] == ["4,393,461", "4,393,461", "same"]
    assert "5 figures of 1 networks, 0 of them differ" in shown

    networks = published.published_networks("ssd")
    (network,) = (n for n in networks if n.variant == "ssd300_mobilenet_v2")
    first, *others = network.figures
    wrong = (first._replace(value=34e6), *others)
    fake = Published(network.variant, network.num_classes, wrong)
    monkeypatch.setattr("detectors.ssd.published.PUBLISHED", (fake,))
    assert main(["models", "--check", network.variant]) == 1
    (line,) = (row for row in capsys.readouterr().out.splitlines() if "DIFFERS" in row)
    assert "34,000,000" in line
    assert "4,393,461" in line
    assert main(["models", "--check", "--json", network.variant]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["agrees"] for row in rows] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "ssd300_vgg"], "no variant 'ssd300_vgg'; allowed are"),
        (["models", "--classes", "0"], "--classes: found 0, allowed is a whole number >= 1"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    assert message in capsys.readouterr().err
