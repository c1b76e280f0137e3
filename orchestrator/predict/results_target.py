"""The images and classes of an annotation file that predictions are to be filed under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.decode import BadImageError, Decoding, other_size, read_header
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.coco import read_coco_images
from orchestrator.errors import DataError, printable
from orchestrator.predict.identify import identify, match_classes, require_all
from orchestrator.predict.inputs import Picture
from orchestrator.predict.loading import LoadedDetector
from orchestrator.storage.address import is_remote

_THREADS = 16


@dataclass(frozen=True)
class ResultsTarget:
    """What results are written with.

    Attributes:
        image_ids: of each picture, by its key.
        label_map: the detector's classes with the ids they get.
        decoding: how pictures become pixels.
        note: what is to be said about it.
    """

    image_ids: Mapping[str, int]
    label_map: LabelMap
    decoding: Decoding
    note: str | None = None


def target_of(
    pictures: Sequence[Picture], loaded: LoadedDetector, annotations: Path
) -> ResultsTarget:
    """The ids of an annotation file.

    Its boxes are in the orientation that the detector was trained in, ``data.orientation``, so
    pictures are looked at in that one, and one that is not of its annotated size is refused.

    Args:
        pictures: inputs.
        loaded: the detector.
        annotations: COCO file; it needs no annotations.

    Raises:
        DataError: an input is none of its images, or not for certain one of them; a class of the
            detector is none of its categories; a picture is of another size.
    """
    listed = read_coco_images(annotations)
    images = listed.images
    found = identify([picture.key for picture in pictures], images.files, source=str(annotations))
    require_all(found, images.files, source=str(annotations))
    label_map, note = loaded.label_map, None
    if listed.label_map is not None:
        match = match_classes(
            label_map, listed.label_map, here=str(loaded.source), there=str(annotations)
        )
        ids = tuple(listed.label_map.ids[label] for label in match.labels.tolist())
        label_map, note = LabelMap(label_map.names, ids), match.note
    decoding = replace(loaded.pictures, orientation=loaded.resolved.experiment.data.orientation)

    def problem(picture: Picture) -> str:
        if picture.frame is not None or is_remote(picture.path):
            return ""
        at = found.position[picture.key]
        try:
            header = read_header(Path(picture.path))
        except BadImageError:
            # It is skipped, and said, when its turn comes.
            return ""
        size = int(images.heights[at]), int(images.widths[at])
        return other_size(header, size, decoding.orientation)

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = list(pool.map(problem, pictures))
    wrong = [i for i, text in enumerate(problems) if text]
    if wrong:
        first = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(pictures)} inputs are not of the size that {annotations} says; "
            f"{printable(pictures[first].key)} {problems[first]}"
        )
    return ResultsTarget(
        image_ids={key: int(images.ids[at]) for key, at in found.position.items()},
        label_map=label_map,
        decoding=decoding,
        note=note,
    )
