"""Every annotation format behind one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.data.bucket_images import bucket_images, list_images
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import Decoding
from orchestrator.data.decoded_cache import DecodedCache
from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.mixture import MixedSource, mix_sources
from orchestrator.data.readers.annotation_cache import read_digested
from orchestrator.data.readers.build import missing_images
from orchestrator.data.readers.classes import class_file, read_classes
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.coco_oddities import IGNORED_REGION
from orchestrator.data.readers.fingerprint import Source
from orchestrator.data.readers.lookalikes import Lookalikes
from orchestrator.data.readers.paths import ReadRules, check_names, missing
from orchestrator.data.readers.plugins import load_reader
from orchestrator.data.readers.text_files import UNREADABLE_IMAGE
from orchestrator.data.readers.txt import read_txt
from orchestrator.data.readers.voc import read_voc, voc_classes
from orchestrator.data.readers.yolo import read_yolo
from orchestrator.data.shards.split import read_shards, require_same
from orchestrator.errors import ConfigError, DataError
from orchestrator.layouts.files import is_file, is_folder
from orchestrator.layouts.layout import FORMATS
from orchestrator.storage.address import Place, is_remote

if TYPE_CHECKING:
    # The schema knows every detector and so imports torch, which no data task needs.
    from orchestrator.config.schema import DataConfig, SourceConfig, SplitConfig

#: Whether something of a kind is at a path.
Kind: TypeAlias = Callable[[Path], bool]

#: Readers of the formats that keep class names in a file of their own.
_LISTED: dict[str, Callable[[Path, Path, LabelMap, ReadRules], ReadResult]] = {
    "voc": read_voc,
    "txt": read_txt,
    "yolo": read_yolo,
}


def read_split(config: DataConfig, split: SplitConfig, *, keep: bool = False) -> ReadResult:
    """Read the images and boxes of one split.

    Annotations are not parsed again where a manifest of these very files is kept.

    Args:
        config: the ``data`` section.
        split: its ``train`` or ``val``.
        keep: keep a manifest; see :mod:`orchestrator.data.readers.annotation_cache`.

    Raises:
        DataError: the split is missing or malformed, too many of its images had to be left out, or
            its shards are of other annotations.
        SecurityError: a path leads out of the image folder.
    """
    root = Path(config.root).resolve()
    annotated = None
    if split.files is not None:
        images, annotations = split.files
        source = Source(
            kind=config.format,
            # Of images in a bucket the reader sees nothing but their names.
            images=root if is_remote(images) else root / images,
            annotations=root / annotations,
            classes=class_file(config.format, root, config.classes),
            splits=tuple(
                root / one.annotations
                for one in (config.train, config.val)
                if one.annotations is not None
            ),
            rules=ReadRules(
                orientation=config.orientation,
                follow_links=config.follow_links,
                need_images=not is_remote(images),
            ),
        )
        if source.kind in FORMATS:
            annotated = read_digested(source, parse, cache=config.cache, keep=keep)
        else:
            # What the reader of another package looks at is not known here, so nothing is kept.
            annotated = parse(source)
        if is_remote(images):
            annotated = _in_bucket(annotated, images, source.annotations)
        _refuse_too_many_left_out(annotated, config.max_bad_fraction, source.annotations)
        _refuse_learning_from_ignored(annotated, config, source.annotations)
    if split.shards is None:
        assert annotated is not None, "the schema requires one of the two"
        return _decoded_so(annotated, config)
    remote = "://" in split.shards
    location = split.shards if remote else str(root / split.shards)
    sharded = read_shards(location, cache=config.cache)
    if annotated is not None:
        require_same(sharded.dataset, annotated.dataset)
        sharded = replace(annotated, dataset=sharded.dataset)
    return _decoded_so(sharded, config)


def _in_bucket(result: ReadResult, location: str, annotations: Path) -> ReadResult:
    """The split, its images looked for below an address.

    Raises:
        DataError: none of them is there.
        SecurityError: a name leads out of the place.
        StorageError: the store does not answer.
    """
    data, there = result.dataset, list_images(location)
    where = Place.of(location).plain
    check_names(where, data.files)
    missing = [index for index, name in enumerate(data.files) if not there.get(name, (0, 0))[0]]
    findings = missing_images(missing, data.files, annotations, where, lambda: Lookalikes(there))
    images = bucket_images(location, data.files, there)
    data = replace(data, root=where, bucket=images)
    return replace(result, dataset=data, findings=(*result.findings, *findings))


def read_splits(config: DataConfig) -> tuple[ReadResult, ReadResult]:
    """Both splits, as :func:`read_split` reads each.

    Raises:
        DataError: files that the experiment names are missing, all of which are listed; or as for
            one split.
        SecurityError: a path leads out of the image folder.
    """
    require_places(config)
    return read_training(config), read_split(config, config.val)


def read_training(config: DataConfig, *, keep: bool = False) -> ReadResult:
    """All images that are learnt from: those of ``train``, and behind them those of ``sources``.

    Args:
        config: the ``data`` section.
        keep: as of :func:`read_split`.

    Raises:
        DataError: as :func:`read_split`, or a class of a source that ``train`` does not have.
        SecurityError: a path leads out of an image folder.
    """
    main = read_split(config, config.train, keep=keep)
    if not config.sources:
        return main
    sources, findings = [], list(main.findings)
    for number, source in enumerate(config.sources):
        own = _section_of(config, source)
        read = read_split(own, own.train, keep=keep)
        name = f"data.sources.{number}"
        findings += [
            replace(one, examples=tuple(f"{name}: {place}" for place in one.examples))
            for one in read.findings
        ]
        sources.append(MixedSource(read.dataset, source.class_map, name))
    mixed = mix_sources(main.dataset, sources)
    if not config.keep_empty:
        _refuse_sources_without_boxes(mixed, sources, with_crowd=config.crowd == "include")
    return ReadResult(mixed, tuple(findings), main.manifest, main.unkept)


def _refuse_sources_without_boxes(
    mixed: Dataset, sources: Sequence[MixedSource], *, with_crowd: bool
) -> None:
    """Refuse a source of which nothing would be learnt.

    Raises:
        DataError: there is one.
    """
    ends = [*(first for first, _ in mixed.parts[1:]), len(mixed)]
    for source, (first, _), end in zip(sources, mixed.parts, ends, strict=True):
        rows = slice(int(mixed.offsets[first]), int(mixed.offsets[end]))
        usable = rows.stop - rows.start if with_crowd else int((~mixed.crowd[rows]).sum())
        if not usable:
            raise DataError(
                f"{source.name}: no box to learn from in its {end - first} images, whose classes "
                f"are {', '.join(source.data.label_map.names[:20])}\nlook at its annotations and "
                f"{source.name}.class_map, leave it out, or set data.keep_empty to learn from "
                "images without boxes"
            )


def _section_of(config: DataConfig, source: SourceConfig) -> DataConfig:
    """The section as it would be for the data set of a source."""
    split = config.train.model_copy(
        update={"images": source.images, "annotations": source.annotations, "shards": None}
    )
    return config.model_copy(
        update={
            "root": config.root if source.root is None else source.root,
            "format": source.format or config.format,
            "classes": config.classes if source.root is None and source.format is None else None,
            **({} if source.classes is None else {"classes": source.classes}),
            "train": split,
            "val": split,
            "sources": (),
        }
    )


def require_places(config: DataConfig) -> None:
    """Refuse an experiment that names files and folders which are not there, with all of them.

    Raises:
        DataError: something is missing.
    """
    root = Path(config.root).resolve()
    problems: list[str] = []

    def look(place: Path | None, what: str, key: str, kinds: Sequence[Kind]) -> None:
        if place is not None and not any(kind(place) for kind in kinds):
            problems.append(missing(place, what=what, key=key))

    look(class_file(config.format, root, config.classes), "list of classes", "classes", [is_file])
    for name, split in (("train", config.train), ("val", config.val)):
        if split.files is not None:
            images, annotations = split.files
            if not is_remote(images):
                look(root / images, "image folder", f"{name}.images", [is_folder])
            kinds = [is_file] if config.format in ("coco", "txt") else [is_file, is_folder]
            look(root / annotations, "annotations", f"{name}.annotations", kinds)
        if split.shards is not None and "://" not in split.shards:
            look(root / split.shards, "folder of shards", f"{name}.shards", [is_folder])
    for number, source in enumerate(config.sources):
        own, key = _section_of(config, source), f"sources.{number}"
        root = Path(own.root).resolve()
        look(class_file(own.format, root, own.classes), "classes", f"{key}.classes", [is_file])
        look(root / source.images, "image folder", f"{key}.images", [is_folder])
        kinds = [is_file] if own.format in ("coco", "txt") else [is_file, is_folder]
        look(root / source.annotations, "annotations", f"{key}.annotations", kinds)
    if len(problems) == 1:
        # The reader says it with a hint of its own.
        return
    if problems:
        raise DataError(
            f"{len(problems)} files and folders of the data set are missing\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\ncorrect these keys, or point data.root at the folder that holds the data set: "
            "data.root=FOLDER"
        )


def _decoded_so(result: ReadResult, config: DataConfig) -> ReadResult:
    decoding = Decoding(config.orientation, config.levels, config.max_pixels)
    keep = config.keep_decoded
    decoded = None if keep is None else DecodedCache(config.cache, int(keep * 2**30))
    dataset = replace(result.dataset, decoding=decoding, decoded=decoded)
    return replace(result, dataset=dataset)


def parse(source: Source) -> ReadResult:
    """Read the annotation files themselves.

    Raises:
        DataError: they are missing or malformed.
        SecurityError: a path leads out of the image folder.
    """
    classes = classes_of(source.kind, source.classes, source.splits, source.rules)
    return read_files(source.kind, source.images, source.annotations, classes, source.rules)


def read_files(
    kind: str, images: Path, annotations: Path, classes: LabelMap | None, rules: ReadRules
) -> ReadResult:
    """Read one split with the reader of its format, which may be that of another package.

    Args:
        kind: the format.
        images: folder of the images.
        annotations: file or folder; see the reader of ``kind``.
        classes: see :func:`classes_of`.
        rules: what the files are read by.

    Raises:
        ConfigError: the package that brings the format cannot be loaded.
        DataError: the files are missing or malformed.
        SecurityError: a path leads out of the image folder.
    """
    if kind == "coco":
        return read_coco(images, annotations, rules)
    if kind not in FORMATS:
        return load_reader(kind)(images, annotations, classes, rules)
    assert classes is not None, "all formats of ours but COCO have them"
    return _LISTED[kind](images, annotations, classes, rules)


def _refuse_learning_from_ignored(result: ReadResult, config: DataConfig, source: Path) -> None:
    for finding in result.findings:
        if finding.kind == IGNORED_REGION and config.crowd == "include":
            raise ConfigError(
                f"data.crowd is 'include', but {finding.count} boxes of {source} are marked "
                f'"ignore": 1 ({finding.examples[0]}, ...), never learnt from. Next: take '
                "these entries out of the file, or leave data.crowd at exclude"
            )


def classes_of(
    kind: str, classes: Path | None, splits: Sequence[Path], rules: ReadRules
) -> LabelMap | None:
    """The classes, from the file that names them or, in VOC, from the annotations of all splits.

    Returns:
        None in COCO, and where the reader of another package is to find them by itself.

    Raises:
        DataError: the file is missing or malformed, or there are no classes.
        SecurityError: a linked folder leads out of the folder of annotations.
    """
    if kind == "coco":
        return None
    if classes is not None:
        return read_classes(classes)
    return voc_classes(splits, rules) if kind in FORMATS else None


def _refuse_too_many_left_out(result: ReadResult, allowed: float, source: Path) -> None:
    for finding in result.findings:
        total = len(result.dataset) + finding.count
        if finding.kind == UNREADABLE_IMAGE and finding.count > allowed * total:
            raise DataError(
                f"{source}: {finding.count} of {total} images cannot be read, allowed is the "
                f"fraction data.max_bad_fraction = {allowed}; the first: {finding.examples[0]}\n"
                "put these files right, or take them out of the data set"
            )
