"""Joining a Ray cluster or starting one, and noticing that it is gone.

Where nobody is at an address Ray itself answers late or not at all, so that is asked before.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ray
from ray._common.network_utils import build_address
from ray._private import auto_init_hook
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray.exceptions import RayError
from typing_extensions import Self

from orchestrator.cluster.cores import usable_cores
from orchestrator.cluster.own_ray import end_own_ray, kill_own_ray, own_handler, start_own_ray
from orchestrator.cluster.placement import DATA_CPUS
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError, OrchestratorError, PreemptedError, first_line
from orchestrator.training.interrupt import in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds in which a cluster has to accept a connection, and then to say a word.
ANSWER_SECONDS = 5.0
#: Of Ray's own, where an address names none.
_PORTS = {"ray": 10001}
#: Failed questions after which a cluster is gone, and seconds for leaving one that is. What this
#: process has started ends with it in any case.
_FAILURES, _LEAVE_SECONDS = 3, 1.0
#: Seconds between looks at processes of this process's own. Until it is noticed that one has ended,
#: whatever asks it for an object ends this process.
_LOOK_SECONDS = 0.1
#: What is lost when that is what does not answer.
_RAYLET, _HEAD = "its raylet on this machine", "its head"
#: Whether the Ray of this process is gone and has not been left.
_lost = threading.Event()


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
    _leave_what_was_lost()
    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address, "cluster.address" if config.address else "RAY_ADDRESS")
    else:
        needed = (config.workers + beside) * config.cpus_per_worker + DATA_CPUS
        start_own_ray(max(usable_cores(), int(needed + 0.999)))
    try:
        yield
    except ClusterLostError:
        node = ray._private.worker._global_node
        if node is not None:
            kill_own_ray(node)
        _lost.set()
        raise
    except PreemptedError:
        end_own_ray()
        raise
    except BaseException:
        ray.shutdown()
        raise
    end_own_ray()


def _leave_what_was_lost() -> None:
    """Say goodbye to a Ray that is gone, which may take for ever, or end the process with 1.

    So only who goes on after it does so.
    """
    if _lost.is_set():
        _lost.clear()
        leaving = threading.Thread(target=ray.shutdown, name="leaving", daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)


class ClusterLostError(PreemptedError):
    """The Ray that something computes on has ended; what it has written is there."""

    #: Ray would make the process wait for answers of what is gone.
    ends_at_once = True


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

    @property
    def loss(self) -> str | None:
        """Which part of Ray is gone; None while all is well."""
        return self._loss

    def error(self) -> ClusterLostError | None:
        """What whoever computes on it is to raise; None while all is well."""
        if self._loss is None:
            return None
        return ClusterLostError(
            f"the Ray cluster is gone: {self._loss}. What was committed or written is there. Next: "
            "run the same command again, which goes on from it"
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
                self._loss = loss
                return


def while_it_lasts(
    watch: ClusterWatch,
    function: Callable[[], T],
    useless: Callable[[], BaseException | None] = lambda: None,
) -> T:
    """Wait for what the cluster does, but no longer than it is there; its own answers take minutes.

    Args:
        watch: over the cluster.
        function: run in another thread.
        useless: see :func:`~orchestrator.training.interrupt.in_thread`.
    """
    try:
        return in_thread(function, given_up=lambda: useless() or watch.error())
    except Exception as error:
        # Of a cluster that is gone Ray says all kinds of things, some of them at once.
        if isinstance(error, RayError) or type(error) is OrchestratorError:
            watch.look()
            raise watch.error() or error from error
        raise


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


def _join(address: str, key: str) -> None:
    """Connect to a cluster.

    Args:
        address: of it.
        key: what named it.
    """
    silence = require_answer(address)
    if silence is None:
        try:
            with own_handler():
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
