"""What an exported file states of itself: all of it is compared with the detector."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from detectors.config import PostprocessConfig
from orchestrator.cli.main import main
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError
from orchestrator.export.artifact import ExportedDetector, Metadata
from orchestrator.export.export import export
from orchestrator.export.parity import Tolerance, compare
from tests.export.networks import drawn_detector


@pytest.fixture(scope="module")
def made(small_run, tmp_path_factory):
    """A detector that pads its images, so that every statement about them means something."""
    folder = tmp_path_factory.mktemp("stated")
    loaded, dataset = drawn_detector("faster_rcnn_torchvision", small_run, folder)
    done = export(loaded, folder / "drawn.pt2", format="pt2", dataset=dataset)
    return loaded, dataset, ExportedDetector(done.path)


def with_metadata(exported: ExportedDetector, metadata: Metadata) -> ExportedDetector:
    """The file as if that were its metadata; they are read as those of any file are."""
    other = copy.copy(exported)
    other.metadata = Metadata.from_json(metadata.to_json(), Path("altered.pt2"))
    other.label_map = LabelMap.from_json(other.metadata.label_map)
    return other


#: By field, what a file might state instead; what it is has to be told.
WRONG = {
    "detector": lambda _: "another one",
    "input_size": lambda size: (size[0] + 32, size[1]),
    "resize": lambda _: "stretch",
    "pad": lambda pad: {**pad, "fill": [200, 8, 7]},
    "interpolation": lambda _: "nearest",
    "mean": lambda _: (0.0, 0.0, 0.0),
    "std": lambda std: tuple(2 * value for value in std),
    "label_map": lambda text: LabelMap(
        tuple(reversed(LabelMap.from_json(text).names)), LabelMap.from_json(text).ids
    ).to_json(),
    "postprocess": lambda recipe: {**recipe, "iou_threshold": 0.1},
    "outputs": lambda names: dict(reversed(names.items())),
    "weights_sha256": lambda _: "f" * 64,
    "config_digest": lambda _: "f" * 64,
    "data_digest": lambda _: "f" * 64,
    "opset": lambda _: 17,
    "orientation": lambda _: "displayed",
    "levels": lambda _: (0.0, 4095.0),
    "tiles": lambda _: {"size": [64, 64], "overlap": 8},
    "note": lambda _: "AP is of nothing",
}
#: Another program may look at a file, and one of another layout is not read at all.
FREE = {"program", "version"}


def test_what_is_true_is_no_failure(made):
    loaded, dataset, exported = made
    parity = compare(loaded, with_metadata(exported, exported.metadata), dataset, Tolerance())
    assert (parity.failures, parity.note) == ((), "")


def test_no_field_is_forgotten():
    assert WRONG.keys() | FREE == {field.name for field in dataclasses.fields(Metadata)}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_statement_is_a_failure(made, field):
    loaded, dataset, exported = made
    stated = getattr(exported.metadata, field)
    changes = {field: WRONG[field](stated)}
    if field == "resize":
        changes["pad"] = None
    altered = with_metadata(exported, dataclasses.replace(exported.metadata, **changes))
    assert compare(loaded, altered, dataset, Tolerance()).failures


OTHER_RECIPE = {
    "score_threshold": 0.4,
    "top_k_per_class": 3,
    "nms": "soft_linear",
    "iou_threshold": 0.1,
    "sigma": 0.9,
    "soft_score_threshold": 0.3,
    "plus_one": True,
    "max_per_class": 2,
    "max_per_image": 1,
    "class_agnostic": True,
}


def test_no_part_of_the_recipe_is_forgotten():
    assert OTHER_RECIPE.keys() == PostprocessConfig.model_fields.keys()


@pytest.mark.parametrize("name", OTHER_RECIPE)
def test_another_recipe_is_a_failure(made, name):
    loaded, dataset, exported = made
    recipe = {**exported.metadata.postprocess, name: OTHER_RECIPE[name]}
    altered = with_metadata(exported, dataclasses.replace(exported.metadata, postprocess=recipe))
    failures = compare(loaded, altered, dataset, Tolerance()).failures
    assert any(f"postprocess.{name} {OTHER_RECIPE[name]!r}" in line for line in failures), failures


def test_the_stated_recipe_makes_the_detections_of_the_file(made):
    loaded, dataset, exported = made
    recipe = {**exported.metadata.postprocess, "iou_threshold": 0.0}
    altered = with_metadata(exported, dataclasses.replace(exported.metadata, postprocess=recipe))
    assert compare(loaded, altered, dataset, Tolerance()).unmatched > 0


def test_both_label_maps_are_printed(made):
    loaded, dataset, exported = made
    wrong = WRONG["label_map"](exported.metadata.label_map)
    altered = with_metadata(exported, dataclasses.replace(exported.metadata, label_map=wrong))
    (failure,) = compare(loaded, altered, dataset, Tolerance()).failures
    assert "3:dark" in failure
    assert "3:bright" in failure


def test_a_file_of_the_older_layout_is_read(made):
    tree = json.loads(made[2].metadata.to_json())
    for name in ("orientation", "levels", "tiles", "note"):
        del tree[name]
    with pytest.raises(DataError, match="levels"):
        Metadata.from_json(json.dumps(tree), Path("old.pt2"))
    tree["version"] = 1
    old = Metadata.from_json(json.dumps(tree), Path("old.pt2"))
    assert (old.orientation, old.levels, old.tiles) == (None, None, None)


def test_how_files_become_pixels_is_stated(small_run, tmp_path, capsys):
    path = tmp_path / "tiled.pt2"
    words = ["data.tiles={size: [96, 64], overlap: 16}", "data.levels=[0, 4095]"]
    words += ["data.orientation=displayed", "--format", "pt2", "--output", str(path)]
    assert main(["export", str(small_run), *words, "--images", "3"]) == 0
    said = capsys.readouterr().out
    found = ExportedDetector(path).metadata
    assert found.tiles == {"size": [96, 64], "overlap": 16}
    assert (found.levels, found.orientation) == ((0, 4095), "displayed")
    parity = json.loads((tmp_path / "tiled.pt2.parity.json").read_text())
    assert "AP is of whole images" in found.note
    assert "tiles of 96 x 64 pixels" in found.note
    assert parity["note"] == found.note
    assert found.note in said
