"""``orchestrator shard``: a data set as Parquet files that stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.bars import bars
from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import COUNT, Parser
from orchestrator.cli._shared.source import (
    add_overrides,
    add_source,
    decoding_lines,
    is_experiment,
    read_source,
)
from orchestrator.errors import say

if TYPE_CHECKING:
    import argparse

    from orchestrator.config.schema import ClusterConfig
    from orchestrator.data.shards.writer import Written

#: Images of a data set above which a window is suggested; below, mixing all costs nothing.
_WINDOW = 16_384


def main(argv: Sequence[str]) -> int:
    """Write shards and print the ``data`` section that reads them."""
    parser = Parser(
        prog="orchestrator shard",
        description="write a data set as Parquet shards: encoded images and their boxes, for "
        "training from disk, NFS or a bucket. Stopped at any time, the same command goes on and "
        "ends in the same bytes",
    )
    add_source(parser)
    parser.add_argument(
        "target",
        metavar="OUT",
        help="folder to make, or s3://bucket/prefix; a folder in it a split",
    )
    add_overrides(parser)
    parser.add_argument(
        "--images-per-shard", type=COUNT, metavar="N", help="(default: 512, 80 MB of COCO's images)"
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    splits = read_source(arguments, from_files=True)

    import ray

    from orchestrator.cluster.connection import ClusterWatch, connected, while_it_lasts
    from orchestrator.cluster.survey import look_around
    from orchestrator.data.shards.ray_writer import shards_by_ray
    from orchestrator.data.shards.writer import IMAGES_PER_SHARD, write_shards
    from orchestrator.runs.reach import images_of
    from orchestrator.storage.address import below, is_remote

    written = {}
    with (
        connected(_cluster(arguments)),
        ClusterWatch() as watch,
        bars() as shown,
    ):
        look_around(
            [need for name, split in splits.items() for need in images_of(split.dataset, name)],
            None if is_remote(arguments.target) else Path(arguments.target).absolute(),
        )
        tasks = max(1, int(ray.cluster_resources().get("CPU", 1)))
        run = partial(shards_by_ray, tasks=tasks)
        for name, split in splits.items():
            task = shown.add_task(name, total=len(split.dataset))
            write = partial(
                write_shards,
                split.dataset,
                below(arguments.target, name),
                images_per_shard=arguments.images_per_shard or IMAGES_PER_SHARD,
                run=run,
                progress=lambda done, total, task=task: shown.update(  # type: ignore[misc]
                    task, completed=done, total=total
                ),
            )
            written[name] = while_it_lasts(watch, write)
            for finding in split.findings:
                say(shown.console, f"{name}: {finding}")
    with json_output(arguments.json) as emit:
        lines = decoding_lines(next(iter(splits.values())).dataset)
        print("\n".join(summary(written, arguments.target, lines)))
        emit({"splits": {name: _document(one) for name, one in written.items()}})
    return 0


def _cluster(arguments: argparse.Namespace) -> ClusterConfig:
    from orchestrator.config.resolve import load_experiment
    from orchestrator.config.schema import ClusterConfig

    if is_experiment(arguments.source):
        return load_experiment(arguments.source, arguments.overrides).experiment.cluster
    return ClusterConfig()


def _document(one: Written) -> dict[str, Any]:
    return {
        "images": one.index.images,
        "shards": len(one.index.sizes),
        "bytes": sum(one.index.sizes),
        "manifest_digest": one.index.digest,
        "content_digest": one.index.content_digest,
        "unsound": list(one.unsound),
    }


def summary(written: dict[str, Written], target: str, settings: Sequence[str] = ()) -> list[str]:
    """What is there now, and how to train on it.

    Args:
        written: the splits, by name.
        target: where they are.
        settings: further lines of the section ``data`` that reads them.
    """
    from orchestrator.storage.address import below, is_remote

    lines = []
    for name, one in written.items():
        index = one.index
        there = f", {one.found} of them there already" if one.found else ""
        lines.append(
            f"{name}: {index.images} images in {len(index.sizes)} shards{there}, "
            f"{sum(index.sizes) / 1e6:.1f} MB"
        )
        lines.append(f"  manifest digest {index.digest}")
        lines.append(f"  digest of classes, images, boxes and labels {index.content_digest}")
        if one.unsound:
            more = ", ..." if len(one.unsound) > 5 else ""
            lines.append(
                f"  {len(one.unsound)} images cannot be used, others take their place: "
                f"{', '.join(one.unsound[:5])}{more}"
            )
    # An experiment has a root of its own, which paths of shards are relative to.
    lines += ["", "data:", *([] if is_remote(target) else [f"  root: {target}"]), *settings]
    for name in written:
        key = next((key for key in ("train", "val") if name.startswith(key)), f"# {name}")
        place = below(target, name) if is_remote(target) else name
        lines.append(f"  {key}: {{shards: {place}}}")
    if any(one.index.images > _WINDOW for one in written.values()):
        lines.append(f"  window: {_WINDOW}")
    return lines
