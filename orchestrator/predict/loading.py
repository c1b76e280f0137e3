"""From a run, a checkpoint or a file of weights to a detector that is ready to be used.

Every command after training comes through :func:`load_detector`, so that all of them use the same
weights (the averaged ones, where training kept an average), the same label map and the same way
from an image to the network's input.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from detectors.base import Detector
from detectors.registry import build_detector
from detectors.weights.files import read_weights
from detectors.weights.layouts import unwrap
from orchestrator.checkpoints.codec import (
    STATE_NAME,
    TENSOR_FILES,
    TrainState,
    decode_weights,
    weights_digest,
)
from orchestrator.checkpoints.manifest import MANIFEST_NAME, Manifest, read_verified
from orchestrator.checkpoints.source import checkpoint_of, require_committed, weights_errors
from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.data.augment.protocol import Augment, build_augment
from orchestrator.data.decode import Decoding
from orchestrator.data.files import sha256_of
from orchestrator.data.label_map import LabelMap, read_label_map
from orchestrator.data.readers.split import read_split
from orchestrator.data.tiling import Tiles, tiles_of
from orchestrator.errors import ConfigError, DataError, StorageError, nearest
from orchestrator.runs.identity import experiment_trouble
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import CHECKPOINTS, LABEL_MAP, RESOLVED, require_there
from orchestrator.storage.sealed import UnusableError

log = logging.getLogger(__name__)

_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class NamedDetector:
    """What is known of a detector without its weights.

    Attributes:
        resolved: the experiment it comes from, overrides applied.
        label_map: its classes.
        source: folder or file of the weights.
        run_dir: run folder it belongs to; None for weights from elsewhere.
        step: optimizer steps behind the weights; None when not known.
        averaged: whether these are the averaged weights.
    """

    resolved: ResolvedExperiment
    label_map: LabelMap
    source: Path
    run_dir: Path | None
    step: int | None
    averaged: bool

    @property
    def tiles(self) -> Tiles | None:
        """How images are cut into tiles, as in training; None where they are not."""
        tiles = self.resolved.experiment.data.tiles
        return None if tiles is None else tiles_of(tiles)

    @property
    def title(self) -> str:
        """One line that says what this is."""
        kind = "averaged weights" if self.averaged else "weights"
        step = "" if self.step is None else f" of step {self.step}"
        return f"{self.resolved.experiment.detector.title}, {kind}{step} from {self.source}"


@dataclass(frozen=True, kw_only=True)
class LoadedDetector(NamedDetector):
    """A detector in evaluation mode with everything that belongs to it.

    Attributes:
        model: on the CPU, float32.
        weights_sha256: digest of names, types, shapes and bytes of the model's state.
    """

    model: Detector
    weights_sha256: str

    @property
    def prepare(self) -> Augment:
        """How images are brought to the network's size: as validation did during training."""
        return build_augment(
            self.resolved.experiment.data.augmentation, self.model.input_size
        ).plain()

    @property
    def pictures(self) -> Decoding:
        """How pictures of no data set become pixels: upright, with the levels of training."""
        data = self.resolved.experiment.data
        return Decoding("displayed", data.levels, data.max_pixels)


@dataclass(frozen=True)
class _Weights:
    tensors: Mapping[str, Tensor]
    label_map: LabelMap | None
    run_dir: Path | None
    step: int | None
    averaged: bool


def load_detector(
    source: str | Path,
    *,
    experiment: str | Path | None = None,
    overrides: Sequence[str] = (),
    step: int | None = None,
    averaged: bool | None = None,
) -> LoadedDetector:
    """Load a detector for use.

    Args:
        source: a run folder (its best checkpoint, or its newest if none was scored), a checkpoint
            folder, or a file that :func:`~detectors.weights.files.read_weights` reads.
        experiment: the experiment file; None takes the one in the run folder.
        overrides: ``key.path=value`` each, applied to the experiment.
        step: which checkpoint of a run folder; None for the best.
        averaged: whether to take the averaged weights; None takes them where there are any.

    Raises:
        StorageError: a checkpoint that is damaged, or was made for another detector.
        ConfigError: no experiment given where one is needed, or options that do not fit.
        DataError: nothing there, a file that cannot be read or does not fit, or no label map.
        SecurityError: a file of weights that would run code.
    """
    named, weights = _find(
        source,
        experiment=experiment,
        overrides=overrides,
        step=step,
        averaged=averaged,
        with_weights=True,
    )
    model = build_detector(named.resolved.experiment.detector, num_classes=len(named.label_map))
    _load_state(model, weights.tensors, named.source)
    model.eval()
    return LoadedDetector(
        model=model,
        resolved=named.resolved,
        label_map=named.label_map,
        source=named.source,
        run_dir=named.run_dir,
        step=named.step,
        averaged=named.averaged,
        weights_sha256=weights_digest(
            TrainState(0, dict(model.state_dict()), optimizer={}, ema=None, scalars={})
        ),
    )


def name_detector(
    source: str | Path,
    *,
    experiment: str | Path | None = None,
    overrides: Sequence[str] = (),
    step: int | None = None,
    averaged: bool | None = None,
) -> NamedDetector:
    """What :func:`load_detector` would load, for who needs its classes and no weights.

    Arguments and errors are those of :func:`load_detector`; tensors are neither read nor compared.
    """
    return _find(
        source,
        experiment=experiment,
        overrides=overrides,
        step=step,
        averaged=averaged,
        with_weights=False,
    )[0]


def _find(
    source: str | Path,
    *,
    experiment: str | Path | None,
    overrides: Sequence[str],
    step: int | None,
    averaged: bool | None,
    with_weights: bool,
) -> tuple[NamedDetector, _Weights]:
    path = Path(source)
    require_there(path)
    if step is not None and not (path / CHECKPOINTS).is_dir():
        raise ConfigError(
            f"--step {step}: chooses among the checkpoints of a run, but {path} is "
            "none. Next: leave --step out"
        )
    with weights_errors(path):
        folder = path if path.is_file() else checkpoint_of(path, step=step)
        read = _of_file if path.is_file() else _of_commit
        weights = read(folder, averaged, with_weights=with_weights)
    resolved = _experiment(experiment, overrides, weights.run_dir, folder)
    named = NamedDetector(
        resolved=resolved,
        label_map=weights.label_map or _label_map_of(resolved, folder),
        source=folder,
        run_dir=weights.run_dir,
        step=weights.step,
        averaged=weights.averaged,
    )
    return named, weights


def _of_commit(folder: Path, averaged: bool | None, *, with_weights: bool) -> _Weights:
    """Weights and label map of a checkpoint folder; every byte is compared with its manifest."""
    folder = folder.resolve()
    storage, key = LocalStorage(folder.parent), folder.name
    try:
        manifest = Manifest.from_bytes(
            storage.read_file(f"{key}/{MANIFEST_NAME}", limit=_MAX_MANIFEST_BYTES)
        )
        has_average = TENSOR_FILES["ema"] in manifest.files
        if averaged and not has_average:
            raise StorageError(
                f"{folder}: holds no averaged weights, since it was trained without train.ema. "
                "Next: leave --averaged out"
            )
        group = "ema" if has_average and averaged is not False else "model"
        names = (LABEL_MAP, *((STATE_NAME, TENSOR_FILES[group]) if with_weights else ()))
        missing = [name for name in names if name not in manifest.files]
        if missing:
            raise UnusableError(f"{MANIFEST_NAME} lists no {', '.join(missing)}")
        files = {n: read_verified(storage, key, n, manifest.files[n]) for n in names}
        label_map = _label_map_in(files[LABEL_MAP])
    except UnusableError as error:
        raise StorageError(
            f"{folder}: {error}. Next: use another checkpoint of the run, or copy it again"
        ) from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read ({error})") from error
    run_dir = folder.parent.parent
    inside = folder.parent.name == CHECKPOINTS and (run_dir / RESOLVED).is_file()
    return _Weights(
        tensors=decode_weights(files)[group] if with_weights else {},
        label_map=label_map,
        run_dir=run_dir if inside else None,
        step=manifest.step,
        averaged=group == "ema",
    )


def _label_map_in(content: bytes) -> LabelMap:
    try:
        return LabelMap.from_json(content.decode())
    except (ValueError, DataError) as error:
        raise UnusableError(f"{LABEL_MAP} cannot be read: {error}") from error


def _of_file(path: Path, averaged: bool | None, *, with_weights: bool) -> _Weights:
    """Tensors of a file that is no checkpoint of ours, such as published weights."""
    if averaged is not None:
        raise ConfigError(
            f"{path}: a file of weights holds one set; --averaged and --no-averaged choose within "
            "a checkpoint. Next: leave the option out"
        )
    beside = path.parent / LABEL_MAP
    label_map = read_label_map(beside) if beside.is_file() else None
    # What DistributedDataParallel puts before every name.
    if with_weights and path.with_name(MANIFEST_NAME).is_file():
        require_committed(path, sha256_of(path))
    read = read_weights(path).tensors if with_weights else {}
    tensors = {name.removeprefix("module."): tensor for name, tensor in read.items()}
    return _Weights(tensors, label_map, None, None, False)


def _experiment(
    given: str | Path | None, overrides: Sequence[str], run_dir: Path | None, folder: Path
) -> ResolvedExperiment:
    if given is not None:
        return load_experiment(given, overrides)
    if run_dir is None:
        raise ConfigError(
            f"{folder}: lies in no run folder, so the detector it belongs to is not known. Next: "
            "name the experiment, --experiment EXPERIMENT.yaml"
        )
    resolved = load_experiment(run_dir / RESOLVED, overrides)
    trouble = experiment_trouble(run_dir)
    if trouble is not None:
        log.warning("%s: %s", run_dir, trouble)
    return resolved


def _label_map_of(resolved: ResolvedExperiment, source: Path) -> LabelMap:
    """The classes of the data set of the experiment, for weights that come without any."""
    data = resolved.experiment.data
    root = Path(data.root).resolve()
    split = data.val
    if split.files is not None and not (root / split.files[1]).exists():
        raise StorageError(
            f"{source}: has no {LABEL_MAP} beside it, and the annotations of the experiment, "
            f"{root / split.files[1]}, are not there. Next: put one of the two there"
        )
    return read_split(data, split).dataset.label_map


def _load_state(model: Detector, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Fill a model, and say which tensors do not fit."""
    own = model.state_dict()
    if not own.keys() & tensors.keys():
        tensors = unwrap(tensors)
    lines = []
    for name, tensor in own.items():
        if name not in tensors:
            guess = nearest(name, tensors)
            lines.append(f"  {name}: missing" + (f"; nearest is {guess}" if guess else ""))
        elif (problem := _problem(tensors[name], tensor)) is not None:
            lines.append(f"  {name}: {problem}")
    lines += [f"  {name}: unknown to this detector" for name in tensors if name not in own]
    if lines:
        more = [f"  ... and {len(lines) - 10} more"] if len(lines) > 10 else []
        head = f"{source}: {len(lines)} tensors do not fit the detector of the experiment"
        tail = "name the experiment these weights were trained with: --experiment EXPERIMENT.yaml"
        kind = DataError if source.is_file() else StorageError
        raise kind("\n".join([head, *lines[:10], *more, tail]))
    model.load_state_dict(dict(tensors), strict=True)


def _problem(found: Tensor, wanted: Tensor) -> str | None:
    """Why a tensor cannot stand for that of a model; None where it can."""
    if found.shape != wanted.shape:
        return f"has shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    if found.is_floating_point() != wanted.is_floating_point():
        # Such as whole numbers of a quantised network, which mean nothing without their scales.
        return f"is {found.dtype}, expected {wanted.dtype}"
    return None if bool(found.isfinite().all()) else "holds NaN or infinity"
