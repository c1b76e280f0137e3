"""The ``data`` section: where images and boxes come from and how they are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticKnownError
from typing_extensions import Self

from detectors.config import InputSize, Settings
from orchestrator.config.augmentations import Augmentation, SSDAugmentation
from orchestrator.config.fields import Conflict, Count, Folder, Fraction, Location, Positive, refuse
from orchestrator.config.formats import Format
from orchestrator.storage.address import Place

#: A place that may be left out where shards are named; then it is null.
_Unless: TypeAlias = Annotated[
    Location | None,
    Field(validate_default=True),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


class SplitConfig(Settings):
    """One part of the data set: images and annotations, or shards. Paths are relative to ``root``.

    With all three, the annotations say what the shards must hold: shards of annotations that have
    changed since are refused.

    Attributes:
        images: folder that the file names in the annotations are relative to; with ``data.format``
            coco also ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        annotations: what holds the boxes, by ``data.format``: coco, the JSON file; voc, an image
            set such as ``ImageSets/Main/train.txt``, or a folder of XML files; txt, the text file;
            yolo, a folder of label files, or a text file that lists images.
        shards: folder that ``orchestrator shard`` wrote, a path or ``s3://bucket/prefix``.
    """

    # Before the others, whose checks look at it.
    shards: Location | None = None
    images: _Unless = None
    annotations: _Unless = None

    @property
    def files(self) -> tuple[str, str] | None:
        """``images`` and ``annotations``; None where there are only shards."""
        if self.images is None or self.annotations is None:
            return None
        return self.images, self.annotations

    @field_validator("images", "annotations")
    @classmethod
    def _needed_without_shards(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("shards") is None:
            raise PydanticKnownError("missing")
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        given = {"images": self.images, "annotations": self.annotations}
        if self.files is None:
            refuse(
                Conflict(name, f"required key is missing; {other} needs it")
                for name, other in (("images", "annotations"), ("annotations", "images"))
                if given[other] is not None
            )
        return self


class SourceConfig(Settings):
    """Training images beside those of ``data.train``.

    Attributes:
        images: as of ``data.train``.
        annotations: as of ``data.train``.
        root: folder that the paths are relative to; null for ``data.root``.
        format: of the annotations; null for ``data.format``.
        classes: as ``data.classes``; null for that of ``data``, or of a ``root`` or ``format`` of
            its own for what lies there.
        weight: visits of each of its images in an epoch, on average; 0.5 takes half of them,
            another half each epoch.
        class_map: its classes by name to those of ``data.train``, where their names differ; null
            drops the boxes of a class.
    """

    images: Location
    annotations: Location
    root: Location | None = None
    format: Format | None = None
    classes: Location | None = None
    weight: Positive = 1.0
    class_map: dict[str, str | None] = Field(default_factory=dict)


class TilesConfig(Settings):
    """How large images are cut into tiles, each of which is an image to the network.

    Attributes:
        size: height and width of a tile in pixels; a smaller side of an image is not cut.
        overlap: pixels that neighbouring tiles share at least, below the size: an object no larger
            is whole in one of them.
        inside: share of a box that must lie in a tile to be learnt there; one that lies in it with
            less is not.
    """

    size: InputSize
    overlap: Annotated[int, Field(ge=0)] = 64
    inside: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    @model_validator(mode="after")
    def _tiles_move_on(self) -> Self:
        if self.overlap >= min(self.size):
            message = (
                f"data.tiles.overlap is {self.overlap}, but a tile has {self.size[0]} x "
                f"{self.size[1]} pixels; it must be smaller than both"
            )
            refuse([Conflict("overlap", message)])
        return self


class MixConfig(Settings):
    """Training samples made of several images, before ``augmentation`` is applied to them.

    Attributes:
        mosaic: probability of four images around a point, on twice the size of the input.
        mixup: probability of a second image laid over the first.
        share: weight of the first image in a mixup.
        until_epoch: from this epoch on, counted from 0, both are off; null: never.
    """

    mosaic: Fraction = 0.5
    mixup: Fraction = 0.0
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    until_epoch: Count | None = None


class DataConfig(Settings):
    """The data set.

    Attributes:
        format: of the annotations: COCO JSON (also FiftyOne's ``labels.json``), Pascal VOC, one
            text file of ``path xmin,ymin,xmax,ymax,class ...``, or YOLO.
        root: folder that the paths of ``train`` and ``val`` are relative to, so that one override
            moves the whole set. Where neither of them is given, its layout is recognised and names
            both; a ``data.yaml`` may stand for the folder.
        classes: file with the name of one class a line, a ``data.yaml`` or JSON, for voc, txt and
            yolo; null takes ``classes.txt``, or what yolo has instead, or the names in voc's XML.
            COCO names its classes itself.
        train: images that are learnt from.
        val: images that are evaluated.
        sources: further images that are learnt from, of several data sets; not with shards.
        weight: visits of each image of ``train`` in an epoch, on average.
        repeat_threshold: images with a class that less than this fraction of all training images
            show are visited more often, by the repeat factors of LVIS, such as 0.001; null for
            none.
        augmentation: applied to training images, or a list of several, applied in turn; how the
            last one resizes holds for evaluation as well.
        tiles: cuts images into tiles, for training, evaluation and prediction; null for none.
        mix: makes training samples of several images; null for none.
        crowd: whether crowd regions are training targets (evaluation always ignores them, as COCO
            defines).
        keep_empty: whether images without boxes take part in training, as negatives.
        max_boxes: G, box slots per image in a batch; null takes the largest count in ``train``,
            times the images that ``mix`` makes a sample of.
        max_bad_fraction: images that cannot be decoded are replaced, always by the same neighbour,
            and counted; above this fraction of the set the run stops.
        orientation: whether boxes and sizes belong to the pixels as they are ``stored``, which is
            how COCO is annotated, or to the picture turned by its orientation tag, as it is
            ``displayed`` by most labelling tools.
        levels: of images of more than 8 bits, what becomes black and white: ``full``, the whole
            range of 16 bits; ``used``, for each image the range from its 0.1 % to its 99.9 %
            percentile; or two values, such as ``[7200, 7400]``.
        max_pixels: largest image that is decoded, height times width. It takes 3 bytes of memory a
            pixel and more while it is decoded, also where only tiles of it are looked at.
        follow_links: symbolic links may lead out of the folder of images or labels, file by file,
            as those of DVC and git-annex do. Trust whoever made them.
        prefetch: batches in flight per worker.
        tasks: tasks that read and augment for a worker at a time, on its own node while that has
            CPUs for them; ``auto`` for its part of the cores that the node's workers leave free,
            two at least.
        tasks_on: ``own_node``, so that no batch crosses the network while that node has CPUs; or
            ``any_node``, which takes nodes without workers as readers. ``auto`` then counts the
            free cores of all.
        window: with shards, images among which the order of an epoch is mixed, so that shards are
            read one after the other; null mixes all, as without shards. See docs/data.md.
        order: of an epoch: ``sorted`` sorts a random word of each image, which takes 8 bytes an
            image in every process that reads; ``computed`` computes it place by place from the
            seed, for tens of millions of images. They are different orders.
        lanes: parts of a batch, each of which goes through a part of the shards of its own, so that
            each of as many nodes reads other shards; with ``order: computed`` and a ``window``,
            which they share. See docs/data.md.
        cache: folder of each node, this user's alone, that manifests are kept in and shards of a
            bucket fetched to; null for one below the temporary folder.
        keep_decoded: GiB of each node's ``cache`` for decoded images, so that each is decoded once;
            null keeps none. Worth it for sets that fit, above all in tiles.
    """

    format: Format = "coco"
    root: Location = "."
    classes: Location | None = None
    train: SplitConfig
    val: SplitConfig
    sources: tuple[SourceConfig, ...] = ()
    weight: Positive = 1.0
    repeat_threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    augmentation: Augmentation = SSDAugmentation()
    tiles: TilesConfig | None = None
    mix: MixConfig | None = None
    crowd: Literal["exclude", "include"] = "exclude"
    keep_empty: bool = False
    max_boxes: Count | None = None
    max_bad_fraction: Fraction = 0.01
    orientation: Literal["stored", "displayed"] = "stored"
    levels: Literal["full", "used"] | tuple[float, float] = "full"
    max_pixels: Annotated[int, Field(ge=1, le=2**30)] = 89_478_485
    follow_links: bool = False
    prefetch: Count = 4
    tasks: Count | Literal["auto"] = "auto"
    tasks_on: Literal["own_node", "any_node"] = "own_node"
    window: Count | None = None
    order: Literal["sorted", "computed"] = "sorted"
    lanes: Count = 1
    cache: Folder | None = None
    keep_decoded: Positive | None = None

    def _buckets(self) -> Iterator[Conflict]:
        """Images in a bucket where they cannot be."""
        named = [("train", self.train.images), ("val", self.val.images)]
        remote = [(name, images) for name, images in named if images and "://" in images]
        for name, images in remote:
            place = Place.of(images)
            if not (place.is_remote and place.bucket):
                allowed = "a folder, s3://bucket/prefix or gs://bucket/prefix"
                yield Conflict(
                    f"{name}.images",
                    f"data.{name}.images is {place.plain!r}; allowed are {allowed}",
                )
            elif self.format != "coco":
                yield Conflict(
                    f"{name}.images",
                    f"data.{name}.images is {place.plain}, and the sizes of images in a bucket are "
                    f"taken from the annotations, which data.format {self.format} need not have; "
                    "convert them with orchestrator convert data ... --to coco, or write shards "
                    "with orchestrator shard",
                )
        if self.sources and remote and remote[0][0] == "train":
            message = "data.sources is mixed with files, but data.train.images is in a bucket"
            yield Conflict("sources", f"{message}; copy the images, or write shards of the whole")
        for number, source in enumerate(self.sources):
            if "://" in source.images:
                message = f"data.sources.{number}.images is {Place.of(source.images).plain}"
                yield Conflict(f"sources.{number}.images", f"{message}; allowed is a folder")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.window is not None and self.train.shards is None:
            refuse(
                [
                    Conflict(
                        "window",
                        f"data.window is {self.window}, but data.train.shards names no shards; "
                        "remove data.window, or write shards with orchestrator shard",
                    )
                ]
            )
        if self.lanes > 1 and (self.order != "computed" or self.window is None):
            message = (
                f"data.lanes is {self.lanes}, and lanes go with data.order: computed and a "
                "data.window; write these, or leave data.lanes out"
            )
            refuse([Conflict("lanes", message)])
        visits = self.sources or self.weight != 1.0 or self.repeat_threshold is not None
        if self.order == "computed" and visits:
            message = (
                "data.order: computed visits every image once; leave it out, or data.sources, "
                "data.weight and data.repeat_threshold"
            )
            refuse([Conflict("order", message)])
        if self.sources and self.train.shards is not None:
            message = (
                "data.sources names files, but data.train.shards is given; name the images and "
                "annotations of data.train instead"
            )
            refuse([Conflict("sources", message)])
        refuse(self._buckets())
        for number, source in enumerate(self.sources):
            if (source.format or self.format) == "coco" and source.classes is not None:
                message = (
                    f"data.sources.{number}.classes is {source.classes!r}, but with format coco "
                    "the annotations name the classes; remove it"
                )
                refuse([Conflict("sources", message)])
        if isinstance(self.levels, tuple) and not self.levels[0] < self.levels[1]:
            low, high = self.levels
            message = f"data.levels is [{low:g}, {high:g}]; the first must be below the second"
            refuse([Conflict("levels", message)])
        if self.format == "coco" and self.classes is not None:
            refuse(
                [
                    Conflict(
                        "classes",
                        f"data.classes is {self.classes!r}, but with data.format coco the "
                        "annotations name the classes; remove data.classes",
                    )
                ]
            )
        return self
