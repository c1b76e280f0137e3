"""``orchestrator convert weights``: published weights to a file this program trains from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import ConfigError, did_you_mean, printable

if TYPE_CHECKING:
    from detectors.config import DetectorConfig


def main(argv: Sequence[str]) -> int:
    """Convert one file and say what became of each of its tensors."""
    parser = Parser(
        prog="orchestrator convert weights",
        description="rename published weights for one of this program's detectors; train.init_from "
        "reads the result. Foreign files are read without running anything from them",
    )
    parser.add_argument("source", metavar="SRC", help="file, or a name as torchvision:resnet50")
    parser.add_argument("target", metavar="DST.safetensors", type=file_to_write)
    parser.add_argument(
        "--to",
        required=True,
        metavar="VARIANT",
        help="of a detector, as `orchestrator models` lists them, or an experiment file",
    )
    parser.add_argument(
        "--layout", help="of the source, if it is not to be recognised; `native` for own names"
    )
    parser.add_argument(
        "--label-map",
        type=Path,
        metavar="FILE",
        help="classes to pick out of the published ones, by name: a run's label_map.json or COCO "
        "annotations",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args(argv)

    from orchestrator.checkpoints.initial_weights import convert_file
    from orchestrator.checkpoints.published import local_path
    from orchestrator.data.label_map import read_label_map

    config = _detector(arguments.to)
    classes = None if arguments.label_map is None else read_label_map(arguments.label_map)
    fitted = convert_file(
        local_path(arguments.source),
        arguments.target,
        config,
        layout=arguments.layout,
        label_map=classes,
        overwrite=arguments.overwrite,
    )
    if arguments.json:
        print(json.dumps(fitted.report.to_json(), indent=2))
        return 0
    # Names are those of the file, which may be anybody's.
    print(printable("\n".join(fitted.report.lines())))
    print(f"{arguments.target}: {fitted.report.summary()}")
    for line in fitted.report.advice:
        print(f"note: {line}")
    if fitted.num_classes is not None:
        names = fitted.class_names
        known = "names unknown" if names is None else f"{names[0]} … {names[-1]}"
        print(f"{fitted.num_classes} classes: {known}")
    return 0


def _detector(name: str) -> DetectorConfig:
    """The published variant of this name, or the detector of an experiment file."""
    from detectors.registry import variant_config, variants

    if name.endswith((".yaml", ".yml")):
        from orchestrator.config.resolve import load_experiment

        return load_experiment(name).experiment.detector
    known = variants()
    if name not in known:
        raise ConfigError(
            f"--to: no variant '{name}'; allowed are {', '.join(known)}, or an experiment "
            f"file{did_you_mean(name, known)}"
        )
    return variant_config(name)
