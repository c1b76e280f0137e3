"""Any detector on any backbone that fits, and packages that bring either."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from detectors.backbones import make_backbone
from detectors.backbones.config import ResNetConfig, backbones, check_fit
from detectors.config import DetectorConfig
from detectors.plugins import offered
from detectors.registry import DETECTORS, build_detector, variant_config
from detectors.structures import Targets

SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"width": 0.25},
    "resnet": {"width": 0.125},
    "spinenet": {"width": 0.0625, "arch": "49S"},
    "vgg16": {"width": 0.0625},
    "tiny_convs": {"channels": 4},
}
SMALL_DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet_spinenet49": {"input_size": (128, 256), "width": 0.0625, "head_convs": 1},
    "faster_rcnn_torchvision": {"input_size": (128, 256), "width": 0.0625},
    "m2det512_vgg16": {"width": 0.0625, "levels": 2},
}


@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_a_backbone_hands_out_what_it_says(name: str) -> None:
    backbone = make_backbone(name, **SMALL_BACKBONES[name])
    config = backbones().classes[name]
    assert backbone.strides == config.strides
    maps = backbone(torch.rand(1, 3, 128, 256))
    shapes = [tuple(x.shape[1:]) for x in maps]
    assert shapes == [
        (channels, 128 // stride, 256 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
@pytest.mark.parametrize("variant", SMALL_DETECTORS)
def test_a_detector_takes_any_backbone_that_fits(variant: str, backbone: str) -> None:
    fields = {**SMALL_DETECTORS[variant], "backbone": {"name": backbone}}
    fields["backbone"] |= SMALL_BACKBONES[backbone]
    config = variant_config(variant, **fields)
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    assert config.backbone is not None  # type: ignore[attr-defined]
    assert config.title.startswith(f"{variant} on ")
    model = build_detector(config, num_classes=3)
    height, width = model.input_size
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    boxes = torch.tensor([[[8.0, 8, 40, 50], [60, 10, 120, 100]]]).expand(2, -1, -1)
    labels = torch.tensor([[0, 2], [1, 1]])
    targets = Targets(boxes, labels, torch.ones(2, 2, dtype=torch.bool))
    torch.manual_seed(0)
    losses = model.train().loss(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    first = next(model.parameters())
    assert first.grad is not None
    assert first.grad.isfinite().all()
    assert first.grad.any()
    with torch.no_grad():
        raw = model.eval()(images)
        assert model.decode(raw).scores.isfinite().all()
    # The anchors lie on the cells of the maps: raw outputs have a row for each.
    priors = model.prior_boxes()
    assert priors is not None
    assert raw.get("objectness", raw["loc"]).shape[1] == len(priors)


def test_key_names_of_a_pyramid_are_torchvisions() -> None:
    config = variant_config(
        "retinanet_spinenet49", input_size=(128, 128), backbone={"name": "resnet", "width": 0.125}
    )
    names = build_detector(config, num_classes=2).state_dict().keys()
    assert {"backbone.body.layer3.0.conv1.weight", "backbone.fpn.inner_blocks.2.0.weight"} <= names
    # C3, C4 and C5 enter the pyramid; P6 and P7 are convolutions.
    assert "backbone.fpn.inner_blocks.3.0.weight" not in names
    assert "backbone.fpn.extra_blocks.1.weight" in names


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        (
            "m2det320_vgg16",
            {"backbone": {"name": "spinenet"}},
            "spinenet takes sizes that are multiples of 128, found 320 x 320",
        ),
        (
            "faster_rcnn_torchvision",
            {"depth": 101, "backbone": {"name": "vgg16"}},
            "'depth' belongs to the variant's own backbone",
        ),
        (
            "retinanet_spinenet49",
            {"backbone": {"name": "vgg19"}},
            "backbone\n.*'vgg19'.*'mobilenet_v2', 'resnet', 'spinenet', 'vgg16'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(variant: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        variant_config(variant, **fields)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_a_missing_map_is_refused_with_those_that_fit() -> None:
    detector = variant_config("m2det320_vgg16")
    message = "stride 8 and 64; resnet hands out 4, 8, 16 and 32; allowed are spinenet"
    with pytest.raises(ValueError, match=message):
        check_fit(detector, ResNetConfig(), strides=(8, 64), size=(320, 320), replaced=())


def test_a_package_of_one_file_is_a_full_citizen() -> None:
    assert DETECTORS["tiny_fcos"].config.__module__ == "tiny_fcos"
    assert backbones().classes["tiny_convs"].__module__ == "tiny_fcos"


BROKEN = {
    "gone": ("[orchestrator.detectors]\ngone = no_such_module:X\n", "cannot be loaded: ModuleNot"),
    "plain": ("[orchestrator.detectors]\nplain = brought:Plain\n", "is no DetectorConfig"),
    "named": ("[orchestrator.detectors]\nnamed = brought:Other\n", r"must be Literal\['named'\]"),
    "ssd": ("[orchestrator.detectors]\nssd = brought:Second\n", "the name 'ssd' is taken"),
    "bare": ("[orchestrator.detectors]\nbare = brought:Bare\n", "Bare has no builder"),
    "script": ("[orchestrator.detectors]\nscript = script:X\n", "cannot be loaded: SystemExit: 3"),
}

_BROUGHT = """
from typing import Literal
from detectors.config import DetectorConfig
class Plain: ...
class Other(DetectorConfig):
    builder = "x:y"
    name: Literal["other"] = "other"
class Second(DetectorConfig):
    builder = "x:y"
    name: Literal["ssd"] = "ssd"
class Bare(DetectorConfig):
    name: Literal["bare"] = "bare"
class Twice(DetectorConfig):
    builder = "x:y"
    name: Literal["twice"] = "twice"
class Lost(DetectorConfig):
    builder = "brought:Nowhere"
    name: Literal["lost"] = "lost"
"""


def install(folder: Path, entry_points: str, *, package: str = "brought") -> None:
    info = folder / f"{package}-2.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / "brought.py").write_text(_BROUGHT)
    (folder / "script.py").write_text("import sys\nsys.exit(3)\n")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named_with_its_entry_point(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_points, message = BROKEN[name]
    install(tmp_path, entry_points)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"ssd": DETECTORS["ssd"].config}
    found = offered("orchestrator.detectors", DetectorConfig, own)
    assert set(found.classes) == {"ssd", "tiny_fcos"}
    text = str(found.broken[name])
    assert re.search(message, text)
    assert f"entry point '{name} = " in text
    assert "brought 2.1, group orchestrator.detectors" in text


def test_a_broken_package_stops_only_those_who_ask_for_it(tmp_path: Path) -> None:
    """In a process of its own: what is installed is looked up once."""
    install(tmp_path, "[orchestrator.detectors]\ngone = no_such_module:X\n"
            "[orchestrator.backbones]\nlost = no_such_module:Y\n")  # fmt: skip
    code = """
from pydantic import TypeAdapter, ValidationError
from detectors.registry import AnyDetectorConfig, broken_detectors, variants
any_detector = TypeAdapter(AnyDetectorConfig)
assert any_detector.validate_python({"name": "ssd"}).name == "ssd"
assert list(broken_detectors()) == ["gone"] and "gone" not in variants()
for tree in ({"name": "gone"}, {"name": "m2det", "backbone": {"name": "lost"}}):
    try:
        any_detector.validate_python(tree)
    except ValidationError as error:
        print(error.errors()[0]["msg"])
"""
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "entry point 'gone = no_such_module:X' of brought 2.1" in first
    assert "entry point 'lost = no_such_module:Y' of brought 2.1" in second


def run_with(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what is installed is looked up once."""
    path = f"{folder}:{Path(__file__).parents[2]}"
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_name_that_is_taken_stops_nobody(tmp_path: Path) -> None:
    offers = (
        "[orchestrator.detectors]\nssd = brought:Second\ntwice = brought:Twice\n"
        "[orchestrator.backbones]\nresnet = no_such_module:Y\n"
    )
    install(tmp_path, offers)
    install(tmp_path, "[orchestrator.detectors]\ntwice = brought:Twice\n", package="also")
    code = """
from pydantic import TypeAdapter, ValidationError
from detectors.backbones.config import backbone_config
from detectors.registry import AnyDetectorConfig, broken_detectors
any_detector = TypeAdapter(AnyDetectorConfig)
for name in ("ssd", "m2det"):
    assert any_detector.validate_python({"name": name}).name == name
assert type(any_detector.validate_python({"name": "ssd"})).__module__ == "detectors.ssd.config"
assert backbone_config("resnet").name == "resnet"
assert list(broken_detectors()) == ["ssd", "twice"]
try:
    any_detector.validate_python({"name": "twice"})
except ValidationError as error:
    print(error.errors()[0]["msg"])
"""
    done = run_with(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert "the name 'twice' is taken" in done.stdout


def test_a_builder_that_is_not_there_is_a_mistake_of_its_package(tmp_path: Path) -> None:
    install(tmp_path, "[orchestrator.detectors]\nlost = brought:Lost\n")
    code = """
from detectors.registry import build_detector, variant_config
from orchestrator.cli._shared.exit import run_guarded
raise SystemExit(run_guarded(lambda: build_detector(variant_config("lost"), num_classes=2)))
"""
    done = run_with(tmp_path, code)
    assert done.returncode == 64, done.stderr
    assert "brought:Nowhere is not there" in done.stderr
    assert "Traceback" not in done.stderr
