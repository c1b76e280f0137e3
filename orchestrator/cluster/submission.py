"""Sending an experiment to a running Ray cluster and following it to its end.

Everything that can be refused is refused here, before the upload: a mistake in the experiment
file, a folder that is too big, results that would be lost with the job, an open cluster.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.cluster.upload import UploadedFile, check_working_dir, uploaded_files
from orchestrator.config.places import places_of
from orchestrator.config.resolve import Template, read_template
from orchestrator.config.schema import Experiment
from orchestrator.credentials import mask
from orchestrator.errors import (
    ConfigError,
    OrchestratorError,
    PreemptedError,
    SecurityError,
    first_line,
)
from orchestrator.tracking.git_info import COMMIT_VARIABLE, git_info
from orchestrator.training.interrupt import in_thread

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

#: Seconds that `ray job stop` gives a job before it kills it, and what they are by default: enough
#: for no step of a large detector and its commit.
GRACE, GRACE_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 120
_RAYS_GRACE_SECONDS = 3

_MODE = "RAY_AUTH_MODE"
#: Ray lets these win over an address given in code.
_SHADOWING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_SECONDS = 1.0
#: For how long a cluster that does not answer is asked again.
_PATIENCE_SECONDS = 60.0
#: For how long an upload may take; its size is limited, and Ray sets no limit of time.
_UPLOAD_SECONDS = 600.0
#: What Ray says of a job whose driver ended with the process, or the node, that watched over it.
_ENDING = frozenset({signal.SIGHUP, signal.SIGKILL, signal.SIGTERM})
_LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_START_TIMEOUT")
#: Ray sets this for whatever is started as a job.
_INSIDE_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


#: What commands write into the current folder unless they are told otherwise: results, no sources.
_OUTPUTS = ("/predictions.json*", "/drawn", "/evaluation*", "/suspects")


_T = TypeVar("_T")


@dataclass(frozen=True)
class Submission:
    """A job as it will be sent.

    Attributes:
        entrypoint: shell command that the head node runs in the uploaded folder.
        working_dir: folder to upload.
        excludes: patterns left out beside those in ``.gitignore`` and ``.rayignore``.
        bytes: size of the upload.
        files: how many are uploaded.
        biggest: the biggest of them, biggest first.
    """

    entrypoint: str
    working_dir: Path
    excludes: tuple[str, ...]
    bytes: int
    files: int = 0
    biggest: tuple[UploadedFile, ...] = ()

    def describe(self) -> str:
        """What is uploaded, in words."""
        biggest = ", ".join(f"{each.path} {_size(each.size)}" for each in self.biggest[:3])
        return (
            f"{self.files} files of {self.working_dir}, {_size(self.bytes)}; the biggest are "
            f"{biggest or 'none'}"
        )


def _size(number: int) -> str:
    return f"{number / 1024**2:.1f} MiB" if number >= 100_000 else f"{number / 1024:.1f} KiB"


def _grace() -> str:
    """Seconds that a job gets to finish its step.

    Raises:
        ConfigError: the environment names no such number, which Ray would find out at the stop.
    """
    seconds = os.environ.get(GRACE, str(GRACE_SECONDS))
    if not seconds.isdecimal() or int(seconds) < GRACE_SECONDS:
        raise ConfigError(
            f"{GRACE} is {seconds!r}; allowed are {GRACE_SECONDS} seconds and more, in which a "
            f"step and its commit fit. Next: unset {GRACE}"
        )
    return seconds


def prepare(
    experiment: Path,
    overrides: Sequence[str] = (),
    *,
    working_dir: Path,
    excludes: Sequence[str] = (),
) -> Submission:
    """Check an experiment and the folder it is sent with.

    Args:
        experiment: path of the experiment file, inside ``working_dir``.
        overrides: ``key.path=value`` each.
        working_dir: folder to upload; the job starts in it.
        excludes: patterns as in ``.gitignore`` to leave out as well.

    Raises:
        ConfigError: the experiment is not valid, is not part of the upload, would lose its
            results or miss its data on the cluster, or the upload is too big.
    """
    root = working_dir.absolute()
    template = read_template(experiment, overrides)
    experiments = list(_experiments(template))
    excludes = (*excludes, *_OUTPUTS)
    size = check_working_dir(root, excludes)
    sent = {each.path for each in uploaded_files(root, excludes)}
    inside, *parents = (Path(os.path.relpath(file, root)).as_posix() for file in template.files)
    for name, file in zip((inside, *parents), template.files, strict=True):
        if name not in sent:
            what = "" if file == experiment else f", which {experiment} extends"
            raise ConfigError(
                f"{file}{what}: not among the {size.files} files to upload from {root}. Next: move "
                f"it below {root / 'experiments'}, or take it out of .gitignore or .rayignore"
            )
    _check_places(experiments, sent)
    _grace()
    return Submission(
        entrypoint=shlex.join(["python", "-m", "orchestrator.run", inside, *overrides]),
        working_dir=root,
        excludes=tuple(excludes),
        bytes=size.bytes,
        files=size.files,
        biggest=size.biggest,
    )


def connect(address: str | None = None) -> Any:
    """A client of a cluster's job server, that shows a token where there is one.

    Args:
        address: of the Ray dashboard; by default ``RAY_API_SERVER_ADDRESS``, else the one that a
            cluster on this machine listens at.

    Returns:
        A ``ray.job_submission.JobSubmissionClient``.

    Raises:
        SecurityError: the cluster is on another machine and no token is in use, or the token is
            not the cluster's.
        ConfigError: nothing answers at the address.
    """
    address = address or os.environ.get(_SHADOWING[0]) or DEFAULT_ADDRESS
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"--address: found {address!r}; allowed: http://HOST:PORT or https://HOST:PORT of the "
            f"Ray dashboard. Next: try {DEFAULT_ADDRESS}"
        )
    token = _token()
    if token is None and not _is_loopback(parts.hostname or ""):
        raise SecurityError(
            f"--address: {address} is on another machine and no token is in use, so anyone who "
            f"reaches it may run commands there. Next: start the cluster with {_MODE}=token and "
            f"copy its ~/.ray/auth_token here (see clusters/README.md)"
        )
    for variable in _SHADOWING:
        os.environ.pop(variable, None)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    headers = None if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return _within(_PATIENCE_SECONDS, lambda: JobSubmissionClient(address, headers=headers))
    except AuthenticationError as error:
        raise SecurityError(f"{address}: {error}") from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--address: no Ray job server answers at {address} ({error}). Next: start one "
            f"(clusters/README.md) or open a tunnel to it"
        ) from error


def submit(client: Any, submission: Submission) -> str:
    """Upload and start a job; returns its id.

    Raises:
        ConfigError: the cluster refuses the job, or does not answer.
    """
    environment: dict[str, Any] = {
        "working_dir": str(submission.working_dir),
        "excludes": list(submission.excludes),
    }
    # What runs the job on the cluster takes this from the job's own surroundings.
    environment["env_vars"] = {GRACE: _grace()}
    if git := git_info(submission.working_dir / "setup.cfg"):
        environment["env_vars"][COMMIT_VARIABLE] = git.commit + "+" * git.dirty

    def send() -> str:
        return str(client.submit_job(entrypoint=submission.entrypoint, runtime_env=environment))

    try:
        return _within(_UPLOAD_SECONDS, send)
    except OSError as error:
        if error.filename is not None:
            raise  # A file here, and not the line.
        raise ConfigError(
            f"the cluster did not take the job: {mask(first_line(error))}. Next: see by `ray job "
            "list` whether it has started all the same, and restart the head node's dashboard if "
            "that hangs, too"
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"the cluster refused the job: {error}") from error


def short_grace() -> str | None:
    """A warning where this process is a job that `ray job stop` would hardly wait for."""
    seconds = os.environ.get(GRACE, str(_RAYS_GRACE_SECONDS))
    if _INSIDE_A_JOB not in os.environ or not seconds.isdecimal() or int(seconds) >= GRACE_SECONDS:
        return None
    return (
        f"warning: `ray job stop` kills this job after {seconds} s, perhaps before its step is "
        "finished and committed. Next: submit it with `orchestrator submit`, or start the head "
        f"node with {GRACE}={GRACE_SECONDS}"
    )


def follow(client: Any, job: str) -> None:
    """Print what a job prints until it ends.

    Raises:
        OrchestratorError: it failed; with the exit code of its driver.
        PreemptedError: it was stopped, or the cluster does not answer any more.
    """
    try:
        asyncio.run(_print_logs(client, job))
    except (RuntimeError, OSError) as error:
        # The cluster is still the one to ask how the job went.
        said = mask(str(error))
        print(f"the log of {job} broke off ({said}); waiting for its end", file=sys.stderr)
    while not (info := _info_of(client, job)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    status = info.status.value
    if status == "STOPPED":
        raise PreemptedError(f"{job} was stopped; submit the same command to go on")
    if status != "SUCCEEDED":
        lost = _loss(info)
        if lost is not None:
            raise PreemptedError(
                f"{job}: {lost}. What it committed is in its storage. Next: see that the head has "
                "memory left, and submit the same command again to go on"
            )
        failure = OrchestratorError(f"{job} failed: {info.message}")
        if info.driver_exit_code and info.driver_exit_code > 0:
            failure.exit_code = int(info.driver_exit_code)
        raise failure


def _loss(info: Any) -> str | None:
    """How a job's driver was lost, through no fault of its own; None where it ended by itself."""
    code = info.driver_exit_code or 0
    # A shell that stays in between adds 128.
    number = -code if code < 0 else code - 128
    if number in _ENDING:
        return f"its driver was ended by signal {number}"
    if getattr(info, "error_type", None) in _LOST:
        return f"its driver was lost ({str(info.message).partition(chr(10))[0]})"
    return None


def _info_of(client: Any, job: str) -> Any:
    """What a cluster says of a job; it may be busy, or start anew."""
    began, said = time.monotonic(), False
    while True:
        info, trouble = _asked(client, job)
        if trouble is None:
            return info
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise PreemptedError(
                f"{job}: the cluster has not answered for {_PATIENCE_SECONDS:g} s ({trouble}). "
                "What the job committed is in its storage. Next: see that the cluster is there, "
                f"ask it by `ray job status {job}`, and if the job is not there any more submit "
                "the same command again to go on"
            )
        if not said:
            said = True
            print(
                f"the cluster does not answer ({trouble}); asking it again for "
                f"{_PATIENCE_SECONDS:g} s",
                file=sys.stderr,
            )
        time.sleep(_POLL_SECONDS)


def _asked(client: Any, job: str) -> tuple[Any, str | None]:
    """What is said of a job, or why nothing is."""
    try:
        return _within(_PATIENCE_SECONDS, lambda: client.get_job_info(job)), None
    except (RuntimeError, OSError) as error:
        return None, mask(str(error)).partition("\n")[0]


def _within(seconds: float, ask: Callable[[], _T]) -> _T:
    """What ``ask`` returns; Ray's client waits for ever for a server that takes its request.

    Raises:
        TimeoutError: there was no answer in ``seconds``; the thread that waits goes with the
            process.
    """
    deadline = time.monotonic() + seconds

    def given_up() -> TimeoutError | None:
        late = time.monotonic() > deadline
        return TimeoutError(f"no answer for {seconds:g} s") if late else None

    return in_thread(ask, given_up)


async def _print_logs(client: Any, job: str) -> None:
    log = aiter(client.tail_job_logs(job))
    while True:
        lines = asyncio.ensure_future(anext(log, None))
        # A job may have nothing to say for long, and so has a server that is stopped.
        while not (await asyncio.wait({lines}, timeout=_PATIENCE_SECONDS))[0]:
            if (await asyncio.to_thread(_info_of, client, job)).status.is_terminal():
                return
        if (text := lines.result()) is None:
            return
        sys.stdout.write(text)
        sys.stdout.flush()


def _experiments(template: Template) -> Iterator[Experiment]:
    """The experiment, and one for each place that a sweep tries."""
    resolved = template.resolve()
    yield resolved.experiment
    sweep = resolved.experiment.sweep
    if sweep is None:
        return
    for key, domain in sweep.space.items():
        for value in domain.choice or ():
            # Whole sections may be tried, too.
            if key.partition(".")[0] in _WITH_PLACES and isinstance(value, str | dict):
                yield template.resolve({key: value}).experiment


def _check_places(experiments: Iterable[Experiment], sent: set[str]) -> None:
    """Refuse what would be read or written in the job's own folder, which goes with the job."""
    problems: dict[str, None] = {}
    for experiment in experiments:
        for place in places_of(experiment):
            if place.is_absolute:
                continue
            if place.is_written:
                found = place.given or place.location
                problems[
                    f"{place.key}: {found!r} is relative, and the job's folder is removed "
                    "with the job; allowed is an absolute path"
                    + (" that all nodes share" if place.key != "data.cache" else "")
                    + f". Next: add {_WRITTEN[place.key]}"
                ] = None
            elif not _goes_along(os.path.normpath(place.location), sent):
                where = "train.init_from=/shared/weights.safetensors"
                if place.key == "train.continue_from":
                    where = "train.continue_from=/shared/runs/NAME"
                if place.key.startswith("data."):
                    section = place.key.rpartition(".")[0] if "sources" in place.key else "data"
                    where = f"{section}.root=/shared/data"
                problems[
                    f"{place.key}: {place.location!r} is not uploaded (see .gitignore and "
                    ".rayignore). Next: put it where every node can read it and add "
                    f"{where}"
                ] = None
    if problems:
        raise ConfigError("\n".join(problems))


#: Sections that name places.
_WITH_PLACES = frozenset({"data", "train", "tracking", "storage", "scratch"})
#: What to write instead of a relative place.
_WRITTEN = {
    "storage": "storage=/shared/runs",
    "scratch": "scratch=/shared/scratch",
    "tracking.mlflow": "tracking.mlflow=sqlite:////shared/runs/mlflow.db or a server's address",
    "data.cache": "data.cache=/tmp/detection-cache",
}


def _goes_along(path: str, sent: set[str]) -> bool:
    """Whether a file is uploaded, or anything in a folder."""
    return path in sent or path == "." or any(name.startswith(path + os.sep) for name in sent)


def _token() -> str | None:
    """The token Ray itself would show, or None if there is none or tokens are switched off.

    Ray decides whether to show one when it is first imported, which may be long ago.
    """
    if os.environ.get(_MODE, "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        found = path.stat()
        if found.st_mode & 0o077 and found.st_uid == os.geteuid():
            # `ray get-auth-token --generate` makes it readable for everybody. Secrets of Docker and
            # Kubernetes are mounted for reading alone.
            with suppress(OSError):
                path.chmod(0o600)
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
