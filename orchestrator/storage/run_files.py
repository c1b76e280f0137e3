"""Names of the files and folders of a run folder and of a sweep folder, and of nothing else.

::

    RUN/config/resolved.yaml      the experiment with all its defaults
    RUN/run.json                  what the run is: see orchestrator.runs.identity
    RUN/label_map.json            its classes
    RUN/events.jsonl              its event log: the truth about what was measured
    RUN/ckpt/                     its commits: see orchestrator.checkpoints.commit
    RUN/eval/                     the newest evaluation on the validation split
    RUN/samples/                  a few validation images at each evaluation
    RUN/nonfinite/                steps whose numbers were not finite
    RUN/result.json, run_card.md, report.html, mlflow.json
    SWEEP/trial-000/              a run of a sweep, with difference.json and driver.log
    SWEEP/sweep.jsonl, sweep.json, config/base.yaml
    SWEEP/journal/                in a bucket: see orchestrator.sweeps.bucket
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestrator.errors import StorageError, nearest_path
from orchestrator.storage.address import SCHEMES

RESOLVED: Final = "config/resolved.yaml"
IDENTITY: Final = "run.json"
LABEL_MAP: Final = "label_map.json"
EVENTS: Final = "events.jsonl"
#: How many bytes of the event log the bucket of the run has.
EVENTS_KEPT: Final = "events.kept"
CHECKPOINTS: Final = "ckpt"
EVALUATION: Final = "eval"
DETECTIONS: Final = f"{EVALUATION}/coco_results.json"
PER_CLASS: Final = f"{EVALUATION}/per_class.csv"
NONFINITE: Final = "nonfinite"
RESULT: Final = "result.json"
RUN_CARD: Final = "run_card.md"
REPORT: Final = "report.html"
MLFLOW: Final = "mlflow.json"
#: How the run is to appear in MLflow, for `orchestrator ship`.
MLFLOW_SPEC: Final = "mlflow_spec.json"
#: Validation images with detections and annotations on them, one file an evaluation.
SAMPLES: Final = "samples"
LOCK: Final = "lock"
#: Asks the workers of a run to stop, by being there.
STOP: Final = "stop-requested"
HEARTBEATS: Final = "beats"
#: Whether the trials of a sweep go on; see orchestrator.training.trial_decision.
DECISIONS: Final = "verdicts"
#: In a working folder: the bucket that the run lives in.
BUCKET: Final = "home.txt"

SWEEP_JOURNAL: Final = "sweep.jsonl"
SWEEP_RESULT: Final = "sweep.json"
SWEEP_BASE: Final = "config/base.yaml"
#: In the bucket of a sweep: its journal, as each driver that held it has written it.
SWEEP_JOURNALS: Final = "journal"
#: Of a trial: its effective values against the base of its sweep, and what its driver said.
DIFFERENCE: Final = "difference.json"
DRIVER_LOG: Final = "driver.log"

#: What rank 0 writes while it trains.
MEASURED: Final = (EVENTS, EVALUATION, SAMPLES)
#: What the driver writes while there is training.
DESCRIBING: Final = (IDENTITY, "config", LABEL_MAP, MLFLOW, NONFINITE, DIFFERENCE, DRIVER_LOG)
#: All that a run leaves beside its commits; what says that it has ended comes last.
RECORDS: Final = (*DESCRIBING, *MEASURED, RUN_CARD, REPORT, RESULT)
#: All that a sweep leaves beside its trials.
SWEEP_RECORDS: Final = (SWEEP_JOURNAL, "config", EVENTS, MLFLOW, SWEEP_RESULT)


def trial_name(number: int) -> str:
    """Folder of a sweep's trial, which is its run's name as well."""
    return f"trial-{number:03d}"


#: What most verbs about the past take, in words.
RUN_OR_SWEEP: Final = "a run folder, or that of a sweep"


def refuse_addresses(*paths: Path) -> None:
    """Raise where a place in an object store is named to a command that reads folders.

    Raises:
        StorageError: with the folder to name instead.
    """
    for path in paths:
        scheme, *rest = path.parts or ("",)
        if scheme.endswith(":") and scheme[:-1] in SCHEMES:
            raise StorageError(
                f"{scheme}//{'/'.join(rest)}: is in a bucket, and this command reads a folder. "
                "Next: name the working folder, which is below the `scratch` of the experiment; "
                "where it is lost, the same `orchestrator run` brings it back"
            )


def require_there(
    *paths: Path, what: str = "a run folder, a checkpoint folder or a file of weights"
) -> None:
    """Raise unless all paths are files or folders; names the nearest ones that are there.

    Args:
        paths: as they were named.
        what: they should have been.

    Raises:
        StorageError: some are not; all of these are listed. Or one is in a bucket.
    """
    refuse_addresses(*paths)
    lines = [
        f"{path}: is neither a file nor a folder"
        if path.exists()
        else f"{path}: does not exist{nearest_path(path)}"
        for path in paths
        if not (path.is_file() or path.is_dir())
    ]
    if lines:
        raise StorageError("\n".join([*lines, f"name {what}"]))
