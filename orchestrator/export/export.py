"""``orchestrator export``: a detector as one file that needs nothing of this program.

Inside the graph: normalisation, network, priors and decoding; with ``nms`` hard suppression too.
Outside: the resize of an image to the input size, and the way back, both stated in the metadata.
A file is written under another name, compared with PyTorch by the parity gate, and appears under
its own name only after that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.config import PostprocessConfig
from orchestrator.data.dataset import Dataset
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.export.artifact import (
    METADATA_KEY,
    RAW,
    ExportedDetector,
    Format,
    Metadata,
    require_export_packages,
    save_pt2,
)
from orchestrator.export.onnx_ops import translations
from orchestrator.export.parity import (
    SELECTED,
    Parity,
    Tolerance,
    ap_note,
    compare,
    graph_suppression,
    stated_tiles,
)
from orchestrator.predict.loading import LoadedDetector
from orchestrator.tracking.git_info import git_info

#: Of the ONNX operators; the newest that the runtimes of Ascend's and NVIDIA's tools read.
OPSET: Final = 18


class ParityError(OrchestratorError):
    """An exported file does not compute what the detector computes."""


class ExportModule(nn.Module):
    """A detector as a function of one tensor to several.

    Outputs, in this order: ``boxes`` (N, A, 4), or (N, A, K, 4), xyxy in network pixels, ``scores``
    (N, A, K), and what the network computed before decoding, each with ``raw_`` before its name.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) uint8 RGB to the outputs."""
        raw = self.model(images)
        boxes, scores = self.model.decode(raw)
        return (boxes, scores, *(raw[name] for name in sorted(raw)))


@dataclass(frozen=True)
class Exported:
    """What :func:`export` made.

    Attributes:
        path: of the file.
        metadata: inside it.
        parity: how close it is to PyTorch.
    """

    path: Path
    metadata: Metadata
    parity: Parity


def export(
    loaded: LoadedDetector,
    path: Path,
    *,
    format: Format,
    dataset: Dataset,
    nms: bool = False,
) -> Exported:
    """Write a detector as ``path`` and prove that it is the same detector.

    Args:
        loaded: on the CPU.
        path: of the new file; an older one is replaced once the new one has passed.
        format: ONNX, or PyTorch's own archive of ``torch.export``.
        dataset: images and boxes on which both are compared.
        nms: append suppression to the graph; ONNX only.

    Raises:
        ConfigError: packages are missing, or suppression that a graph cannot do is asked for.
        ParityError: the file differs from PyTorch by more than is usual, and was removed.
    """
    if path.suffix != f".{format}":
        raise ConfigError(f"--output {path}: a file of this format ends in .{format}")
    if nms:
        _require_graph_nms(loaded, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    unproven = path.with_name(f".unproven-{path.name}")
    try:
        metadata = _write(loaded, unproven, format, dataset, nms)
        parity = compare(loaded, ExportedDetector(unproven), dataset, Tolerance())
        if parity.failures:
            raise ParityError(
                "\n".join(
                    [
                        f"{path}: the exported detector is not the detector it was made from; the "
                        "file was removed",
                        *(f"  {line}" for line in parity.failures),
                        "Next: please report it with the experiment file; --format "
                        f"{'pt2' if format == 'onnx' else 'onnx'} may serve meanwhile",
                    ]
                )
            )
        unproven.replace(path)
    finally:
        unproven.unlink(missing_ok=True)
    return Exported(path, metadata, parity)


def metadata_of(
    loaded: LoadedDetector, dataset: Dataset, outputs: dict[str, str], opset: int | None
) -> Metadata:
    """What a file of this detector has to say."""
    model, experiment = loaded.model, loaded.resolved.experiment
    data = experiment.data
    pad = loaded.prepare.padding
    return Metadata(
        detector=experiment.detector.title,
        input_size=model.input_size,
        resize="stretch" if pad is None else "pad",
        pad=None if pad is None else {**dataclasses.asdict(pad), "fill": list(pad.fill)},
        interpolation="bilinear",
        mean=tuple(model.pixel_mean.flatten().tolist()),
        std=tuple(model.pixel_std.flatten().tolist()),
        label_map=loaded.label_map.to_json(),
        postprocess=experiment.detector.postprocess.model_dump(mode="json"),
        outputs=outputs,
        weights_sha256=loaded.weights_sha256,
        config_digest=loaded.resolved.digest,
        data_digest=dataset.digest,
        program=_program(),
        opset=opset,
        orientation=data.orientation,
        levels=data.levels,
        tiles=stated_tiles(loaded),
        note=ap_note(loaded),
    )


def _program() -> str:
    try:
        number = version("detection-orchestrator")
    except PackageNotFoundError:
        number = "unknown version"
    git = git_info()
    return number if git is None else f"{number} at {git.commit}"


def _write(
    loaded: LoadedDetector, path: Path, format: Format, dataset: Dataset, nms: bool
) -> Metadata:
    module = ExportModule(loaded.model).eval()
    height, width = loaded.model.input_size
    # A batch of two: torch.export would take a size of one for a constant.
    example = torch.zeros((2, 3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        raw = loaded.model(example)
        boxes = loaded.model.decode(raw).boxes
    rows = "prior" if not loaded.model.ranked else "proposal"
    each = ", one box a class" if boxes.dim() == 4 else ""
    outputs = {
        "boxes": f"xyxy in pixels of the network's input, one row a {rows}{each}",
        "scores": "one column a class, in the order of the label map",
        **{RAW + name: "before decoding" for name in sorted(raw)},
    }
    names = list(outputs)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    if format == "pt2":
        metadata = metadata_of(loaded, dataset, outputs, None)
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        save_pt2(program, path, metadata)
        return metadata
    onnx = require_export_packages().onnx
    with torch.no_grad(), _quiet():
        made = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            input_names=["images"],
            output_names=names,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert made is not None, "the dynamo exporter returns its program"
    graph = made.model_proto
    if nms:
        append_nms(onnx, graph, loaded.resolved.experiment.detector.postprocess)
        words = ("suppressed: image, class and prior of each detection", "its box", "its score")
        outputs |= dict(zip(SELECTED, words, strict=True))
    metadata = metadata_of(loaded, dataset, outputs, OPSET)
    entry = graph.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
    return metadata


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes on its own insides out of the output."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _require_graph_nms(loaded: LoadedDetector, format: Format) -> None:
    """Raise where ONNX's operator is not the suppression of the recipe."""
    config = loaded.resolved.experiment.detector.postprocess
    wrong = {
        f"detector.postprocess.nms is {config.nms}, not hard": config.nms != "hard",
        "detector.postprocess.plus_one is true": config.plus_one,
        "detector.postprocess.class_agnostic is true": config.class_agnostic,
        f"--format is {format}, not onnx": format != "onnx",
    }
    lines = [what for what, applies in wrong.items() if applies]
    if lines:
        raise ConfigError(
            f"--nms: suppression inside the graph is ONNX's NonMaxSuppression, but "
            f"{' and '.join(lines)}. Next: leave --nms out and suppress what comes out, or change "
            "the recipe: detector.postprocess.plus_one=false"
        )


def append_nms(onnx: Any, model: Any, config: PostprocessConfig) -> None:
    """Add ONNX's NonMaxSuppression behind ``boxes`` and ``scores``, as three more outputs.

    Suppressing before the way back to the image changes nothing: a stretch leaves IoU as it is.
    The operator takes boxes that all classes of an image share. Where each class has boxes of its
    own, every class of every image is an image to it.
    """
    helper, types = onnx.helper, onnx.TensorProto
    outputs = {output.name: output.type.tensor_type.shape.dim for output in model.graph.output}
    slots, classes = outputs["scores"][1].dim_value, outputs["scores"][2].dim_value
    own_boxes = len(outputs["boxes"]) == 4
    initializers = [
        helper.make_tensor(
            "nms_per_class", types.INT64, [1], [graph_suppression(config).max_per_class]
        ),
        helper.make_tensor("nms_iou", types.FLOAT, [1], [config.iou_threshold]),
        helper.make_tensor("nms_score", types.FLOAT, [1], [config.score_threshold]),
    ]
    node = helper.make_node
    nodes = [node("Transpose", ["scores"], ["scores_by_class"], perm=[0, 2, 1])]
    limits = ["nms_per_class", "nms_iou", "nms_score"]
    if own_boxes:
        initializers += [
            helper.make_tensor("nms_boxes_shape", types.INT64, [3], [-1, slots, 4]),
            helper.make_tensor("nms_scores_shape", types.INT64, [3], [-1, 1, slots]),
            helper.make_tensor("nms_classes", types.INT64, [1], [classes]),
            helper.make_tensor("nms_image", types.INT64, [1], [0]),
            helper.make_tensor("nms_slot", types.INT64, [1], [2]),
        ]
        nodes += [
            node("Transpose", ["boxes"], ["boxes_by_class"], perm=[0, 2, 1, 3]),
            node("Reshape", ["boxes_by_class", "nms_boxes_shape"], ["boxes_of_class"]),
            node("Reshape", ["scores_by_class", "nms_scores_shape"], ["scores_of_class"]),
            node("NonMaxSuppression", ["boxes_of_class", "scores_of_class", *limits], ["kept"]),
            node("Gather", ["kept", "nms_image"], ["kept_image_class"], axis=1),
            node("Gather", ["kept", "nms_slot"], ["kept_slot"], axis=1),
            node("Div", ["kept_image_class", "nms_classes"], ["kept_image"]),
            node("Mod", ["kept_image_class", "nms_classes"], ["kept_class"]),
            node("Concat", ["kept_image", "kept_class", "kept_slot"], ["selected"], axis=1),
            node("GatherND", ["boxes_by_class", "selected"], ["selected_boxes"]),
        ]
    else:
        initializers.append(helper.make_tensor("nms_image_prior", types.INT64, [2], [0, 2]))
        nodes += [
            node("NonMaxSuppression", ["boxes", "scores_by_class", *limits], ["selected"]),
            node("Gather", ["selected", "nms_image_prior"], ["box_index"], axis=1),
            node("GatherND", ["boxes", "box_index"], ["selected_boxes"]),
        ]
    nodes.append(node("GatherND", ["scores_by_class", "selected"], ["selected_scores"]))
    model.graph.initializer.extend(initializers)
    model.graph.node.extend(nodes)
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("selected", types.INT64, ["detections", 3]),
            helper.make_tensor_value_info("selected_boxes", types.FLOAT, ["detections", 4]),
            helper.make_tensor_value_info("selected_scores", types.FLOAT, ["detections"]),
        ]
    )
