"""Broken and hostile files, through everything that opens a file of weights or an export.

None of them runs anything, and each gets its verdict: 77 where there was code in it, else 65.
"""

from __future__ import annotations

import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoints.initial_weights import convert_file, find_initial, load_initial
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError, OrchestratorError
from orchestrator.export.artifact import ExportedDetector
from orchestrator.export.export import export
from orchestrator.export.model_registry import RegisteredDetector
from orchestrator.predict.loading import load_detector
from orchestrator.predict.scoring import read_split
from tests.support import hostile_files
from tests.support.hostile_files import CODE, MARK, HostileFile


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory):
    """Where code would make a folder."""
    path = tmp_path_factory.mktemp("mark") / "ran"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, str(path))
        yield path


@pytest.fixture(scope="module")
def pt2(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound archive."""
    loaded = load_detector(small_run)
    dataset = read_split(loaded.resolved.experiment, "val", limit=1)
    path = tmp_path_factory.mktemp("export") / "tiny.pt2"
    return export(loaded, path, format="pt2", dataset=dataset).path


def verdict(action: Callable[[], object]) -> int:
    """Exit code of what an action raises; what is no error of ours comes through, as a bug does."""
    try:
        action()
    except OrchestratorError as error:
        return error.exit_code
    return 0


def test_files_of_weights(small_run: Path, tmp_path: Path, mark: Path) -> None:
    resolved = load_experiment(small_run / "config" / "resolved.yaml")
    classes = LabelMap(("dark", "bright"), (3, 70))
    found: dict[str, list[int]] = {}
    expected: dict[str, list[int]] = {}
    for file in hostile_files.weights_files():
        path = tmp_path / file.name
        path.write_bytes(file.content(b""))
        verbs = (
            lambda path=path: convert_file(
                path, tmp_path / "made.safetensors", resolved.experiment.detector, overwrite=True
            ),
            lambda path=path: load_initial(find_initial(str(path)), resolved.experiment, classes),
            lambda path=path: load_detector(
                path, experiment=small_run / "config" / "resolved.yaml"
            ),
            lambda path=path: ExportedDetector(path.rename(path.with_suffix(".pt2"))),
        )
        found[file.name] = [verdict(verb) for verb in verbs]
        expected[file.name] = [file.verdict] * len(verbs)
        assert not mark.exists(), f"{file.name} ran"
    assert found == expected
    assert sum(file.verdict == CODE for file in hostile_files.weights_files()) > 15


def test_archives_of_detectors(pt2: Path, small_run: Path, tmp_path: Path, mark: Path) -> None:
    content = pt2.read_bytes()
    assert ExportedDetector(pt2).metadata.detector
    found: dict[str, list[int]] = {}
    expected: dict[str, list[int]] = {}
    for file in hostile_files.pt2_files():
        path = tmp_path / file.name
        path.write_bytes(file.content(content))
        found[file.name] = [verdict(lambda path=path: ExportedDetector(path))]
        expected[file.name] = [file.verdict]
        assert not mark.exists(), f"{file.name} ran"
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"outputs": {"boxes": "", "scores": ""}}, "has 4 outputs, its metadata name 2"),
        ({"outputs": {"scores": "", "boxes": "", "a": "", "b": ""}}, "gives boxes of shape"),
        ({"input_size": [200, 300]}, "cannot be run on images of shape"),
        ({"label_map": '{"names": ["one"], "ids": [1]}'}, "has scores for 2 classes"),
    ],
    ids=["too few outputs", "exchanged outputs", "another size", "fewer classes"],
)
def test_a_file_that_is_not_what_it_states_is_no_bug_of_ours(
    pt2: Path, tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    path = tmp_path / "liar.pt2"
    path.write_bytes(hostile_files.with_metadata(**changes)(pt2.read_bytes()))
    model = RegisteredDetector(path)
    with pytest.raises(DataError, match=problem):
        model.predict(np.zeros((1, 20, 30, 3), np.uint8))


def test_the_registry_opens_no_hostile_archive(pt2: Path, tmp_path: Path, mark: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    hostile = {file.name: file for file in hostile_files.pt2_files()}
    model = tmp_path / "model"
    mlflow.pyfunc.save_model(
        str(model), loader_module="orchestrator.export.model_registry", data_path=str(pt2)
    )
    assert mlflow.pyfunc.load_model(str(model)) is not None
    (kept,) = model.rglob("*.pt2")
    for name in ("samples.pt2", "size.pt2", "opaque.pt2"):
        kept.write_bytes(hostile[name].content(pt2.read_bytes()))
        with pytest.raises(OrchestratorError, match="run code"):
            mlflow.pyfunc.load_model(str(model))
        assert not mark.exists(), f"{name} ran"


def test_commands_say_it_with_their_exit_code(
    small_run: Path, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, HostileFile] = {file.name: file for file in hostile_files.weights_files()}
    experiment = ["--experiment", str(small_run / "config" / "resolved.yaml")]
    variant = ["--to", "ssd300_mobilenet_v2"]
    image = next((small_run.parent / "squares" / "images").iterdir())
    for name in ("page.safetensors", "both.pth"):
        path = tmp_path / name
        path.write_bytes(files[name].content(b""))
        for words in (
            ["predict", str(path), str(image), *experiment],
            ["evaluate", str(path), *experiment],
            ["export", str(path), "--format", "pt2", *experiment],
            ["convert", "weights", str(path), str(tmp_path / "x.safetensors"), *variant],
        ):
            assert main(words) == files[name].verdict, (words[0], name)
            assert str(path) in capsys.readouterr().err
    assert not mark.exists()


def test_an_archive_carries_no_inputs_and_no_folders_of_this_machine(pt2: Path) -> None:
    with zipfile.ZipFile(pt2) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert members["data/sample_inputs/model.pt"] == b""
    graph = json.loads(members["models/model.json"])["graph_module"]["graph"]
    assert not any("stack_trace" in node["metadata"] for node in graph["nodes"])


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_full_disk_is_no_bug_and_leaves_nothing(
    small_run: Path, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if format == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed; extra `export`")
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    words = ["--format", format, "--output", str(tmp_path / f"x.{format}"), "--images", "1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        code = main(["export", str(small_run), *words])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 71, capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_reads_other_files_is_refused(tmp_path: Path, mark: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; extra `export`")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    def model(location: str) -> bytes:
        tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
        graph = onnx.helper.make_graph([constant], "g", [], [value])
        return bytes(onnx.helper.make_model(graph).SerializeToString())

    (tmp_path / "data.bin").write_bytes(b"\0" * 4)
    for name, content, expected in (
        ("up.onnx", model("../../etc/passwd"), 77),
        ("root.onnx", model("/etc/passwd"), 77),
        ("drive.onnx", model("C:\\secret"), 77),
        ("beside.onnx", model("data.bin"), 65),
        ("page.onnx", hostile_files.HTML, 65),
        ("empty.onnx", b"", 65),
        ("cut.onnx", model("data.bin")[:-9], 65),
        ("raw.onnx", hostile_files.pickled(), 77),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert verdict(lambda path=path: ExportedDetector(path)) == expected, name
    assert not mark.exists()


def test_a_model_is_opened_as_what_was_looked_at(tmp_path: Path) -> None:
    """A model of ONNX whose bytes also begin as those of the runtime's own format."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; extra `export`")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    value = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    constant = onnx.helper.make_node("Constant", [], ["y"], value_floats=[1.0])
    graph = onnx.helper.make_graph([constant], "g", [], [value])
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], producer_name="ORTM")
    model.ir_version = 9
    path = tmp_path / "both.onnx"
    path.write_bytes(model.SerializeToString())
    assert path.read_bytes()[4:8] == b"ORTM"
    with pytest.raises(DataError, match="has no metadata of this program"):
        ExportedDetector(path)
