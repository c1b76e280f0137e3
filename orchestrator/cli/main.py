"""The console script ``orchestrator``: one verb, one file in this folder, one line below."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.cli import (
    benchmark,
    check,
    check_cluster,
    check_resume,
    compare,
    completion,
    config,
    convert,
    draw,
    evaluate,
    export,
    fit,
    init,
    list_runs,
    models,
    predict,
    replay,
    report,
    rerun,
    run,
    serve,
    shard,
    ship,
    status,
    submit,
)
from orchestrator.cli._shared.exit import run_guarded
from orchestrator.cli._shared.verbs import Verb, dispatch

VERBS: dict[str, Verb] = {
    "init": Verb(init.main, "from a folder of annotated images to an experiment file that runs"),
    "run": Verb(run.main, "train and evaluate as an experiment file says"),
    "check": Verb(check.main, "examine the data set of an experiment"),
    "shard": Verb(shard.main, "write a data set as Parquet files that stream"),
    "submit": Verb(submit.main, "run an experiment on a Ray cluster that is already there"),
    "check-cluster": Verb(
        lambda argv: check_cluster.main(argv, list(VERBS)), "examine files that describe a cluster"
    ),
    "evaluate": Verb(evaluate.main, "COCO numbers of a trained detector, and where they come from"),
    "compare": Verb(compare.main, "runs side by side, and whether one is better than another"),
    "predict": Verb(predict.main, "detections in images, folders, lists and videos"),
    "serve": Verb(serve.main, "detections over HTTP"),
    "draw": Verb(draw.main, "predictions and ground truth on the images"),
    "export": Verb(export.main, "a detector as one ONNX or pt2 file, compared with PyTorch"),
    "benchmark": Verb(benchmark.main, "speed of training, evaluation and detection, by part"),
    "fit": Verb(fit.main, "the largest batch that fits into a device's memory"),
    "report": Verb(report.main, "one HTML page about a run"),
    "list": Verb(list_runs.main, "runs and sweeps below a folder, and how they stand"),
    "status": Verb(status.main, "how one run or sweep stands, and what MLflow has of it"),
    "ship": Verb(ship.main, "send MLflow what it lacks of a run"),
    "check-resume": Verb(check_resume.main, "prove that killing an experiment changes nothing"),
    "replay": Verb(replay.main, "repeat a training step that was not finite, and say what broke"),
    "rerun": Verb(rerun.main, "do a run again from its folder and compare the weights"),
    "config": Verb(config.main, "show a resolved experiment, or the schema of experiment files"),
    "models": Verb(models.main, "list the detectors, or compare them with published figures"),
    "completion": Verb(
        lambda argv: completion.main(argv, VERBS), "a script that lets a shell complete all of this"
    ),
    "convert": Verb(convert.main, "turn foreign files into this program's"),
}

#: What other programs call them.
ALIASES = {"train": "run", "val": "evaluate", "test": "evaluate", "infer": "predict"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; ``argv`` without the program's name."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    if arguments in (["--version"], ["-V"], ["version"]):
        print(f"orchestrator {_version()}")
        return 0
    return dispatch("orchestrator", VERBS, arguments, aliases=ALIASES)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("detection-orchestrator")
    except metadata.PackageNotFoundError:  # Uploaded to a cluster as files.
        return "unknown: not installed as a package"


if __name__ == "__main__":
    sys.exit(main())
