"""What a finished run says: ``result.json`` for programs, a table and a command for people."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import orchestrator
from detectors.skeleton import skeleton
from orchestrator.checkpoints.initial_weights import load_initial
from orchestrator.checkpoints.manifest import checked_commits
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.config.schema import TrainConfig
from orchestrator.config.tracking_uri import resolve_tracking_uri
from orchestrator.errors import say
from orchestrator.evaluation.coco import METRICS
from orchestrator.pages.document import number
from orchestrator.runs.plan import Plan, require_state
from orchestrator.runs.progress import duration
from orchestrator.storage.bucket import commit_storage
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import CHECKPOINTS, EVENTS, REPORT, RESOLVED, RESULT, SAMPLES
from orchestrator.tracking.events import read_events
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.goodput import goodput
from orchestrator.tracking.mlflow_shipper import Shipped
from orchestrator.tracking.run_card import Hardware, RunCard, package_versions
from orchestrator.tracking.ship_state import ShipState
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.schedules import ends_with_run
from orchestrator.training.shards import Shards

#: Where ``mlflow ui`` serves unless it is told otherwise.
MLFLOW_UI = "http://127.0.0.1:5000"


def result_of(
    job: TrainingJob, outcome: Outcome, shipped: Shipped | None, seconds: float
) -> dict[str, Any]:
    """What ``result.json`` holds.

    Args:
        job: the run.
        outcome: of its last start.
        shipped: state of its tracking; None when it is not tracked.
        seconds: wall time of this start of the driver.
    """
    account = goodput(read_events(job.path / EVENTS))
    return {
        "name": job.experiment.name,
        "state": outcome.state,
        "metrics": {name: outcome.metrics.get(name) for name in METRICS},
        "best_metrics": outcome.best_metrics,
        "best_checkpoint": best_checkpoint_of(outcome),
        "weights_sha256": outcome.weights_sha256,
        "steps": outcome.steps,
        "early_stopping": outcome.early_stopping,
        "samples": outcome.samples,
        "images_per_s": outcome.images_per_s,
        "resumed_from": outcome.resumed_from,
        "seconds": seconds,
        "goodput": None if account is None else account.to_json(),
        "mlflow_run_id": None if shipped is None else shipped.run_id,
        "config_digest": job.config_digest,
        "data_digest": job.data_digest,
        "detector": job.experiment.detector.title,
        "workers": job.experiment.cluster.workers,
    }


def finished_result(job: TrainingJob, done: int) -> dict[str, Any] | None:
    """``result.json`` of a run that has nothing left to do; None for any other.

    Args:
        job: the run.
        done: optimizer steps behind its newest commit.
    """
    try:
        result: dict[str, Any] = read_json(job.path / RESULT)
        same = (
            result["config_digest"] == job.config_digest
            and result["data_digest"] == job.data_digest
            and result["steps"] == done
        )
        whole = done == job.total_steps or result["early_stopping"] is not None
        complete = result["state"] == "done" and isinstance(result["metrics"]["AP"], float | int)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not (same and whole and complete) or not job.path.joinpath(EVENTS).exists():
        return None
    uri = job.experiment.tracking.mlflow
    if uri is not None:
        # What MLflow does not have yet is brought there by a start like any other.
        state = ShipState.load(job.path)
        if state is None or state.status != "FINISHED":
            return None
        if state.tracking_uri != resolve_tracking_uri(uri, Path.cwd()):
            return None
    return result


def best_checkpoint_of(outcome: Outcome) -> str | None:
    """The best checkpoint as a path in the run, which holds wherever the run is moved to."""
    if outcome.best_checkpoint is None:
        return None
    return f"{CHECKPOINTS}/{outcome.best_checkpoint.rpartition('/')[2]}"


def run_card_of(
    job: TrainingJob, outcome: Outcome | None, *, status: str, accelerator: str
) -> RunCard:
    """The page that keeps numbers, code, data, seed and machine together.

    Args:
        job: the run.
        outcome: None when it failed.
        status: how it ended.
        accelerator: kind of device the workers trained on.
    """
    workers = job.experiment.cluster.workers
    facts: dict[str, object] = {
        "detector": job.experiment.detector.title,
        "workers": workers,
        "batch size": job.schedule.batch_size,
        "parameters": f"{_parameters(job):,}",
    }
    files = {"experiment": RESOLVED, "events": EVENTS}
    if outcome is not None:
        facts |= {"steps": outcome.steps, "images/s": f"{outcome.images_per_s:.1f}"}
        account = goodput(read_events(job.path / EVENTS))
        if account is not None:
            facts["goodput"] = str(account)
        if outcome.early_stopping is not None:
            facts["early stopping"] = outcome.early_stopping["reason"]
        files["weights sha256"] = outcome.weights_sha256
        if outcome.best_checkpoint is not None:
            files["best checkpoint"] = str(best_checkpoint_of(outcome))
    return RunCard(
        name=job.experiment.name,
        status=status,
        code=git_info(),
        config_digest=job.config_digest,
        data_digest=job.data_digest,
        seeds=(job.experiment.seed,),
        hardware=Hardware.here([] if accelerator == "cpu" else [accelerator] * workers),
        versions=package_versions(),
        metrics={} if outcome is None else outcome.metrics,
        facts=facts,
        files=files,
    )


def _parameters(job: TrainingJob) -> int:
    """Learnable values of the detector."""
    model = skeleton(job.experiment.detector, num_classes=len(job.label_map))
    return sum(parameter.numel() for parameter in model.parameters())


def write_page(run_dir: Path, *, timeout: float = 120.0) -> str | None:
    """Have ``orchestrator report`` write its page, in a process of its own.

    Whatever happens to that process, and be it Ctrl-C, the run that is over stays as it is.

    Args:
        run_dir: the run folder, its card written.
        timeout: seconds after which the page is given up.

    Returns:
        What went wrong, if anything did.
    """
    # The package may be importable here only because of where the driver was started.
    package = str(Path(orchestrator.__file__).absolute().parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    try:
        # The page of an earlier end of this run would be taken for this one's.
        (run_dir / REPORT).unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", "report", str(run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {timeout:g} s"
    except KeyboardInterrupt:
        return "interrupted"
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    errors = (line for line in lines if not line.startswith("warning: "))
    return next(errors, f"ended with {done.returncode}")


def say_data(plan: Plan, console: Console) -> None:
    """One line a split, and what its reader put right."""
    for split, dataset in plan.splits.items():
        say(
            console,
            f"{split}: {len(dataset)} images, {len(dataset.labels)} boxes, "
            f"{len(dataset.label_map)} classes",
        )
        if split in plan.manifests:
            say(console, f"  manifest {plan.manifests[split]}")
        for finding in plan.findings[split]:
            say(console, f"  {finding}")


def say_scaling(train: TrainConfig, console: Console) -> None:
    """What became of the learning rate, where it was scaled."""
    if train.scaling is not None:
        say(console, f"learning rate: {train.scaling}")


def say_initial(job: TrainingJob, console: Console) -> None:
    """What the run begins with, tensor by tensor where something was not simply loaded.

    Nothing is said, and nothing read, where the run goes on from a checkpoint of its own.

    Raises:
        DataError: the initial weights cannot be read or do not fit.
        SecurityError: their file holds more than tensors.
    """
    if checked_commits(commit_storage(job.path, job.bucket)):
        return
    if job.initial is None:
        _say_frozen(job, (), console)
        return
    if job.initial.kind == "state":
        step = require_state(job)
        say(console, f"train.continue_from: {job.initial.path}, the state after {step} steps")
        return
    loaded = load_initial(job.initial, job.experiment, job.label_map)
    say(console, f"train.init_from: {loaded.headline()}")
    for line in loaded.report.advice:
        say(console, f"warning: train.init_from: {line}")
    for line in (*loaded.classes, *loaded.report.lines(("adapted", "missing", "left over"))):
        say(console, f"  {line}")
    _say_frozen(job, loaded.fitted.tensors, console)


def _say_frozen(job: TrainingJob, filled: Container[str], console: Console) -> None:
    """Warn of convolutions that neither train nor come from a file, and so stay random."""
    model = skeleton(job.experiment.detector, num_classes=len(job.label_map))
    frozen = [n for n, p in model.named_parameters() if p.dim() == 4 and not p.requires_grad]
    random = [name for name in frozen if name not in filled]
    if random:
        more = f" and {len(random) - 1} more" if len(random) > 1 else ""
        say(
            console,
            f"warning: {random[0]}{more} do not train and come from no file, so they stay random. "
            "Next: name trained weights in train.init_from, such as torchvision:resnet50, or let "
            "everything train with detector.frozen_parts=0",
        )


def say_threads(shards: Shards, threads: int | None, console: Console) -> None:
    """Where workers cannot have as many threads as they had when the run began.

    Args:
        shards: of this start; what they mean for the bits is a note in the log.
        threads: CPU threads of each of its workers.
        console: where it is told.
    """
    if shards.threads is not None and shards.threads != threads:
        say(
            console,
            f"virtual shards: the run began with {shards.threads} threads a worker and now has "
            f"{threads}, so sums round in another order. Next, if that matters: set "
            f"cluster.threads_per_worker to {shards.threads}",
        )


def say_result(resolved: ResolvedExperiment, result: dict[str, Any], console: Console) -> None:
    """The twelve numbers, where everything is, and the command to look at it."""
    if result["state"] == "stopped":
        say(console, f"given up after step {result['steps']}, which is committed")
        return
    if result["state"] != "done":
        say(
            console,
            f"stopped after step {result['steps']}, which is committed; "
            "run the same command again to go on",
        )
        return
    table = Table("metric", "value", title=escape(f"{result['name']}: COCO numbers on val"))
    for name, value in result["metrics"].items():
        table.add_row(name, number(value))
    console.print(table)
    # The first steps are not counted, and a short run has no others.
    speed = f"{result['images_per_s']:.1f} images/s, " if result["images_per_s"] else ""
    if result["early_stopping"] is not None:
        say(console, f"early stopping: {result['early_stopping']['reason']}")
    say(
        console,
        f"{result['detector']}: {result['steps']} steps, {speed}"
        f"{duration(result['seconds'])} since this start",
    )


def say_finished(result: dict[str, Any], train: TrainConfig, console: Console) -> None:
    """That a run has nothing left to do, and what would give it something."""
    score = result["metrics"]["AP"]
    raised = "raise train.epochs"
    if ends_with_run(train.schedule):
        raised += f", and say by train.continue what the rate of {train.schedule.name} does then,"
    say(
        console,
        f"already done: {result['name']} has all of its {result['steps']} steps, AP {score:.4f}. "
        f"Next: {raised} to go on, or give another experiment another name (name=...)",
    )


def say_where(
    resolved: ResolvedExperiment,
    run_dir: str,
    console: Console,
    *,
    sweep: str | None = None,
    trials: Sequence[str] = (),
) -> None:
    """The run folder; how MLflow is started, and the address of the page with the runs.

    The lines can be pasted into any shell of this machine, whichever folder it is in.

    Args:
        resolved: experiment.
        run_dir: of the run, or the folder of the sweep.
        console: where it is said.
        sweep: as of :func:`runs_page`.
        trials: as of :func:`runs_page`.
    """
    say(console, f"run folder: {run_dir}")
    uri = resolved.experiment.tracking.mlflow
    if uri is None:
        return
    uri = resolve_tracking_uri(uri, Path.cwd())
    server = uri
    if uri.startswith(("http://", "https://", "databricks")):
        say(console, "# curves and runs side by side:")
    else:
        server = MLFLOW_UI
        say(console, "# curves and runs side by side: start MLflow, then open its page")
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
        say(console, shlex.join(command))
    state = ShipState.load(Path(run_dir))
    experiment = state.experiment_id if state and state.tracking_uri == uri else None
    say(console, f"# {runs_page(server, experiment, sweep=sweep, trials=trials)}")


def say_next(run_dir: str, console: Console) -> None:
    """What can be looked at, and how the detector is tried on other images."""
    samples = sorted(Path(run_dir, SAMPLES).glob("*.jpg"))
    if samples:
        say(console, f"# validation images with detections: {samples[-1]}")
    say(console, "# on images of your own, FOLDER:")
    say(console, f"{own_command()} predict {shlex.quote(run_dir)} FOLDER --draw drawn")


def own_command() -> str:
    """How this program is called in any shell of this machine."""
    script = Path(sys.executable).with_name("orchestrator")
    if script.is_file():
        return shlex.quote(str(script))
    return shlex.join([sys.executable, "-m", "orchestrator"])


def runs_page(
    server: str,
    experiment: str | None,
    *,
    sweep: str | None = None,
    trials: Sequence[str] = (),
) -> str:
    """Address of the page with the runs of an experiment.

    MLflow's plain address opens on traces of language models, where a trained detector has nothing.

    Args:
        server: address of MLflow.
        experiment: its id there; None while MLflow does not know it.
        sweep: whose runs are shown alone; None for all runs.
        trials: ids of runs that are compared instead, where there are several. A list of runs has
            a sweep's trials folded up below it, whatever the address says.
    """
    if experiment is None or not server.startswith("http"):
        return server
    server, view = server.rstrip("/"), "workflowType=machine_learning"
    if len(trials) > 1:
        runs, experiments = (
            quote(json.dumps(ids, separators=(",", ":")), safe="")
            for ids in (list(trials), [experiment])
        )
        return f"{server}/#/compare-runs?runs={runs}&experiments={experiments}&{view}"
    page = f"{server}/#/experiments/{experiment}/runs?{view}"
    if sweep is None:
        return page
    chosen = quote(f"tags.sweep = '{sweep}'", safe="")
    return f"{page}&searchFilter={chosen}&compareRunsMode=CHART"
