"""Files on their way to MLflow: one by one, and in parts where the line or the server wants it.

A file that a server refuses as too large (413), or that breaks off while the server answers other
questions, goes in parts: ``weights.safetensors.parts/00001-of-00012`` and so on, halved until they
arrive. ``cat weights.safetensors.parts/*`` is the file again: parts of another number that arrived
before are emptied, because MLflow's client deletes none. What has arrived is recorded file by file
and part by part, so an upload that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

#: Bytes of a part, at first and at last.
LARGEST_PART = 8 << 20
SMALLEST_PART = 1 << 18
#: Seconds that a server may take for a file once it has all of it, and for each piece of it before.
PATIENCE = 120
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_TOO_LARGE = 413
#: In place of the fingerprint of a part that was begun; it may be there, its answer lost.
_BEGUN = ""


def pending_artifacts(
    artifacts: Mapping[str, str], arrived: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """Files that exist and have not arrived in their present form, small ones first.

    Args:
        artifacts: files and folders, by the path they get.
        arrived: fingerprint of each file that has arrived, by the same.
    """
    found = []
    for place, source in artifacts.items():
        path = Path(source)
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if file.is_file():
                name = place if file == path else f"{place}/{file.relative_to(path).as_posix()}"
                found.append((name, file))
    for name, file in sorted(found, key=lambda one: one[1].stat().st_size):
        if arrived.get(name) != fingerprint(file):
            yield name, file


def fingerprint(file: Path) -> str:
    """Changes when a file does; looks at its size and time only."""
    stat = file.stat()
    return hashlib.sha256(f"{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()


class ArtifactSender:
    """Sends files of one run.

    Args:
        client: an ``mlflow.MlflowClient``.
        run_id: of the run.
        arrived: fingerprint of each file that has arrived, by its path, and an empty one of each
            part that was begun; added to.
        parts: bytes of a part of those files that go in parts, by their paths; added to.
        save: records both.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        arrived: dict[str, str],
        parts: dict[str, int],
        save: Callable[[], None],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._arrived = arrived
        self._parts = parts
        self._save = save

    def send_all(self, artifacts: Mapping[str, str]) -> None:
        """Send what is pending; one file that fails keeps no other back.

        Raises:
            Exception: of the first file that failed, whatever MLflow raises.
        """
        pending = pending_artifacts(artifacts, self._arrived)
        failures = [self._failure(place, source) for place, source in pending]
        first = next((failure for failure in failures if failure is not None), None)
        if first is not None:
            raise first

    def _failure(self, place: str, source: Path) -> Exception | None:
        try:
            self._send(place, source)
        except Exception as error:
            return error
        return None

    def _send(self, place: str, source: Path) -> None:
        before = fingerprint(source)
        if place not in self._parts:
            try:
                self._put(place, source)
            except Exception as error:
                if not self._calls_for_parts(error, source.stat().st_size):
                    raise
                self._parts[place] = LARGEST_PART
        while place in self._parts:
            size = min(self._parts[place], max(SMALLEST_PART, source.stat().st_size // 2))
            self._parts[place] = size
            self._save()
            try:
                self._send_parts(place, source, before, size)
                break
            except Exception as error:
                if not self._calls_for_parts(error, size):
                    raise
                self._parts[place] = size // 2
        self._arrived[place] = before
        self._save()

    def _send_parts(self, place: str, source: Path, stamp: str, size: int) -> None:
        count = -(-source.stat().st_size // size)
        with source.open("rb") as file, tempfile.TemporaryDirectory() as folder:
            for number in range(1, count + 1):
                part = f"{place}.parts/{number:05d}-of-{count:05d}"
                if self._arrived.get(part) == stamp:
                    continue
                file.seek((number - 1) * size)
                copy = Path(folder) / Path(part).name
                copy.write_bytes(file.read(size))
                self._arrived[part] = _BEGUN
                self._save()
                try:
                    self._put(part, copy)
                except Exception as error:
                    if _trouble(error) == "too large":
                        del self._arrived[part]  # It is not there.
                    raise
                copy.unlink()
                self._arrived[part] = stamp
                self._save()
            self._empty_others(f"{place}.parts/", f"-of-{count:05d}", Path(folder))

    def _empty_others(self, before: str, behind: str, folder: Path) -> None:
        """Empty the parts of another number, which would be joined with those that count."""
        names = [name for name in self._arrived if name.startswith(before)]
        for part in (name for name in names if not name.endswith(behind)):
            empty = folder / Path(part).name
            empty.touch()
            self._put(part, empty)
            del self._arrived[part]
            self._save()

    def _put(self, place: str, source: Path) -> None:
        """Send one file; MLflow takes its name, so another one needs a copy."""
        at = Path(place)
        folder = None if at.parent == Path() else at.parent.as_posix()
        with _patience():
            if source.name == at.name:
                self._client.log_artifact(self._run_id, str(source), folder)
                return
            with tempfile.TemporaryDirectory() as copies:
                copy = shutil.copy(source, Path(copies) / at.name)
                self._client.log_artifact(self._run_id, str(copy), folder)

    def _calls_for_parts(self, error: Exception, size: int) -> bool:
        """Whether less at a time may arrive: the file is to blame, not a server that is away."""
        if size < 2 * SMALLEST_PART or _trouble(error) is None:
            return False
        try:
            self._client.get_run(self._run_id)
        except Exception:
            return False
        return True


def _trouble(error: BaseException | None) -> Literal["too large", "broken off"] | None:
    """What the size of an upload may be to blame for; None where it is something else."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return "too large" if response.status_code == _TOO_LARGE else None
        if isinstance(error, ConnectionError | TimeoutError) or _is_of_requests(error):
            return "broken off"
        error = error.__cause__ or error.__context__
    return None


def _is_of_requests(error: BaseException) -> bool:
    from requests.exceptions import ConnectionError as Broken
    from requests.exceptions import Timeout

    return isinstance(error, Broken | Timeout)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Wait longer for a server than a question about a run would; MLflow looks at each call."""
    before = os.environ.get(_TIMEOUT)
    if before is not None and int(before) < PATIENCE:
        os.environ[_TIMEOUT] = str(PATIENCE)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_TIMEOUT] = before
