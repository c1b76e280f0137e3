"""Files of weights: safetensors, and foreign pickles of which only the tensors are read."""

from __future__ import annotations

import json
import os
import pickle
import re
import uuid
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detectors.weights.archives import ZIP, WeightsError, look_through
from detectors.weights.mindspore import looks_like_mindspore, read_mindspore

#: Value of the metadata key ``format`` of files that :func:`write_weights` makes.
FORMAT = "detection-orchestrator weights 1"

#: Where training programs keep the tensors inside what they save (mmdetection, torchvision's
#: references, Lightning and many scripts).
_NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net")
#: What torch says of a name that it does not call.
_FOREIGN = re.compile("Unsupported (global|class)|GLOBAL|weights_only", re.IGNORECASE)


class WeightsFile(NamedTuple):
    """Content of a file.

    Attributes:
        tensors: by the names the file uses, on the CPU.
        metadata: of a safetensors file; empty for others.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def value(self, key: str) -> Any:
        """What :func:`write_weights` stored under a key of the metadata; None if nothing.

        Raises:
            WeightsError: the file says that it is ours, but what it holds there was not written so.
        """
        try:
            return json.loads(self.metadata.get(key, "null"))
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"its metadata {key!r} cannot be read ({error})") from error

    @property
    def is_native(self) -> bool:
        """Whether this program wrote it, under its own names."""
        return self.metadata.get("format") == FORMAT


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file of tensors without running anything from it.

    The content says what a file is, whatever its name ends in.

    Args:
        path: a safetensors file, a checkpoint of MindSpore, or what ``torch.save`` made of a
            mapping of tensors, in either of its formats, also one level down under
            ``state_dict``, ``model``, ``model_state_dict`` or ``net``.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        UnsafeWeightsError: it holds something that would run code if it were unpickled.
        WeightsError: it is neither kind of file, damaged, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if _looks_like_safetensors(path):
        return _read_safetensors(path)
    if looks_like_mindspore(path):
        try:
            return WeightsFile(read_mindspore(path), {})
        except ValueError as error:
            raise WeightsError(str(error)) from error
    look_through(path)
    _require_torch_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A broken pickle makes torch raise whatever it stumbles over.
    except Exception as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)
        reason = next(iter(reason.splitlines()), type(error).__name__)
        if isinstance(error, pickle.UnpicklingError) and _FOREIGN.search(str(error)):
            raise WeightsError(
                f"{path}: holds values that are not read here ({reason}). Next: save its state "
                "dict alone, torch.save(model.state_dict(), FILE)"
            ) from error
        raise WeightsError(
            f"{path}: a file of torch.save that cannot be read ({reason}). Next: see that the "
            "download is complete"
        ) from error
    return WeightsFile(_tensors_in(content, path), {})


def _looks_like_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**30


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        tensors = safetensors.torch.load_file(path)
    # A header that lies makes the library raise half a dozen classes, KeyError among them.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: damaged safetensors file: {error}. Next: see that the download is complete"
        ) from error
    return WeightsFile(_sound(tensors, path), metadata)


#: How files begin that are often found under the name of a file of weights.
_KINDS = (
    (
        b"version https://git-lfs",
        "a pointer of Git LFS; fetch its file: `git lfs pull`",
    ),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, which is not read here"),
    (b"\x93NUMPY", "a NumPy array, not a mapping of names to tensors"),
    (b"%PDF", "a PDF document"),
)


def _require_torch_file(path: Path) -> None:
    """Raise unless a file begins as those of ``torch.save`` do, and say what it is instead."""
    with path.open("rb") as file:
        head = file.read(1024)
    what = next((text for mark, text in _KINDS if head.startswith(mark)), None)
    if not head:
        what = "empty"
    elif head.lstrip()[:1] == b"<":
        what = "a web page, probably the error page of a download"
    elif head.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("archive_format") for name in names):
            what = "an exported detector, not a file of weights"
        elif not any(name.endswith("data.pkl") for name in names):
            what = f"an archive of {', '.join(names[:3]) or 'nothing'}, not one of torch.save"
    elif what is None and not head.startswith(b"\x80") and b"ustar" not in head:
        what = "neither a safetensors file nor one of torch.save"
    if what is not None:
        raise WeightsError(f"{path}: is {what}. Next: name a file of weights")


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in _NESTED_UNDER:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                content = inner
                break
        found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if found:
            return _sound(found, path)
        keys = ", ".join(repr(key) for key in list(content)[:8])
        held = f"a mapping with the keys {keys}" if keys else "an empty mapping"
    else:
        held = f"a {type(content).__name__}"
    raise WeightsError(
        f"{path}: no tensors found; it holds {held}, and allowed is a mapping of names to tensors, "
        f"or one under {', '.join(map(repr, _NESTED_UNDER))}"
    )


def _sound(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors, every one of them with all its numbers in the file.

    Raises:
        WeightsError: one is sparse, quantized or without content, or repeats few numbers to look
            large.
    """
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_quantized or tensor.is_nested:
            raise WeightsError(
                f"{path}: tensor {name!r} is {tensor.dtype}, {tensor.layout} on {tensor.device}; "
                "allowed are plain tensors"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(
                f"{path}: tensor {name!r} says that it has {tensor.numel()} elements, but the file "
                f"holds {tensor.untyped_storage().nbytes()} bytes of it"
            )
    return tensors


def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors under this program's names; the file appears whole or not at all.

    Args:
        path: of the safetensors file; its folder must exist.
        tensors: by name; those that share memory are written each.
        metadata: values are stored as JSON text, but for ``format``, which is added.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(own, metadata={**texts, "format": FORMAT})
    # Of a name that fits wherever the file's own does.
    aside = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}.safetensors")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    _flush(path.parent)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
