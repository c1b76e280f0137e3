"""``orchestrator predict``: detections in any number of pictures, resumed where it was killed.

Pictures are cut into shares. Each finished share is a file in a folder beside the output, put there
in one piece, so a share is there or not, and the same command again does the missing ones. When all
are there they become the output, in the order of the pictures, and the folder goes away, as it does
where a start ends before the first share. What is written does not depend on the number of workers
or of starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detectors.config import PostprocessConfig
from detectors.structures import ImageDetections
from orchestrator.accelerators import Accelerator, of_this_process
from orchestrator.data.decode import BadImageError, Decoding, read_header
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError
from orchestrator.pages.drawing import DISPLAY_LIMIT, DISPLAY_SCORE
from orchestrator.predict.inputs import UPRIGHT_PICTURES, Picture, digest_of, read_pictures
from orchestrator.predict.loading import LoadedDetector
from orchestrator.predict.predictor import DetectOptions, Network, TorchNetwork, detect
from orchestrator.storage.address import is_remote
from orchestrator.storage.atomic import write_atomic

log = logging.getLogger(__name__)

#: Batches of one share: what a kill costs at most, in each worker.
_SHARE_BATCHES = 8
#: Headers that are read at a time.
_THREADS = 16
_JOB_FILE = "job.json"


@dataclass(frozen=True)
class Prediction:
    """One picture's detections, as they are kept.

    Attributes:
        key: of the picture.
        height, width: in pixels; 0 when it could not be read.
        boxes: xyxy.
        labels, scores: of each box, best first.
        problem: why it could not be read; None when it could.
    """

    key: str
    height: int
    width: int
    boxes: list[list[float]]
    labels: list[int]
    scores: list[float]
    problem: str | None = None


@dataclass(frozen=True)
class PredictJob:
    """What is to be predicted and how; plain data, picklable."""

    loaded: LoadedDetector
    how: DetectOptions
    pictures: tuple[Picture, ...]
    batch_size: int
    threads: int
    decoding: Decoding = UPRIGHT_PICTURES

    @property
    def share(self) -> int:
        """Pictures of a share."""
        return self.batch_size * _SHARE_BATCHES

    @property
    def shares(self) -> int:
        """How many shares there are."""
        return -(-len(self.pictures) // self.share)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the output is a function of."""
        experiment, tiles = self.loaded.resolved.experiment, self.how.tiles
        device = experiment.cluster.accelerator
        parts = {
            "weights": self.loaded.weights_sha256,
            "label_map": self.loaded.label_map.to_json(),
            # Its priors, and how they are decoded, are no weights.
            "detector": experiment.detector.model_dump(mode="json"),
            "augmentation": experiment.data.augmentation.model_dump(mode="json"),
            "precision": experiment.train.precision,
            "device": of_this_process(device).kind if device == "auto" else device,
            "postprocess": self.how.postprocess.model_dump(mode="json"),
            "views": [self.how.views.scales, self.how.views.flip],
            "fusion": [self.how.fusion, self.how.fusion_iou],
            "tiles": None if tiles is None else [tiles.size, tiles.overlap],
            "pictures": digest_of(self.pictures),
            "decoding": self.decoding.__dict__,
            "batch": self.batch_size,
            "threads": self.threads,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def work_folder(output: Path) -> Path:
    """Where the finished shares of an output are kept."""
    return output.with_name(f"{output.name}.parts")


@contextmanager
def predicted(
    job: PredictJob,
    output: Path,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[list[Prediction]]:
    """Predictions of every picture, in order, for the block that writes them.

    What an earlier start finished is gone on with. If this one fails, in the block or before, what
    is finished stays beside the output, which is said.

    Args:
        job: what to do.
        output: file that the result is going to be; finished shares are kept beside it until the
            block ends.
        workers: processes; one works right here, without Ray.
        on_progress: told the number of pictures that are done, from the start on.

    Raises:
        ConfigError: the shares beside ``output`` belong to another prediction, or a picture would
            be cut into too many tiles.
        DataError: not one picture could be read.
    """
    _require_few_tiles(job)
    folder = _claim(job, output)
    try:
        yield _all_of(job, folder, workers, on_progress)
    except BaseException:
        kept = len(list(folder.glob("part-*.json")))
        if kept:
            log.warning(
                "%s: holds %d of %d parts of this prediction, after which the same command goes "
                "on; to begin anew, remove that folder",
                folder.parent,
                kept,
                job.shares,
            )
        else:
            shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    shutil.rmtree(folder.parent, ignore_errors=True)


def _all_of(
    job: PredictJob, folder: Path, workers: int, on_progress: Callable[[int], None]
) -> list[Prediction]:
    finished = {number: _read_part(job, folder, number) for number in range(job.shares)}
    missing = [number for number, part in finished.items() if part is None]
    done = len(job.pictures) - sum(len(_share_of(job, number)) for number in missing)
    on_progress(done)
    make = _in_process if workers == 1 else _on_ray
    for number, predictions in make(job, missing, workers):
        trees = [one.__dict__ for one in predictions]
        write_atomic(_part(folder, number), json.dumps(trees, allow_nan=False).encode())
        finished[number] = predictions
        done += len(_share_of(job, number))
        on_progress(done)
    found = [one for part in finished.values() for one in part or ()]
    if all(one.problem is not None for one in found):
        # Going on would say the same, also of pictures that can be read by then.
        shutil.rmtree(folder)
        raise DataError(f"none of {len(found)} pictures can be read; the first: {found[0].problem}")
    return found


def _require_few_tiles(job: PredictJob) -> None:
    """Refuse tiles without number before the first image is decoded, by the headers of files."""
    tiles = job.how.tiles
    if tiles is None:
        return
    files = [one for one in job.pictures if one.frame is None and not is_remote(one.path)]

    def size(picture: Picture) -> tuple[int, int]:
        try:
            header = read_header(Path(picture.path))
        except BadImageError:
            return 0, 0  # It is skipped, and said, when its turn comes.
        return header.size(job.decoding.orientation)

    with ThreadPoolExecutor(_THREADS) as pool:
        for picture, (height, width) in zip(files, pool.map(size, files), strict=True):
            if height * width <= job.decoding.max_pixels:
                tiles.require_few(height, width, picture.key)


def _claim(job: PredictJob, output: Path) -> Path:
    """The folder for the parts of this prediction; it belongs to the one digest it is named by.

    What is left where removing the parts was cut off can then slip no part into another prediction.
    """
    folder = work_folder(output)
    digest = job.digest
    owner = folder / _JOB_FILE
    if not owner.is_file():
        write_atomic(owner, json.dumps({"digest": digest}).encode())
    elif _owner_of(owner) != digest:
        raise ConfigError(
            f"{folder}: holds parts of another prediction: other weights, options or pictures. "
            "Next: remove that folder, or choose another --output"
        )
    return folder / digest[:16]


def _owner_of(file: Path) -> str | None:
    try:
        tree = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return tree.get("digest") if isinstance(tree, dict) else None


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.json"


def _read_part(job: PredictJob, folder: Path, number: int) -> list[Prediction] | None:
    """A finished share; None where it is not there, or is damaged and to be done again."""
    try:
        part = [Prediction(**tree) for tree in json.loads(_part(folder, number).read_bytes())]
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    keys = [picture.key for picture in _share_of(job, number)]
    return part if [one.key for one in part] == keys else None


def _share_of(job: PredictJob, number: int) -> Sequence[Picture]:
    return job.pictures[number * job.share : (number + 1) * job.share]


class ShareWorker:
    """Predicts shares; made once in each process."""

    def __init__(self, job: PredictJob, accelerator: Accelerator | None = None) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.network = network_of(job.loaded, None if accelerator is None else accelerator.kind)

    def run(self, number: int) -> tuple[int, list[Prediction]]:
        """Do a share; its number, and what was found in its pictures."""
        return number, list(self._predictions(_share_of(self.job, number)))

    def _predictions(self, pictures: Sequence[Picture]) -> Iterator[Prediction]:
        size = self.job.batch_size
        read = read_pictures(pictures, self.job.decoding)
        for start in range(0, len(pictures), size):
            batch = [next(read) for _ in pictures[start : start + size]]
            images = []
            for picture, pixels in batch:
                if not isinstance(pixels, BadImageError):
                    if self.job.how.tiles is not None:
                        height, width, _ = pixels.shape
                        self.job.how.tiles.require_few(height, width, picture.key)
                    images.append(pixels)
            found = iter(self._detect(images))
            for picture, pixels in batch:
                if isinstance(pixels, BadImageError):
                    yield Prediction(picture.key, 0, 0, [], [], [], str(pixels))
                else:
                    yield kept(picture.key, pixels.shape[0], pixels.shape[1], next(found))

    def _detect(self, images: list[Any]) -> list[ImageDetections]:
        if not images:
            return []
        prepare, batch = self.job.loaded.prepare, self.job.batch_size
        return detect(self.network, images, self.job.how, prepare=prepare, batch_size=batch)


def network_of(loaded: LoadedDetector, kind: str | None = None) -> Network:
    """A detector on a device of this process, in the precision of its experiment, or else in fp32.

    Args:
        loaded: the detector.
        kind: of device; None for that of the experiment.
    """
    experiment = loaded.resolved.experiment
    accelerator = of_this_process(kind or experiment.cluster.accelerator)
    precision = accelerator.detecting_precision(experiment.train.precision)
    return TorchNetwork(loaded.model, accelerator, precision)


def kept(key: str, height: int, width: int, found: ImageDetections) -> Prediction:
    """Detections in a picture as they are written down, best first."""
    order = torch.argsort(found.scores, descending=True, stable=True)
    return Prediction(
        key=key,
        height=height,
        width=width,
        boxes=found.boxes[order].tolist(),
        labels=found.labels[order].tolist(),
        scores=found.scores[order].tolist(),
    )


def _in_process(
    job: PredictJob, numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, list[Prediction]]]:
    if numbers:
        yield from map(ShareWorker(job).run, numbers)


def _on_ray(
    job: PredictJob, numbers: Sequence[int], workers: int
) -> Iterator[tuple[int, list[Prediction]]]:
    """Shares as workers on the cluster finish them."""
    if not numbers:
        return
    # Here, so that one process alone starts without Ray.
    from orchestrator.cluster.actor_pool import on_workers
    from orchestrator.cluster.survey import Needed

    cluster = job.loaded.resolved.experiment.cluster
    ends = {job.pictures[0].path, job.pictures[-1].path}
    needed = [
        Needed("images", str(Path(path).absolute())) for path in sorted(ends) if not is_remote(path)
    ]
    yield from on_workers(cluster, ShareWorker, (job,), numbers, workers=workers, needed=needed)


def for_display(
    postprocess: PostprocessConfig, overridden: Collection[str] = ()
) -> PostprocessConfig:
    """Post-processing that keeps what is worth looking at.

    Args:
        postprocess: of the experiment; what it leaves out stays out.
        overridden: fields that the user has set by hand, which are taken as they are.
    """
    limit = postprocess.max_per_image
    chosen = {
        "score_threshold": max(postprocess.score_threshold, DISPLAY_SCORE),
        "max_per_image": DISPLAY_LIMIT if limit is None else min(limit, DISPLAY_LIMIT),
    }
    shown = postprocess.model_copy(
        update={name: value for name, value in chosen.items() if name not in overridden}
    )
    return holding_threshold(shown, overridden)


def holding_threshold(
    postprocess: PostprocessConfig, overridden: Collection[str] = ()
) -> PostprocessConfig:
    """Post-processing whose score threshold also holds for scores that soft suppression lowers.

    Args:
        postprocess: with the threshold; hard suppression lowers no score.
        overridden: as of :func:`for_display`.
    """
    if postprocess.nms == "hard" or "soft_score_threshold" in overridden:
        return postprocess
    lowest = max(postprocess.soft_score_threshold, postprocess.score_threshold)
    return postprocess.model_copy(update={"soft_score_threshold": lowest})


def to_seed_json(found: Sequence[Prediction], label_map: LabelMap) -> dict[str, Any]:
    """An object by path of the picture, as ModelZoo's RetinaNet-SpineNet ``infer`` writes it.

    ``category_id`` is the data set's own, where the original writes the word "unknown". Pictures
    that could not be read are left out. Coordinates are rounded to thousandths of a pixel and
    scores to six digits; what is to be scored keeps every digit in :func:`to_coco_results`.
    """
    return {
        one.key: {
            "height": one.height,
            "width": one.width,
            "predictions": [
                {
                    "bbox": {
                        "x_min": round(box[0], 3),
                        "y_min": round(box[1], 3),
                        "width": round(box[2] - box[0], 3),
                        "height": round(box[3] - box[1], 3),
                    },
                    "class": {
                        "label": label,
                        "category_id": label_map.ids[label],
                        "name": label_map.names[label],
                    },
                    "score": round(score, 6),
                }
                for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
            ],
        }
        for one in found
        if one.problem is None
    }


def to_coco_results(
    found: Sequence[Prediction], label_map: LabelMap, image_ids: Mapping[str, int]
) -> list[dict[str, Any]]:
    """COCO results entries.

    Args:
        found: predictions.
        label_map: of the detector, with the ids that are written.
        image_ids: id of each picture by its key.
    """
    return [
        {
            "image_id": image_ids[one.key],
            "category_id": label_map.ids[label],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for one in found
        if one.problem is None
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
