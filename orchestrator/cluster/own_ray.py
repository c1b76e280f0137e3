"""A Ray that a run starts for itself, in whatever surroundings a user has.

Ray itself answers late or not at all where its surroundings are odd: a path too long for a socket,
a ``HOME`` that cannot be written, a disk that is full. That is found out before Ray is asked.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import shlex
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private import parameter, services, utils

from orchestrator.cluster.nodes import alive_nodes
from orchestrator.cluster.ray_sessions import remove_ended_sessions, remove_session
from orchestrator.errors import ConfigError, PreemptedError, StorageError, first_line

log = logging.getLogger(__name__)

#: Length of a socket's path that Linux allows (sun_path of unix(7), less the zero at its end).
_SOCKET_BYTES = 107
#: What Ray puts below its folder: the longest name of a session, of a socket, and a counter.
_BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99")
#: Label of the node of a Ray that a run has started for itself, which no other node joins.
OWN = "orchestrator-own"
#: Title of a process that has nothing to do.
_IDLE = "ray::IDLE"
#: Free bytes below which Ray's logs and sockets find no place.
ROOM = 64 << 20


def start_own_ray(cpus: int) -> None:
    """Start a Ray of this process's own.

    Args:
        cpus: logical CPUs that it is told it has.

    Raises:
        ConfigError: it cannot start here.
        StorageError: no folder can hold its files.
    """
    folder = ray_folder()
    remove_ended_sessions(folder)
    # Ray starts a process per CPU in advance, none of them in an environment that is needed here.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    _require_token()
    # Ray hands its workers' command to a shell, with every word quoted but the first.
    python = shlex.quote(sys.executable)
    try:
        with _own_sessions(), _few_processes(), own_handler():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
                labels={OWN: "true"},
                runtime_env=None if python == sys.executable else {"py_executable": python},
            )
    except PreemptedError:
        raise
    except Exception as error:
        why = first_line(error).rstrip(".: ")
        raise ConfigError(
            f"Ray cannot start on this machine: {why}. Next: look into "
            f"{folder}/session_latest/logs, or name a cluster by cluster.address"
        ) from error


def end_own_ray() -> None:
    """Leave this process's Ray, its work being done; one started for it ends, with its files.

    After a failure its logs may be asked for: :func:`ray.shutdown` keeps them.
    """
    node = ray._private.worker._global_node
    started = node is not None and node.is_head()
    session = Path(node.get_session_dir_path()) if started else None
    ray.shutdown()
    if session is not None:
        remove_session(session)


def is_own_ray() -> bool:
    """Whether this process's Ray was started by a run, or a sweep, for itself, on one machine."""
    return any(OWN in node.labels for node in alive_nodes())


def kill_own_ray(node: Any) -> None:
    """Kill what of Ray was started for this process, and what that has started.

    Much of it would end by itself, but some only after a minute in which it looks for the rest, and
    takes what the next start needs.

    Args:
        node: Ray's, of this process; of a cluster that was joined nothing is killed.
    """
    for process in _processes_of(node):
        with suppress(_psutil().Error):
            process.kill()


def count_idle(variables: Mapping[str, str]) -> int:
    """Processes of this process's own Ray that wait for work, with such variables.

    Args:
        variables: some of the environment that they were started with.
    """
    found = 0
    for process in _processes_of(ray._private.worker._global_node):
        with suppress(_psutil().Error):
            idle = process.cmdline()[:1] == [_IDLE]
            found += idle and variables.items() <= process.environ().items()
    return found


def _processes_of(node: Any) -> list[Any]:
    """What of a Ray was started for this process, and what that has started; none if it joined."""
    found = []
    for started in itertools.chain.from_iterable(node.all_processes.values()):
        with suppress(_psutil().Error):
            process = _psutil().Process(started.process.pid)
            found += [process, *process.children(recursive=True)]
    return found


def _psutil() -> Any:
    # Ray brings it along, in a folder that it adds to the path.
    import psutil

    return psutil


@contextmanager
def _own_sessions() -> Iterator[None]:
    """Have what Ray starts here in sessions of its own.

    A queue, a shell or ``timeout`` signals a whole process group when a run is to end. What the
    workers need to finish and commit their step must not end with it, but with the driver.
    """
    started = services.ConsolePopen

    class InOwnSession(started):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **{**more, "start_new_session": True})

    services.ConsolePopen = InOwnSession
    try:
        yield
    finally:
        services.ConsolePopen = started


@contextmanager
def _few_processes() -> Iterator[None]:
    """Have Ray start no process for people or clouds; each would take a second of a start.

    Those are the server of its dashboard, which Ray starts without the pages as well, who reads its
    logs, and who asks a cloud for nodes.
    """
    parameters, serve = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(parameters, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = parameters, serve


@contextmanager
def own_handler() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, where it has one, and give it once Ray has started.

    Ray sets one that ends the process with 1 or 15, and its core another one below Python's, which
    prints the stack and aborts the process three seconds later. What is raised while Ray starts is
    lost in places.
    """
    answer = signal.getsignal(signal.SIGTERM)
    if not callable(answer) or threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signal.alarm(0)
        noted.append(number)

    sets = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        utils.set_sigterm_handler = sets
        signal.signal(signal.SIGTERM, answer)
        if noted:
            answer(signal.SIGTERM, None)


def ray_folder() -> Path:
    """The folder of a local Ray, private to this user: sessions with logs and sockets.

    Ray's own choice, ``TMPDIR/ray``, is shared by all users of a machine, belongs to the first of
    them, and may have a path too long for a socket.

    Raises:
        StorageError: there is none.
    """
    wanted = [os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")]
    refused: list[str] = []
    for base in filter(None, [*wanted, "/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/var/tmp"]):
        folder = Path(base).absolute() / f"ray-{os.geteuid()}" / "ray"
        trouble = _trouble(folder)
        if trouble is None:
            if refused:
                log.warning("Ray's files go to %s (%s)", folder, "; ".join(refused))
            return folder
        refused.append(f"{base}: {trouble}")
    raise StorageError(
        f"no folder can hold Ray's files ({'; '.join(dict.fromkeys(refused))}). Next: free space "
        f"there, or set RAY_TMPDIR to a folder with {ROOM >> 20} MiB free and a short path"
    )


def _trouble(folder: Path) -> str | None:
    """Why Ray cannot use a folder, whose parent is made where that helps; None where it can."""
    if len(os.fsencode(folder)) + _BELOW > _SOCKET_BYTES:
        return "its path is too long for a socket"
    private = folder.parent
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return f"{private.name} is somebody else's"
        private.chmod(0o700)
        free = shutil.disk_usage(private).free
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None if free >= ROOM else f"{free >> 20} MiB free"


def _require_token() -> None:
    """Give a Ray of this process's own a token, which Ray would else write below ``HOME``."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    # It stays for the life of this process: Ray's client keeps the first token it was given.
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
