"""A digest of everything a reader looks at, without reading it: equal digest, equal data set.

What decides is content alone; sizes and times of files prove nothing, since a copy, an archive or
a coarse clock gives other content the same ones. Where a format leaves the sizes of images to their
headers, those are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from orchestrator.data.files import MAX_TEXT_BYTES
from orchestrator.data.findings import Problems
from orchestrator.data.readers.build import missing_files
from orchestrator.data.readers.paths import (
    USUAL,
    ReadRules,
    relative_names,
    require_folder,
    split_key,
    stays_below,
)
from orchestrator.data.readers.text_files import fields_of, header_sizes, read_lines
from orchestrator.data.readers.voc import all_voc_files, voc_files
from orchestrator.data.readers.yolo import all_labels, yolo_files
from orchestrator.errors import OrchestratorError, SecurityError
from orchestrator.layouts.files import is_folder
from orchestrator.storage.plain_files import open_regular

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """The annotation files of one split.

    Attributes:
        kind: coco, voc, txt or yolo.
        images: folder of the images.
        annotations: file or folder; see the reader of ``kind``.
        classes: file that names the classes; None where the annotations do.
        splits: annotations of all splits, which name VOC's classes together.
        rules: what they are read by.
    """

    kind: str
    images: Path
    annotations: Path
    classes: Path | None
    splits: tuple[Path, ...] = ()
    rules: ReadRules = USUAL


@dataclass(frozen=True)
class _Inputs:
    """What the result of a reader depends on.

    Attributes:
        texts: files that are read; one that is missing may mean something, too.
        names: of files, where being there or not is what matters.
        sized: image files whose headers are read.
    """

    texts: Iterable[Path]
    names: Iterable[str] = ()
    sized: Iterable[str] = ()


def fingerprint(source: Source) -> str | None:
    """SHA-256, in hex, over the content of all annotations of a split, and how they are read.

    Returns:
        None where the split cannot be read; its reader says why.
    """
    sha = hashlib.sha256(_program().encode())
    try:
        root = require_folder(source.images, what="image folder", key=split_key("images"))
        places = source.kind, root, source.annotations.absolute(), source.classes, source.rules
        for place in places:
            _feed(sha, str(place).encode(errors="surrogateescape"))
        inputs = _INPUTS[source.kind](root, source.annotations, source.rules)
        files = [*inputs.texts] if source.classes is None else [source.classes, *inputs.texts]
        if source.kind == "voc" and source.classes is None:
            files += all_voc_files(source.splits, source.rules)
        for path in files:
            _feed(sha, str(path).encode(errors="surrogateescape"))
            _feed(sha, _content(path))
        for name in inputs.names:
            _feed(sha, name.encode(errors="surrogateescape"))
        sized = relative_names(root, list(inputs.sized))
        if sized:
            # Before any of them is opened, they must be known to lie below the folder.
            missing_files(root, sized, source.annotations, source.rules)
            sizes, findings = header_sizes(root, sized, source.rules.orientation)
            _feed(sha, np.array(sizes, dtype="<i4").tobytes())
            _feed(sha, repr(findings).encode(errors="surrogateescape"))
    except (OrchestratorError, OSError, ValueError):
        return None
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, data: bytes) -> None:
    """With its length, so that no two sequences run together to the same bytes."""
    sha.update(len(data).to_bytes(8, "little"))
    sha.update(data)


def _content(path: Path) -> bytes:
    """Digest of a file; empty where there is none.

    Raises:
        OSError: it cannot be read, is none that a reader would read, or a link to nothing.
    """
    sha = hashlib.sha256()
    try:
        with open_regular(path) as file:
            read = 0
            while chunk := file.read(_CHUNK_BYTES):
                read += len(chunk)
                if read > MAX_TEXT_BYTES:
                    raise OSError(f"more than {MAX_TEXT_BYTES} bytes")
                sha.update(chunk)
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return b""
    return sha.digest()


def _coco(root: Path, annotations: Path, rules: ReadRules) -> _Inputs:
    return _Inputs([annotations])


def _voc(root: Path, annotations: Path, rules: ReadRules) -> _Inputs:
    problems = Problems(str(annotations))
    folder, stems = voc_files(annotations, problems, rules)
    problems.raise_any()
    texts = [folder / f"{stem}.xml" for stem, _ in stems]
    for path in texts:
        if not stays_below(folder, path, follow_links=rules.follow_links):
            raise SecurityError(f"{path} leads out of {folder}")
    return _Inputs(texts, names=[stem for stem, _ in stems])


def _txt(root: Path, annotations: Path, rules: ReadRules) -> _Inputs:
    lines = read_lines(annotations)
    return _Inputs([annotations], sized=[next(fields_of(text)) for _, text in lines])


def _yolo(root: Path, annotations: Path, rules: ReadRules) -> _Inputs:
    problems = Problems(str(annotations))
    labels, files, label_files = yolo_files(root, annotations, problems, rules)
    problems.raise_any()
    texts = [labels / name for name in label_files]
    for path in texts:
        if not stays_below(labels, path, follow_links=rules.follow_links):
            raise SecurityError(f"{path} leads out of {labels}")
    if is_folder(annotations):
        return _Inputs(texts, names=[*files, "", *all_labels(labels, rules)], sized=files)
    return _Inputs([annotations, *texts], names=files, sized=files)


_INPUTS = {"coco": _coco, "voc": _voc, "txt": _txt, "yolo": _yolo}


@cache
def _program() -> str:
    """Digest of the sources that annotations are read by: another version may read otherwise."""
    sha = hashlib.sha256()
    data = Path(__file__).parents[1]
    for folder in (data, data / "readers", data.parent / "layouts"):
        for path in sorted(folder.glob("*.py")):
            _feed(sha, path.relative_to(data.parent).as_posix().encode())
            _feed(sha, path.read_bytes())
    return sha.hexdigest()
