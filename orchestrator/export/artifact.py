"""Exported detectors: what their metadata says, and running them by nothing but that.

A file carries all that its user has to know: how an image becomes its input, what its outputs are
and which class is which. :class:`ExportedDetector` believes the file alone, so that a wrong entry
is met by the parity gate as a user would meet it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

# They define operators that pt2 archives name.
import detectors.roi_align
import detectors.suppression  # noqa: F401
from detectors.config import PostprocessConfig
from detectors.structures import Candidates
from detectors.weights.archives import ZIP, look_through
from orchestrator.checkpoints.source import weights_errors
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, SecurityError
from orchestrator.export.pt2 import checked_archive

Format: TypeAlias = Literal["onnx", "pt2"]

#: Key of the metadata in an ONNX model and in a pt2 archive.
METADATA_KEY: Final = "detection_orchestrator"
#: Before the names of what a network computes ahead of decoding.
RAW: Final = "raw_"
_EXTRA_FILE: Final = "metadata.json"
#: Pixels; a batch of larger images would take gigabytes.
_LONGEST_SIDE: Final = 16384
_INTERPOLATIONS: Final = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
#: 1 said nothing of how files become pixels, nor of tiles.
_VERSION, _OLDER = 2, 1


@dataclass(frozen=True)
class Metadata:
    """What belongs to an exported network.

    Attributes:
        detector: what it is.
        input_size: (H, W) it takes.
        resize: rule that brings an image there: ``stretch`` ignores the aspect ratio, ``pad`` keeps
            it and puts the image at the upper left of the input.
        pad: ``short_side`` and ``long_side``, which those of the image are made no longer than, or
            null, and ``fill``, the RGB of the rest; None with ``stretch``.
        interpolation: of that resize, on uint8 as OpenCV does it.
        mean, std: on the 0..255 scale, RGB; inside the graph already, to be known.
        label_map: as :meth:`LabelMap.to_json` writes it.
        postprocess: the recipe whose numbers were compared.
        outputs: names, in order, with a word on each.
        weights_sha256, config_digest, data_digest: of what was exported and compared on.
        program: version and commit of this program.
        opset: of ONNX; None for pt2.
        orientation: whether boxes belonged to the pixels as ``stored`` or as ``displayed``, in the
            data it was trained and compared on. None in a file that does not say it, like `levels`.
        levels: of images of more than 8 bits, what becomes black and white: ``full``, ``used`` or
            two values; see :class:`orchestrator.data.decode.Decoding`.
        tiles: ``size`` (height, width) and ``overlap`` of the tiles it was trained on, which the
            file does not cut; null for whole images.
        note: what there is to know of the AP it was compared by.
        version: of this layout.
    """

    detector: str
    input_size: tuple[int, int]
    resize: str
    pad: dict[str, Any] | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_map: str
    postprocess: dict[str, Any]
    outputs: dict[str, str]
    weights_sha256: str
    config_digest: str
    data_digest: str
    program: str
    opset: int | None
    orientation: str | None = None
    levels: str | tuple[float, ...] | None = None
    tiles: dict[str, Any] | None = None
    note: str = ""
    version: int = _VERSION

    def to_json(self) -> str:
        """The text stored in a file."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: Path) -> Metadata:
        """Inverse of :meth:`to_json`.

        Raises:
            DataError: another layout.
        """
        try:
            tree = json.loads(text)
            tree["input_size"] = tuple(int(side) for side in tree["input_size"])
            tree["mean"], tree["std"] = tuple(tree["mean"]), tuple(tree["std"])
            if tree["version"] != _OLDER:
                levels = tree["levels"]
                tree["levels"] = levels if isinstance(levels, str) else tuple(levels)
            found = cls(**tree)
            LabelMap.from_json(found.label_map)
            PostprocessConfig.model_validate(found.postprocess)
            _require_usable(found)
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            raise DataError(f"{source}: its metadata cannot be read ({error})") from error
        if found.version not in (_OLDER, _VERSION):
            raise DataError(
                f"{source}: its metadata has version {found.version}; this program reads {_OLDER} "
                f"and {_VERSION}"
            )
        return found


def _require_usable(metadata: Metadata) -> None:
    """Raise for an input that no image can be brought to, and for outputs without detections.

    Raises:
        ValueError: which it is.
    """
    size, outputs, pad = metadata.input_size, metadata.outputs, metadata.pad
    if len(size) != 2 or not all(0 < side <= _LONGEST_SIDE for side in size):
        raise ValueError(f"input_size is {size}")
    if not (isinstance(outputs, dict) and {"boxes", "scores"} <= outputs.keys()):
        raise ValueError(f"outputs are {outputs}")
    if pad is None:
        return
    sides = [pad[name] for name in ("short_side", "long_side") if pad[name] is not None]
    if not all(isinstance(side, (int, float)) and 0 < side < math.inf for side in sides):
        raise ValueError(f"an image is padded by {pad}")
    fill = pad["fill"]
    if len(fill) != 3 or not all(isinstance(one, (int, float)) and 0 <= one < 256 for one in fill):
        raise ValueError(f"padding is filled with {fill}")


class ExportedDetector:
    """A file made by ``orchestrator export``, run on the CPU.

    Attributes:
        metadata: of the file.
        label_map: its classes.
        opset: of the ONNX operators in it; None for pt2.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            DataError: no such file, or none of ours.
            SecurityError: a file that would run code, or read files elsewhere.
            ConfigError: onnxruntime is not installed.
        """
        if not path.is_file():
            raise DataError(f"{path}: does not exist; name a file of `orchestrator export`")
        with weights_errors(path):
            look_through(path)
            with path.open("rb") as file:
                is_archive = file.read(len(ZIP)) == ZIP
        # A name proves nothing; what is no archive is looked at as a model of ONNX.
        is_archive = is_archive or path.suffix == ".pt2"
        self._path = path
        self._run, text, self.opset = _open_pt2(path) if is_archive else _open_onnx(path)
        self.metadata = Metadata.from_json(text, path)
        self.label_map = LabelMap.from_json(self.metadata.label_map)
        rule, pad = self.metadata.resize, self.metadata.pad
        if rule not in ("stretch", "pad") or (rule == "pad") != (pad is not None):
            raise DataError(f"{path}: unknown resize rule {rule!r} with {pad}")
        if self.metadata.interpolation not in _INTERPOLATIONS:
            raise DataError(f"{path}: unknown interpolation {self.metadata.interpolation!r}")

    def prepare(
        self, image: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], tuple[float, float, float, float]]:
        """(h, w, 3) RGB to the (H, W, 3) that the network takes.

        Also ``sx, sy, tx, ty``: x of the input is sx times x of the image plus tx.
        """
        size, pad = self.metadata.input_size, self.metadata.pad
        height, width = image.shape[:2]
        if pad is None:
            rows, columns = size
        else:
            factors = [size[0] / height, size[1] / width]
            for name, side in (("short_side", min), ("long_side", max)):
                if pad[name] is not None:
                    factors.append(pad[name] / side(height, width))
            # Half up, and no side vanishes.
            rows, columns = (
                min(room, max(1, int(side * min(factors) + 0.5)))
                for room, side in zip(size, (height, width), strict=True)
            )
        how = _INTERPOLATIONS[self.metadata.interpolation]
        made = np.empty((*size, 3), np.uint8)
        made[:] = np.array((0, 0, 0) if pad is None else pad["fill"], np.uint8)
        made[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=how)
        return made, (columns / width, rows / height, 0.0, 0.0)

    def outputs(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Every output for (N, H, W, 3) images, by the name that the metadata gives it.

        Raises:
            DataError: the file cannot be run on them, or has other outputs than it states.
        """
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        try:
            values = self._run(channels_first)
        except MemoryError:
            raise
        # Runtimes raise classes of their own; the graph is that of the file.
        except Exception as error:
            raise DataError(
                f"{self._path}: its network cannot be run on images of shape {images.shape} "
                f"({error}). Next: export again"
            ) from error
        if len(values) != len(self.metadata.outputs):
            raise DataError(
                f"{self._path}: its network has {len(values)} outputs, its metadata name "
                f"{len(self.metadata.outputs)}. Next: export again"
            )
        return dict(zip(self.metadata.outputs, values, strict=True))

    def __call__(self, images: NDArray[np.uint8]) -> Candidates:
        """Candidates of a batch, as a network of :mod:`orchestrator.predict.predictor` has it.

        Raises:
            DataError: what the file gives for them are none.
        """
        found = self.outputs(images)
        boxes, scores = found["boxes"], found["scores"]
        shapes = (*scores.shape[:2], 4), (*scores.shape, 4)
        sound = boxes.dtype == scores.dtype == np.float32 and boxes.shape in shapes
        if not sound or scores.ndim != 3 or len(scores) != len(images):
            raise DataError(
                f"{self._path}: of {len(images)} images it gives boxes of shape {boxes.shape} and "
                f"type {boxes.dtype}, and scores of shape {scores.shape} and type {scores.dtype}; "
                "expected are (N, A, 4) or (N, A, K, 4) and (N, A, K), float32. Next: export again"
            )
        return Candidates(torch.from_numpy(boxes), torch.from_numpy(scores))


_Run: TypeAlias = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]


def _open_onnx(path: Path) -> tuple[_Run, str, int | None]:
    packages = require_export_packages()
    content = path.read_bytes()
    model = _whole_model(packages.onnx, content, path)
    # ONNX's own operators are those of the domain without a name.
    opset = next((int(one.version) for one in model.opset_import if not one.domain), None)
    options = packages.onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Warnings about nodes that could be folded help nobody here.
    options.log_severity_level = 3
    # The runtime would take bytes that look so for its own format, which nobody looked through.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        # From memory, the bytes that were looked at: there is no folder to find other files in.
        session = packages.onnxruntime.InferenceSession(
            content, sess_options=options, providers=["CPUExecutionProvider"]
        )
    # The runtime raises half a dozen classes of its own for files it cannot load.
    except Exception as error:
        raise DataError(f"{path}: onnxruntime cannot load it ({error})") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise DataError(f"{path}: has no metadata of this program; export it again")
    return (lambda images: list(session.run(None, {"images": images}))), str(text), opset


def _whole_model(onnx: Any, content: bytes, path: Path) -> Any:
    """An ONNX model that has all that it consists of in itself.

    Raises:
        SecurityError: it reads a file outside of its folder.
        DataError: it reads another file, or is no ONNX model.
    """
    try:
        model = onnx.load_model_from_string(content)
    # The parser of protocol buffers raises classes of its own.
    except Exception as error:
        raise DataError(f"{path}: is no ONNX model ({error}). Next: export again") from error
    if not model.graph.node:
        raise DataError(f"{path}: is no ONNX model: its graph is empty. Next: export again")
    for message in _messages(model):
        if message.DESCRIPTOR.name != "TensorProto" or not message.external_data:
            continue
        place = {entry.key: entry.value for entry in message.external_data}.get("location", "")
        parts = place.replace("\\", "/").split("/")
        outside = place.startswith(("/", "\\")) or ":" in place or ".." in parts
        raise (SecurityError if outside else DataError)(
            f"{path}: tensor {message.name!r} lies in another file, {place!r}, and none but the "
            "model itself is read here. Next: export again, which writes one file"
        )
    return model


def _messages(message: Any) -> Iterator[Any]:
    """A protocol buffer and all messages in it: subgraphs, functions and attributes as well."""
    waiting = [message]
    while waiting:
        inner = waiting.pop()
        yield inner
        for field, value in inner.ListFields():
            if field.message_type is not None:
                waiting += value if hasattr(value, "__len__") else [value]


def _open_pt2(path: Path) -> tuple[_Run, str, None]:
    extra = {_EXTRA_FILE: ""}
    archive = checked_archive(path)
    try:
        program = torch.export.load(archive, extra_files=extra)
        module = program.module()
    except Exception as error:
        raise DataError(f"{path}: torch cannot load it ({error})") from error
    text = extra[_EXTRA_FILE]
    if not text:
        raise DataError(f"{path}: has no metadata of this program; export it again")

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [value.numpy() for value in module(torch.from_numpy(images))]

    return run, text if isinstance(text, str) else bytes(text).decode("utf-8"), None


def save_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write a pt2 archive with its metadata, and without the inputs it was traced with.

    Raises:
        OSError: it cannot be written.
    """
    # They would be pickled, and whoever opens the archive would have to unpickle them.
    program.example_inputs = None
    for node in program.graph.nodes:
        # Lines of source, with the folders of this machine.
        node.meta.pop("stack_trace", None)
    # Of a disk that is full torch's own writer says that an internal check has failed.
    made = io.BytesIO()
    torch.export.save(program, made, extra_files={_EXTRA_FILE: metadata.to_json()})
    path.write_bytes(made.getbuffer())


@dataclass(frozen=True)
class ExportPackages:
    """The modules of the ``export`` extra."""

    onnx: Any
    onnxruntime: Any


def require_export_packages() -> ExportPackages:
    """The packages that ONNX needs.

    Raises:
        ConfigError: one is missing.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {error.name}, which is not installed. Next: "
            "pip install -c constraints.txt -e '.[export]', or export with --format pt2"
        ) from error
    return ExportPackages(onnx, onnxruntime)
