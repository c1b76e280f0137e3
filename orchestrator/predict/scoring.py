"""``orchestrator evaluate``: a trained detector on a data set, over any number of workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.accelerators import Accelerator, of_this_process
from orchestrator.config.schema import Experiment
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels, require_still_there
from orchestrator.data.readers import split as readers
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.tiling import require_few_tiles
from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.analysis import Analysis, analyse
from orchestrator.evaluation.coco import StreamingEvaluator, write_per_class
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results, read_results, write_results
from orchestrator.predict.identify import match_classes
from orchestrator.predict.loading import LoadedDetector, NamedDetector
from orchestrator.predict.prediction import network_of
from orchestrator.predict.predictor import DetectOptions, detect, to_detections
from orchestrator.storage.atomic import write_atomic

Split: TypeAlias = Literal["train", "val"]

#: Batches a worker is given at a time: few enough that all end at about the same moment.
_TASK_BATCHES = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What :func:`evaluate_detector` found.

    Attributes:
        detections: of all images.
        analysis: their numbers.
        unreadable: a line for each image that could not be decoded; its boxes count as missed.
    """

    detections: Detections
    analysis: Analysis
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """What every worker needs; plain data, picklable.

    ``threads`` belong to the bits: they decide how sums are split.
    """

    loaded: LoadedDetector
    dataset: Dataset
    how: DetectOptions
    batch_size: int
    threads: int
    kind: str


def read_split(experiment: Experiment, split: Split, *, limit: int | None = None) -> Dataset:
    """The annotations of a split, or of its first ``limit`` images."""
    dataset = readers.read_split(experiment.data, getattr(experiment.data, split)).dataset
    return dataset if limit is None else first_images(dataset, limit)


def read_annotations(path: Path) -> Dataset:
    """A COCO file alone, whose images are not looked for."""
    return read_coco(path.parent, path, ReadRules(need_images=False)).dataset


def read_detectors_results(
    path: Path, dataset: Dataset, detector: NamedDetector
) -> tuple[Results, str | None]:
    """A results file that has the category ids of a detector, and what is to be said about it.

    Raises:
        DataError: it is none, or the classes of detector and data set are not the same by name.
    """
    mine, theirs = detector.label_map, dataset.label_map
    if set(mine.names) != set(theirs.names):
        mine.require_equal(theirs, here=str(detector.source), there="the annotations")
    match = match_classes(mine, theirs, here="the detector", there="the annotations")
    if match.note is None:
        return read_results(path, dataset), None
    results = read_results(path, dataset, label_map=mine)
    note = (
        f"{match.note}. Category ids of {path} are taken to be the detector's; if they are those "
        f"of the annotations, leave the detector out: evaluate --predictions {path} --annotations "
        "FILE"
    )
    return replace(results, labels=match.labels[results.labels]), note


def first_images(dataset: Dataset, count: int) -> Dataset:
    """A data set of the first images of another."""
    if count < 1:
        raise ConfigError(f"{count} images: at least one has to be looked at")
    count = min(count, len(dataset))
    boxes = slice(0, int(dataset.offsets[count]))
    return replace(
        dataset,
        files=dataset.files[:count],
        image_ids=dataset.image_ids[:count],
        widths=dataset.widths[:count],
        heights=dataset.heights[:count],
        offsets=dataset.offsets[: count + 1],
        boxes_xywh=dataset.boxes_xywh[boxes],
        labels=dataset.labels[boxes],
        areas=dataset.areas[boxes],
        crowd=dataset.crowd[boxes],
    )


def results_of_first(
    dataset: Dataset, results: Results, count: int | None
) -> tuple[Dataset, Results]:
    """The first images of a data set and what was found in them; None for all."""
    if count is None:
        return dataset, results
    first = first_images(dataset, count)
    keep = np.isin(results.image_ids, first.image_ids)
    return first, Results(
        images=first.image_ids,
        image_ids=results.image_ids[keep],
        labels=results.labels[keep],
        boxes_xywh=results.boxes_xywh[keep],
        scores=results.scores[keep],
    )


def default_batch(experiment: Experiment) -> int:
    """Images of a worker's batch in training: validation then gives the bits training gave."""
    return max(1, experiment.train.batch_size // experiment.cluster.workers)


def evaluate_detector(
    loaded: LoadedDetector,
    dataset: Dataset,
    how: DetectOptions,
    *,
    workers: int = 1,
    threads: int = 1,
    batch_size: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Evaluated:
    """Detect in every image of a data set and score what was found.

    Args:
        loaded: the detector.
        dataset: images and boxes, with the detector's classes.
        how: views and post-processing.
        workers: processes; one works right here, without Ray. The bits do not depend on it.
        threads: CPU threads of each worker.
        batch_size: images at a time; None for that of training.
        on_progress: told the number of images that are done.

    Raises:
        DataError: the data set has other classes than the detector, or no image that can be read.
        ConfigError: more workers than the cluster holds.
    """
    loaded.label_map.require_equal(
        dataset.label_map, here=str(loaded.source), there="the annotations"
    )
    evaluator = StreamingEvaluator(dataset)
    unreadable: list[str] = []
    task = _task(loaded, dataset, how, threads=threads, batch_size=batch_size)
    parts = _in_process(task) if workers == 1 else _on_ray(task, workers)
    done = 0
    for part, bad in parts:
        evaluator.add(part)
        unreadable += bad
        done += len(part.images) + len(bad)
        on_progress(done)
    if unreadable and len(unreadable) == len(dataset):
        raise DataError(f"none of {len(dataset)} images can be read; the first: {min(unreadable)}")
    found = evaluator.detections()
    analysis = analyse(dataset, found, backend=evaluator.backend, curves=evaluator.curves())
    return Evaluated(found, analysis, tuple(sorted(unreadable)))


def detections_of(
    loaded: LoadedDetector, dataset: Dataset, how: DetectOptions
) -> tuple[Detections, list[str]]:
    """Detections in every image of a data set, in this process, and what cannot be read of it.

    Labels are the detector's, whatever the classes of the data set are.
    """
    task = _task(loaded, dataset, how, threads=1, batch_size=None)
    parts = list(_in_process(task))
    found = Detections.merge([part for part, _ in parts])
    return found, [line for _, bad in parts for line in bad]


def _task(
    loaded: LoadedDetector,
    dataset: Dataset,
    how: DetectOptions,
    *,
    threads: int,
    batch_size: int | None,
) -> _Task:
    if how.tiles is not None:
        require_few_tiles(dataset, how.tiles)
    experiment = loaded.resolved.experiment
    size = batch_size or default_batch(experiment)
    return _Task(loaded, dataset, how, size, threads, experiment.cluster.accelerator)


class _Worker:
    """Computes batches of a task, by number."""

    def __init__(self, task: _Task, accelerator: Accelerator) -> None:
        torch.set_num_threads(task.threads)
        self.task = task
        self.network = network_of(task.loaded, accelerator.kind)
        self._some_were_there = False

    def batches(self, numbers: Sequence[int]) -> Iterator[tuple[Detections, list[str]]]:
        """Detections of each batch, and what could not be read; the next one is read meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="images") as pool:
            ahead = [pool.submit(self._read, number) for number in numbers[:1]]
            for place in range(len(numbers)):
                images, ids, bad = ahead.pop().result()
                ahead += [pool.submit(self._read, n) for n in numbers[place + 1 : place + 2]]
                yield self._detect(images, ids), bad

    def run(self, numbers: Sequence[int]) -> list[tuple[Detections, list[str]]]:
        """All parts of a share."""
        return list(self.batches(numbers))

    def _read(self, number: int) -> tuple[list[NDArray[np.uint8]], list[int], list[str]]:
        data, size = self.task.dataset, self.task.batch_size
        images, ids, bad = [], [], []
        for position in range(number * size, min((number + 1) * size, len(data))):
            try:
                images.append(image_pixels(data, position))
            except BadImageError as error:
                if self._some_were_there:
                    require_still_there(data, position)
                bad.append(str(error))
                continue
            self._some_were_there = True
            ids.append(int(data.image_ids[position]))
        return images, ids, bad

    def _detect(self, images: list[NDArray[np.uint8]], ids: list[int]) -> Detections:
        if not images:
            return Detections.merge([])
        found = detect(
            self.network,
            images,
            self.task.how,
            prepare=self.task.loaded.prepare,
            batch_size=self.task.batch_size,
        )
        return to_detections(ids, found)


def _batch_count(task: _Task) -> int:
    return -(-len(task.dataset) // task.batch_size)


def _in_process(task: _Task) -> Iterator[tuple[Detections, list[str]]]:
    with _own_threads():
        worker = _Worker(task, of_this_process(task.kind))
        yield from worker.batches(range(_batch_count(task)))


@contextmanager
def _own_threads() -> Iterator[None]:
    """Leave the process's thread count as it was."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_ray(task: _Task, workers: int) -> Iterator[tuple[Detections, list[str]]]:
    """Parts as the workers finish them, in any order."""
    # Here, so that one process alone starts without Ray.
    from orchestrator.cluster.actor_pool import on_workers
    from orchestrator.runs.reach import images_of

    numbers = list(range(_batch_count(task)))
    share = max(1, min(_TASK_BATCHES, len(numbers) // workers))
    shares = [numbers[i : i + share] for i in range(0, len(numbers), share)]
    cluster = task.loaded.resolved.experiment.cluster
    needed = images_of(task.dataset, "data")
    for parts in on_workers(cluster, _Worker, (task,), shares, workers=workers, needed=needed):
        yield from parts


def write_evaluation(
    folder: Path, results: Results, analysis: Analysis, about: dict[str, Any]
) -> dict[str, Path]:
    """Leave results, numbers by class and the whole analysis in a folder.

    Args:
        folder: made when missing; files of an earlier evaluation are replaced.
        results: what was found.
        analysis: of them.
        about: what was evaluated and how; part of ``evaluation.json``.

    Returns:
        The files by what they hold.
    """
    files = {
        "results": folder / "coco_results.json",
        "per_class": folder / "per_class.csv",
        "analysis": folder / "evaluation.json",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_results(files["results"], results, analysis.label_map)
    write_per_class(files["per_class"], analysis.metrics)
    tree = {"about": about, **analysis.to_json()}
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(files["analysis"], text.encode("utf-8", "backslashreplace"))
    return files
