"""Joining a Ray cluster or starting a local one, in whatever surroundings a user has.

Ray itself answers late or not at all where its surroundings are odd: a path too long for a socket,
a ``HOME`` that cannot be written, a disk that is full, an address where nobody is. All of that is
found out before Ray is asked.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._common.network_utils import build_address
from ray._private import auto_init_hook, parameter, services, utils
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from typing_extensions import Self

from orchestrator.cluster.nodes import alive_nodes
from orchestrator.cluster.placement import DATA_CPUS
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError, PreemptedError, StorageError, first_line

log = logging.getLogger(__name__)

#: Seconds in which a cluster has to accept a connection, and then to say a word.
ANSWER_SECONDS = 5.0
#: Of Ray's own, where an address names none.
_PORTS = {"ray": 10001}
#: Failed questions after which a cluster is gone, and seconds for leaving one that is. What this
#: process has started ends with it in any case.
_FAILURES, _LEAVE_SECONDS = 3, 3.0
#: Seconds between looks at processes of this process's own.
_LOOK_SECONDS = 0.5
#: What is lost when that is what does not answer.
_RAYLET, _HEAD = "its raylet on this machine", "its head"
#: Length of a socket's path that Linux allows (sun_path of unix(7), less the zero at its end).
_SOCKET_BYTES = 107
#: What Ray puts below its folder: the longest name of a session, of a socket, and a counter.
_BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.99")
#: Label of the node of a Ray that a run has started for itself, which no other node joins.
_OWN = "orchestrator-own"
#: Free bytes below which Ray's logs and sockets find no place.
ROOM = 64 << 20


@contextmanager
def connected(config: ClusterConfig, *, beside: bool = False) -> Iterator[None]:
    """Join ``cluster.address``, or the cluster of the submitting job, or start a local Ray.

    Where this process is part of a Ray cluster already, as a trial of a sweep is, nothing changes.
    A local Ray gets as many logical CPUs as its workers and the data tasks need: on a small
    machine they share the cores, which is better than waiting for ever.

    Args:
        config: the ``cluster`` section.
        beside: a local Ray is to have room for one more worker, which evaluates.

    Raises:
        ConfigError: nobody answers at the address, or Ray cannot start here.
        StorageError: no folder can hold Ray's files.
    """
    # Results are noticed by polling; two seconds (Ray's default) is long for short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A thread that still waits for a Ray that was left would start another one by any call.
    auto_init_hook.enable_auto_connect = False
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address, "cluster.address" if config.address else "RAY_ADDRESS")
    else:
        cores = os.cpu_count() or 1
        needed = (config.workers + beside) * config.cpus_per_worker + DATA_CPUS
        _start(max(cores, int(needed + 0.999)))
    try:
        yield
    except ClusterLostError:
        # Saying goodbye to what is gone may take for ever.
        leaving = threading.Thread(target=ray.shutdown, name="leaving", daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


class ClusterLostError(PreemptedError):
    """The Ray that a run computes on has ended; its commits are there."""


class ClusterWatch:
    """Notices that the Ray of this process has ended, inside a ``with`` block.

    Ray itself says so after 12 to 60 s, in one of several ways, some of which end the process.
    """

    def __init__(self, interval: float = 2.0) -> None:
        """Args: ``interval`` is in seconds; what does not answer thrice is gone."""
        self._interval = interval
        self._loss: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def error(self) -> ClusterLostError | None:
        """What to raise; None while all is well."""
        if self._loss is None:
            return None
        return ClusterLostError(
            f"the Ray cluster of this run is gone: {self._loss}. Its commits are there. Next: run "
            "the same command again to go on from the last of them"
        )

    def look(self) -> None:
        """Look at once: whoever asks has another reason to think that it has ended."""
        node = ray._private.worker._global_node
        if node is not None:
            self._loss = self._loss or _silence(node)

    def _watch(self) -> None:
        node = ray._private.worker._global_node
        failures = 0
        asked = time.monotonic()
        while node is not None and not self._over.wait(min(_LOOK_SECONDS, self._interval)):
            self._loss = self._loss or _end(node)
            if self._loss is not None:
                return
            if time.monotonic() - asked < self._interval:
                continue
            loss, asked = _silence(node), time.monotonic()
            failures = 0 if loss is None else failures + 1
            if failures == _FAILURES and loss is not None:
                if loss.startswith(_RAYLET):
                    _kill_own_raylet(node)
                self._loss = loss
                return


def _kill_own_raylet(node: Any) -> None:
    """End what was started for this process and does not answer; its exit would wait for it."""
    for started in node.all_processes.get(PROCESS_TYPE_RAYLET, ()):
        started.process.kill()


def _end(node: Any) -> str | None:
    """Which part of Ray that was started for this process has ended; None while all are there."""
    for kind, name in ((PROCESS_TYPE_RAYLET, _RAYLET), (PROCESS_TYPE_GCS_SERVER, _HEAD)):
        if any(one.process.poll() is not None for one in node.all_processes.get(kind, ())):
            return f"{name} has ended"
    return None


def _silence(node: Any) -> str | None:
    """Which part of Ray does not answer; None when both do.

    A process that is stopped accepts connections, so it has to say a word.
    """
    silence = require_answer(build_address(node.node_ip_address, node.node_manager_port))
    if silence is not None:
        return f"{_RAYLET} ({silence})"
    silence = require_answer(node.gcs_address)
    return None if silence is None else f"{_HEAD} at {node.gcs_address} ({silence})"


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
def _own_handler() -> Iterator[None]:
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


def _join(address: str, key: str) -> None:
    """Connect to a cluster.

    Args:
        address: of it.
        key: what named it.
    """
    silence = require_answer(address)
    if silence is None:
        try:
            with _own_handler():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except PreemptedError:
            raise
        except Exception as error:
            silence = first_line(error).rstrip(".: ")
    raise ConfigError(
        f"{key} is {address!r}, where no Ray cluster can be joined: {silence}. Next: correct or "
        f"unset {key} to train on a Ray of this run's own, or start the cluster and run this again"
    )


def _start(cpus: int) -> None:
    """Start a Ray of this process's own."""
    folder = ray_folder()
    # Ray starts a process per CPU in advance, none of them in an environment that is needed here.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    _require_token()
    # Ray hands its workers' command to a shell, with every word quoted but the first.
    python = shlex.quote(sys.executable)
    try:
        with _own_sessions(), _few_processes(), _own_handler():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
                labels={_OWN: "true"},
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


def is_own_ray() -> bool:
    """Whether this process's Ray was started by a run, or a sweep, for itself, on one machine."""
    return any(_OWN in node.labels for node in alive_nodes())


def require_answer(address: str) -> str | None:
    """Whether something that may be Ray answers; Ray itself would wait for 15 minutes.

    Ray's servers speak HTTP/2, in which both sides begin with a SETTINGS frame (RFC 9113, 3.4).

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``; others are left to Ray.

    Returns:
        What is wrong; None for nothing.
    """
    scheme, _, rest = address.rpartition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or _PORTS.get(scheme)
    except ValueError as error:
        return str(error)
    if scheme not in ("", "ray") or host is None or port is None:
        return None
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return None
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4] + [0] * 5))
            head = connection.recv(4)
    except TimeoutError:
        return f"nothing answers within {ANSWER_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return None if head[3:] == b"\x04" else "what answers there is not Ray"


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
