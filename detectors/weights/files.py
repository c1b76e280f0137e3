"""Files of weights: safetensors, and foreign pickles of which only the tensors are read."""

from __future__ import annotations

import json
import os
import pickle
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detectors.weights.mindspore import looks_like_mindspore, read_mindspore

#: Value of the metadata key ``format`` of files that :func:`write_weights` makes.
FORMAT = "detection-orchestrator weights 1"

#: Where training programs keep the tensors inside what they save (mmdetection, torchvision's
#: references, Lightning and many scripts).
_NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net")


class WeightsError(ValueError):
    """The file cannot be read as weights, or its weights are not those of the network."""


class UnsafeWeightsError(WeightsError):
    """The file asks for more than tensors: reading it would run code from it."""


class WeightsFile(NamedTuple):
    """Content of a file.

    Attributes:
        tensors: by the names the file uses, on the CPU.
        metadata: of a safetensors file; empty for others.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def is_native(self) -> bool:
        """Whether this program wrote it, under its own names."""
        return self.metadata.get("format") == FORMAT


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file of tensors without running anything from it.

    Args:
        path: a safetensors file, a checkpoint of MindSpore, or what ``torch.save`` made of a
            mapping of tensors, in either of its formats, also one level down under
            ``state_dict``, ``model``, ``model_state_dict`` or ``net``.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeWeightsError: its pickle names something else than tensors and plain values.
        WeightsError: it is neither kind of file, or holds no tensors.
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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines()
        raise UnsafeWeightsError(
            f"{path}: the file holds more than tensors and plain values"
            f"{': ' + reason[0] if reason else ''}. Reading it would run code from it, which is "
            "not done. Next: ask its author for a safetensors file or a plain state dict"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{path}: neither a safetensors file nor one that torch.save made "
            f"({str(error).splitlines()[0]}). Next: see that the download is complete"
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
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged safetensors file: {error}") from error
    return WeightsFile(tensors, metadata)


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in _NESTED_UNDER:
            inner = content.get(key)
            if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                content = inner
                break
        found = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if found:
            return found
        keys = ", ".join(repr(key) for key in list(content)[:8])
        held = f"a mapping with the keys {keys}" if keys else "an empty mapping"
    else:
        held = f"a {type(content).__name__}"
    raise WeightsError(
        f"{path}: no tensors found; it holds {held}, and allowed is a mapping of names to tensors, "
        f"or one under {', '.join(map(repr, _NESTED_UNDER))}"
    )


def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors under this program's names; the file appears whole or not at all.

    Args:
        path: of the safetensors file; its folder must exist.
        tensors: by name; those that share memory are written each.
        metadata: values are stored as JSON text, but for ``format``, which is added.
    """
    path = Path(path)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        safetensors.torch.save_file(own, aside, metadata={**texts, "format": FORMAT})
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
