"""``orchestrator serve``: a detector behind HTTP, on Ray Serve.

Two deployments. The gate talks HTTP and refuses what is malformed, too large or not allowed; it
knows no torch. The detectors, one a worker, decode and detect in batches. A batch is filled up to
one size, as in ``orchestrator predict``, so an image's answer has the same bits whatever else is
asked at the time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.cluster.actor_pool import actor_options
from orchestrator.cluster.connection import ClusterLostError, ClusterWatch, connected
from orchestrator.cluster.placement import place
from orchestrator.data.decode import BadImageError, TooManyPixelsError, decode_image
from orchestrator.errors import ConfigError
from orchestrator.predict.loading import LoadedDetector
from orchestrator.predict.prediction import Prediction, kept, network_of, to_seed_json
from orchestrator.predict.predictor import DetectOptions, detect
from orchestrator.serving.front import DoorLimits, FrontDoor
from orchestrator.serving.service import (
    SWALLOWED,
    Answer,
    Gate,
    Limits,
    Query,
    Request,
    refusal,
    refuse_image,
)
from orchestrator.training.interrupt import stopping_politely

_APPLICATION: Final = "orchestrator"
#: Room for health checks and refusals beside the requests that wait for a detector.
_SPARE_REQUESTS: Final = 1024
#: Open files that are no connections.
_SPARE_FILES: Final = 512
#: For requests that are being answered when the server is told to end.
_LAST_ANSWERS_SECONDS: Final = 20.0
#: Between looks at whether Ray is there.
_LOOK_SECONDS: Final = 0.5


@dataclass(frozen=True)
class ServeJob:
    """What is served and how; plain data, picklable.

    Attributes:
        loaded: the detector.
        how: views and post-processing.
        batch_size: images the network is given at a time.
        wait_seconds: for a batch to become full.
        threads: CPU threads of each detector.
        limits: what is taken.
        token_sha256: digest of the token that clients send; None to ask for none.
    """

    loaded: LoadedDetector
    how: DetectOptions
    batch_size: int
    wait_seconds: float
    threads: int
    limits: Limits
    token_sha256: str | None

    @property
    def about(self) -> dict[str, Any]:
        """What clients may know."""
        limits = self.limits
        return {
            "detector": self.loaded.resolved.experiment.detector.title,
            "weights_sha256": self.loaded.weights_sha256,
            "step": self.loaded.step,
            "classes": [
                {"label": label, "category_id": number, "name": name}
                for label, (name, number) in enumerate(
                    zip(self.loaded.label_map.names, self.loaded.label_map.ids, strict=True)
                )
            ],
            "batch_size": self.batch_size,
            "max_bytes": limits.max_bytes,
            "max_pixels": limits.max_pixels,
        }


class BatchDetector:
    """Answers queries, a batch at a time.

    Args:
        job: what is served.
        kind: of device; None for that of the experiment.
    """

    def __init__(self, job: ServeJob, kind: str | None = None) -> None:
        self.job = job
        self._network = network_of(job.loaded, kind)

    def read(self, queries: Sequence[Query]) -> list[NDArray[np.uint8] | BadImageError]:
        """Pixels of each image, or why there are none."""
        return [self._read(query) for query in queries]

    def _read(self, query: Query) -> NDArray[np.uint8] | BadImageError:
        try:
            limit = self.job.limits.max_pixels
            pixels = decode_image(query.data, max_pixels=limit, decoding=self.job.loaded.pictures)
            if self.job.how.tiles is not None:
                self.job.how.tiles.require_few(pixels.shape[0], pixels.shape[1], "the image")
        except BadImageError as error:
            return error
        except ConfigError as error:
            # Those of the same batch are answered.
            return TooManyPixelsError(str(error))
        return pixels

    def answer(
        self, queries: Sequence[Query], read: Sequence[NDArray[np.uint8] | BadImageError]
    ) -> list[Answer]:
        """Detections in images, at most ``batch_size``.

        Args:
            queries: what is asked.
            read: what :meth:`read` returned for them.
        """
        images = [pixels for pixels in read if not isinstance(pixels, BadImageError)]
        found = iter(self._detect(images))
        answers = []
        for query, pixels in zip(queries, read, strict=True):
            if isinstance(pixels, BadImageError):
                answers.append(refuse_image(pixels))
            else:
                one = kept(query.name, pixels.shape[0], pixels.shape[1], next(found))
                answers.append(self._answer(one, len(images)))
        return answers

    def _detect(self, images: list[NDArray[np.uint8]]) -> list[Any]:
        if not images:
            return []
        return detect(
            self._network,
            images,
            self.job.how,
            prepare=self.job.loaded.prepare,
            batch_size=self.job.batch_size,
        )

    def _answer(self, one: Prediction, batch: int) -> Answer:
        tree = to_seed_json([one], self.job.loaded.label_map)
        # A name may hold half of a surrogate pair, which UTF-8 cannot say.
        text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
        body = text.encode("utf-8", "replace")
        return Answer(200, body, batch=batch, detections=len(one.scores))


class _DetectorDeployment:
    """A :class:`BatchDetector` in a replica of Ray Serve: one batch is read while one is seen."""

    def __init__(self, shared: Sequence[Any], kind: str) -> None:
        import ray
        from ray import serve

        job: ServeJob = ray.get(shared[0])
        self._detector = BatchDetector(job, kind)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="images")
        # The number of threads belongs to the thread that asks torch to compute.
        self._network = ThreadPoolExecutor(
            1, "network", initializer=torch.set_num_threads, initargs=(job.threads,)
        )
        self._batched = serve.batch(
            max_batch_size=job.batch_size,
            batch_wait_timeout_s=job.wait_seconds,
            max_concurrent_batches=2,
        )(self._answer)

    async def __call__(self, query: Query) -> Answer:
        answer: Answer = await self._batched(query)
        return answer

    async def alive(self) -> bool:
        """Return, and so show that this replica is there."""
        return True

    async def _answer(self, queries: list[Query]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._readers, self._detector.read, queries)
        return await loop.run_in_executor(self._network, self._detector.answer, queries, read)


class _GateDeployment:
    """A :class:`Gate` as the ingress of a Ray Serve application."""

    def __init__(
        self, detector: Any, limits: Limits, token_sha256: str | None, about: dict[str, Any]
    ) -> None:
        self._gate = Gate(
            detector.remote,
            detector.alive.remote,
            limits=limits,
            token_sha256=token_sha256,
            about=about,
        )

    async def __call__(self, request: Request) -> Any:
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        try:
            answer = await self._gate.answer(request)
        except ClientDisconnect:
            answer = refusal(400, "cut_off", "the connection ended before the image did")
        return Response(
            answer.body, answer.status, dict(answer.headers), media_type=answer.media_type
        )


def serve_detector(
    job: ServeJob, host: str, port: int, *, workers: int, on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is answered within 20 s.

    Args:
        job: what to serve.
        host: IP address to listen at.
        port: to listen at; 0 for any free one.
        workers: detectors, each in a process of its own.
        on_ready: told the address once requests are answered.

    Raises:
        ConfigError: the ``serve`` extra is not installed, the port is taken, the cluster is too
            small or serves something already.
        ClusterLostError: the Ray that the detectors are on has ended.
    """
    require_serve_packages()
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    cluster = job.loaded.resolved.experiment.cluster.model_copy(update={"workers": workers})
    stopped = threading.Event()
    # Ray sets handlers of its own when it connects; these come after.
    behind = ("127.0.0.1", _free_port("127.0.0.1"))
    room = job.limits.max_pending + _SPARE_REQUESTS
    limits = DoorLimits(
        connections=_connections(room), spare_bytes=SWALLOWED * job.limits.max_bytes
    )
    door = FrontDoor(host, port, behind, limits, token_sha256=job.token_sha256)
    with door, connected(cluster), ClusterWatch() as watch, stopping_politely(stopped.set):
        _require_no_serve()
        placement = place(cluster)
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        detectors = serve.deployment(
            num_replicas=workers,
            max_ongoing_requests=room,
            ray_actor_options=actor_options(placement.resources_per_worker),
            logging_config=quiet,
        )(_DetectorDeployment).bind([ray.put(job)], placement.accelerator.kind)
        gate = serve.deployment(
            max_ongoing_requests=2 * room,
            max_queued_requests=room,
            ray_actor_options={"num_cpus": 0},
            logging_config=quiet,
        )(_GateDeployment).bind(detectors, job.limits, job.token_sha256, job.about)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _require_head()
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": behind[0], "port": behind[1]},
            logging_config=quiet,
        )
        try:
            serve.run(gate, name=_APPLICATION, route_prefix="/")
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{door.port}")
            while watch.loss is None and not stopped.wait(_LOOK_SECONDS):
                pass
            if watch.loss is None:
                door.drain(_LAST_ANSWERS_SECONDS)
        finally:
            _end_serve(watch)
        if watch.loss is not None:
            raise ClusterLostError(
                f"the Ray that answers is gone: {watch.loss}. Next: run the same command again"
            )


def _end_serve(watch: ClusterWatch) -> None:
    """End Ray Serve, for as long as there is the Ray that it is on: what is gone never answers."""
    from ray import serve

    ending = threading.Thread(target=serve.shutdown, name="ending", daemon=True)
    ending.start()
    while ending.is_alive() and watch.loss is None:
        ending.join(_LOOK_SECONDS)


def require_serve_packages() -> None:
    """See that Ray Serve can be used.

    Raises:
        ConfigError: it cannot.
    """
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serving needs the package {error.name}, which is not installed. Next: "
            "pip install -c constraints.txt -e '.[serve]'"
        ) from error


def _connections(wanted: int) -> int:
    """As many connections as wanted, or as this process may have: each takes two open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _SPARE_FILES
    files = needed if most == resource.RLIM_INFINITY else min(needed, most)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(wanted, (files - _SPARE_FILES) // 2))


def _require_no_serve() -> None:
    """Refuse a cluster on which Serve runs: it would keep its own address, limits and guests."""
    from ray import serve

    status = serve.status()
    if status.proxies or status.applications:
        raise ConfigError(
            "Ray Serve runs on this cluster already, at an address that cannot be changed. Next: "
            "end it with `serve shutdown`, or unset RAY_ADDRESS and cluster.address to serve from "
            "a Ray of its own"
        )


def _require_head() -> None:
    """See that Ray's proxy, which runs on the head of a cluster, is on this machine.

    Raises:
        ConfigError: the head is another one.
    """
    import ray

    context = ray.get_runtime_context()
    head = context.gcs_address.rpartition(":")[0]
    here = {"127.0.0.1", "localhost", ray.util.get_node_ip_address()}
    if head not in here:
        raise ConfigError(
            f"serving listens on the head of the cluster, {head}, and this machine is another one. "
            "Next: run the command there"
        )


def _free_port(host: str) -> int:
    """A port that nobody listens at."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
