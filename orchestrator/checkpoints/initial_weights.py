"""Weights to begin with: converting published files, and ``train.init_from``.

A run reads its initial weights only while it has no checkpoint of its own. They are identified by
the digest of their bytes, so that a file that changes between two starts is noticed, and one that
was moved is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from torch import nn

from detectors.config import DetectorConfig
from detectors.weights.archives import WeightsError
from detectors.weights.files import WeightsFile, read_weights, write_weights
from detectors.weights.fit import Fitted, convert, fit_native, without_classes
from detectors.weights.report import Report
from orchestrator.checkpoints.codec import TENSOR_FILES
from orchestrator.checkpoints.manifest import MANIFEST_NAME, FileRecord, checked_commits, verify
from orchestrator.checkpoints.published import local_path
from orchestrator.checkpoints.source import (
    checkpoint_of,
    is_run,
    require_committed,
    weights_errors,
)
from orchestrator.config.schema import Experiment
from orchestrator.data.files import sha256_of
from orchestrator.data.label_map import LabelMap, read_label_map
from orchestrator.errors import DataError, StorageError
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import LABEL_MAP
from orchestrator.storage.sealed import UnusableError


def convert_file(
    source: str | Path,
    target: str | Path,
    config: DetectorConfig,
    *,
    layout: str | None = None,
    label_map: LabelMap | None = None,
    overwrite: bool = False,
) -> Fitted:
    """Write the weights of a published file under this program's names.

    Args:
        source: what :func:`~detectors.weights.files.read_weights` reads.
        target: safetensors file to write.
        config: of the detector that the weights are for.
        layout: of the source; None recognises it.
        label_map: classes to pick out of the published ones; None takes all of them.
        overwrite: replace ``target`` if it exists.

    Raises:
        DataError: the source cannot be read or none of it fits, or the target exists.
        StorageError: the target cannot be written.
        SecurityError: the source holds more than tensors.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists already. Next: name another file, or pass --overwrite")
    if not target.absolute().parent.is_dir():
        raise DataError(f"{target.absolute().parent}: no such folder to write {target.name} to")
    names = None if label_map is None else label_map.names
    with weights_errors(source, setting="SRC"):
        file = read_weights(source)
        fitted = convert(file.tensors, config, layout=layout, class_names=names)
    metadata: dict[str, Any] = {
        "detector": config.model_dump(mode="json"),
        "layout": fitted.report.layout,
        "source_sha256": sha256_of(Path(source)),
        "num_classes": fitted.num_classes,
        "class_names": fitted.class_names,
    }
    try:
        write_weights(target, fitted.tensors, metadata)
    except OSError as error:
        raise StorageError(
            f"DST: {target} cannot be written ({error.strerror}). Next: name another place"
        ) from error
    return fitted


@dataclass(frozen=True)
class InitialWeights:
    """A file that a run begins with.

    Attributes:
        path: absolute, of the tensors; the folder of the checkpoint for a ``state``.
        sha256: of its bytes, in hex; of what its manifest says for a ``state``.
        kind: ``commit`` for weights of a checkpoint of a run, ``state`` for all that a checkpoint
            holds (:mod:`orchestrator.checkpoints.other_run`), ``file`` for anything else.
    """

    path: str
    sha256: str
    kind: Literal["commit", "file", "state"]


def find_initial(location: str, known: str | None = None) -> InitialWeights:
    """The file that ``train.init_from`` names, and its digest.

    Args:
        location: a file of weights, published ones by name (see
            :mod:`orchestrator.checkpoints.published`), a checkpoint folder of a run, or a run
            folder; see :func:`~orchestrator.checkpoints.source.checkpoint_of`. Of a checkpoint the
            moving average is taken where there is one, as in evaluation.
        known: digest of the weights that were found here before. A run that has gone on since may
            call another checkpoint the best; this one is taken as long as it is there.

    Raises:
        DataError: there is nothing, or no checkpoint that can be used.
    """
    path = local_path(location).absolute()
    with weights_errors(path, setting="train.init_from"):
        if not path.is_dir():
            beside = path.with_name(MANIFEST_NAME).is_file() and path.name in TENSOR_FILES.values()
            digest = sha256_of(path)
            if beside:
                require_committed(path, digest)
            return InitialWeights(str(path), digest, "commit" if beside else "file")
        try:
            commit = _with_weights(path, known) or checkpoint_of(path)
            real = commit.resolve()  # It may be a link to one, such as one called best.
            files = verify(LocalStorage(real.parent), real.name, renamed=True).files
        except (UnusableError, StorageError) as error:
            raise WeightsError(f"{path}: {error}") from error
        name = _chosen(files)
        return InitialWeights(str(commit / name), files[name].sha256, "commit")


def _chosen(files: Mapping[str, FileRecord]) -> str:
    """Which of a checkpoint's files is begun with."""
    return TENSOR_FILES["ema"] if TENSOR_FILES["ema"] in files else TENSOR_FILES["model"]


def _with_weights(path: Path, known: str | None) -> Path | None:
    """The checkpoint of a run that has these weights; None without any."""
    if known is None or not is_run(path):
        return None
    for commit in checked_commits(LocalStorage(path)):
        files = commit.manifest.files
        if files[_chosen(files)].sha256 == known:
            return Path(commit.path)
    return None


@dataclass(frozen=True)
class Loaded:
    """Initial weights, fitted to the network of an experiment.

    Attributes:
        fitted: the tensors and the report.
        source: where they come from.
        classes: lines that say whether the classes are those of the experiment, both lists of
            them side by side when they are not; empty if the file has none.
    """

    fitted: Fitted
    source: InitialWeights
    classes: tuple[str, ...]

    @property
    def report(self) -> Report:
        """What became of every tensor."""
        return self.fitted.report

    def headline(self) -> str:
        """One line: file, layout, counts."""
        return f"{self.source.path} (sha256 {self.source.sha256[:16]}): {self.report.summary()}"

    def text(self) -> str:
        """Everything, for the event log."""
        return "\n".join(
            [self.headline(), *self.report.advice, *self.classes, *self.report.lines()]
        )

    def put_into(self, model: nn.Module) -> None:
        """Overwrite the tensors of ``model`` that were taken; the others stay as they are."""
        model.load_state_dict(self.fitted.tensors, strict=False)


def load_initial(source: InitialWeights, experiment: Experiment, label_map: LabelMap) -> Loaded:
    """Read initial weights for the detector and the classes of an experiment.

    Class-dependent tensors are taken only if the classes they were trained on are, by name and in
    order, those of ``label_map``. Ids do not matter: they belong to the data set.

    Raises:
        DataError: the file cannot be read, has changed since its digest was taken, or does not
            fit.
        SecurityError: the file holds more than tensors.
    """
    path, config = Path(source.path), experiment.detector
    with weights_errors(path, setting="train.init_from"):
        found = sha256_of(path)
        if found != source.sha256:
            raise WeightsError(
                f"{path} has sha256 {found[:16]}, but the run was started with "
                f"{source.sha256[:16]}. Next: see that all machines have the same file"
            )
        file = read_weights(path)
        names = _class_names(file, source)
        if file.is_native or source.kind == "commit":
            fitted = fit_native(
                file.tensors,
                config,
                num_classes=len(label_map),
                keep_classes=names == label_map.names,
            )
            has_classes = names is not None or file.value("num_classes")
        else:
            fitted = convert(file.tensors, config, num_classes=len(label_map))
            names, has_classes = fitted.class_names, fitted.num_classes is not None
            if has_classes and names != label_map.names:
                fitted = without_classes(fitted, config, num_classes=len(label_map))
    classes = _compare(names, label_map.names) if has_classes else []
    return Loaded(fitted, source, tuple(classes))


def _class_names(file: WeightsFile, source: InitialWeights) -> tuple[str, ...] | None:
    """Classes of a checkpoint or of a converted file, if they are known."""
    if source.kind == "commit":
        return read_label_map(Path(source.path).with_name(LABEL_MAP)).names
    names = file.value("class_names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise WeightsError(f"its class_names are {names!r}, no list of names")
    return None if names is None else tuple(names)


def _compare(there: Sequence[str] | None, here: Sequence[str]) -> list[str]:
    """What to say about two lists of classes."""
    if there is not None and tuple(there) == tuple(here):
        return [f"classes: the same {len(here)}, class-dependent tensors are taken"]
    lines = ["classes differ, class-dependent tensors are initialised anew"]
    if there is None:
        lines.append("  the file does not say which classes it was trained on")
    for label, (old, new) in enumerate(zip_longest(there or (), here, fillvalue="-")):
        mark = "  " if old == new else "! "
        lines.append(f"  {mark}label {label}: {old:<24} {new}")
    return lines
