"""``orchestrator convert weights``, from the command line to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v2

from detectors.weights.files import read_weights
from orchestrator.cli.main import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "mobilenet_v2.pth"
    torch.save(mobilenet_v2(weights=None).state_dict(), path)
    return path


def convert(*arguments: object) -> int:
    return main(["convert", "weights", *map(str, arguments)])


def test_a_classifier_becomes_a_file_to_begin_with(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "own.safetensors"
    assert convert(source, target, "--to", "ssd300_mobilenet_v2") == 0
    *tensors, last = capsys.readouterr().out.splitlines()
    assert last == (
        f"{target}: torchvision_mobilenet_v2: 312 loaded, 0 adapted, 174 missing, 2 left over"
    )
    assert len(tensors) == 312 + 174 + 2
    assert tensors[0].split() == [
        *("loaded", "features.0.0.weight", "32x3x3x3", "->"),
        *("backbone.features_1.0.features.0.weight", "32x3x3x3"),
    ]
    file = read_weights(target)
    assert file.is_native
    assert json.loads(file.metadata["detector"])["variant"] == "ssd300_mobilenet_v2"
    assert json.loads(file.metadata["num_classes"]) is None
    assert len(file.tensors) == 312

    assert convert(source, target, "--to", "ssd300_mobilenet_v2") == 65
    assert "exists already" in capsys.readouterr().err
    assert convert(source, target, "--to", "ssd300_mobilenet_v2", "--overwrite", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["missing"] == 174
    assert {entry["status"] for entry in report["tensors"]} == {"loaded", "missing", "left over"}


@pytest.mark.parametrize(
    ("to", "code", "message"),
    [
        ("ssd300_vgg16", 65, "not one tensor of the file, read as torchvision's mobilenet_v2"),
        ("ssd300_mobilenet", 64, "did you mean 'ssd300_mobilenet_v2'?"),
        ("none.yaml", 64, "experiment file none.yaml does not exist"),
    ],
)
def test_what_does_not_fit_writes_nothing(
    to: str,
    code: int,
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "own.safetensors"
    assert convert(source, target, "--to", to) == code
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "own.safetensors"
    missing = tmp_path / "none.pth"
    assert convert(missing, target, "--to", "ssd300_vgg16") == 65
    assert f"SRC: {missing} cannot be read" in capsys.readouterr().err
    module = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(1, 1), module)
    assert convert(module, target, "--to", "ssd300_vgg16") == 77
    assert "would run code from it" in capsys.readouterr().err
    assert not target.exists()


def test_a_label_map_may_be_a_run_s_or_coco_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"0.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "part.pth")
    arguments = (tmp_path / "part.pth", tmp_path / "own.safetensors", "--to", "ssd300_vgg16")
    names = tmp_path / "names.json"
    names.write_text('["a", "b"]')
    assert convert(*arguments, "--label-map", names) == 65
    assert "neither a run's label_map.json nor COCO annotations" in capsys.readouterr().err
    assert convert(*arguments, "--layout", "vgg16_reducedfc") == 65
    assert "is not vgg16_reducedfc.pth: it has no tensor 28.weight" in capsys.readouterr().err


def test_names_of_a_file_are_no_commands_to_the_terminal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = torch.load(source, weights_only=True)
    torch.save({**tensors, "\x1b]0;owned\x07": torch.zeros(1)}, source)
    assert convert(source, tmp_path / "own.safetensors", "--to", "ssd300_mobilenet_v2") == 0
    out = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07" in out
    assert "\x1b" not in out
