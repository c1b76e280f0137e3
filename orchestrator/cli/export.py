"""``orchestrator export``: a detector as one ONNX or pt2 file, compared with PyTorch first."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.detector import (
    add_source_options,
    load,
    require_source,
    split_overrides,
)
from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import COUNT, Parser
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.export.model_registry import Registered


def main(argv: Sequence[str]) -> int:
    """Export, compare, and say how close the file is."""
    parser = Parser(
        prog="orchestrator export",
        description="write a detector as one file: normalisation, network, priors and decoding in "
        "the graph, the rest in its metadata. The file appears only if it agrees with PyTorch",
    )
    parser.add_argument("words", nargs="+", metavar="RUN|CHECKPOINT|WEIGHTS [key.path=value ...]")
    parser.add_argument("--format", choices=("onnx", "pt2"), default="onnx")
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE", help="default: RUN/export/NAME.onnx or .pt2"
    )
    parser.add_argument(
        "--nms", action="store_true", help="suppression in the graph as well (hard, ONNX only)"
    )
    parser.add_argument(
        "--images",
        type=COUNT,
        default=50,
        metavar="N",
        help="images of the validation set that both are compared on (default: 50)",
    )
    registry = parser.add_argument_group("MLflow's model registry")
    registry.add_argument(
        "--register",
        metavar="NAME",
        help="log the file as a model of this name, to be loaded by mlflow.pyfunc",
    )
    registry.add_argument(
        "--alias", default="latest-export", help="of the new version (default: latest-export)"
    )
    add_source_options(parser)
    add_json(parser)
    arguments = parser.parse_args(argv)
    overrides, sources = split_overrides(arguments.words)
    if len(sources) != 1:
        raise ConfigError(f"{parser.prog}: expected one detector, found {sources or 'none'}")
    require_source(sources[0])

    from orchestrator.export.artifact import require_export_packages
    from orchestrator.export.export import export
    from orchestrator.predict.scoring import read_split

    with json_output(arguments.json) as emit:
        if arguments.format == "onnx":
            require_export_packages()
        loaded = load(sources[0], overrides, arguments)
        experiment = loaded.resolved.experiment
        dataset = read_split(experiment, "val", limit=arguments.images)
        uri = experiment.tracking.mlflow
        if arguments.register is not None and uri is None:
            raise ConfigError(
                f"--register {arguments.register}: tracking.mlflow is null, so there is no "
                "registry. Next: name one, tracking.mlflow=sqlite:///runs/mlflow.db"
            )
        folder = (loaded.run_dir or Path()) / "export"
        path = arguments.output or folder / f"{experiment.name}.{arguments.format}"
        # Minutes, for a large detector.
        print(f"exporting, to be compared on {len(dataset)} images", file=sys.stderr)
        done = export(loaded, path, format=arguments.format, dataset=dataset, nms=arguments.nms)
        report = path.with_name(f"{path.name}.parity.json")
        report.write_text(json.dumps(done.parity.to_json(), indent=1))
        parity = done.parity
        opset = "" if done.metadata.opset is None else f", opset {done.metadata.opset}"
        print(f"{loaded.title}\n{path}: {path.stat().st_size / 1e6:.1f} MB{opset}")
        print(
            f"largest difference of raw outputs {max(parity.raw.values()):.2g}, of scores "
            f"{parity.score:.2g}; {max(parity.lone.values()):.2%} selected by one side only, "
            f"{parity.unmatched} of {parity.detections} detections unmatched; "
            f"AP {parity.ap_exported:.5f}, PyTorch {parity.ap_torch:.5f}, on {parity.images} images"
        )
        if parity.note:
            print(parity.note)
        document = {"file": path, "bytes": path.stat().st_size, "parity": parity.to_json()}
        if arguments.register is not None and uri is not None:
            model = _register(arguments, path, uri, experiment.tracking.experiment, loaded.run_dir)
            print(f"registered: {model.uri}, version {model.version}, of MLflow run {model.run_id}")
            document["registered"] = {"uri": model.uri, "version": model.version}
        emit(document)
    return 0


def _register(
    arguments: Namespace, path: Path, uri: str, experiment: str, run_dir: Path | None
) -> Registered:
    from orchestrator.config.tracking_uri import resolve_tracking_uri
    from orchestrator.export.model_registry import register
    from orchestrator.tracking.ship_state import ShipState

    absolute = resolve_tracking_uri(uri, Path.cwd())
    state = None if run_dir is None else ShipState.load(run_dir)
    known = state is not None and state.tracking_uri == absolute
    return register(
        path,
        arguments.register,
        alias=arguments.alias,
        tracking_uri=absolute,
        experiment=experiment,
        run_id=state.run_id if state is not None and known else None,
    )
