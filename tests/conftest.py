"""What several folders of tests share."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from orchestrator.storage.local import Storage
from tests.support.faulty_storage import BucketStorage, QuickStorage

#: Bytes; a session of Ray's takes 63 more.
LONGEST_TMPDIR = 40


def pytest_configure() -> None:
    """One token for every Ray that the tests start, set before anything imports Ray; short paths.

    Left alone, the first ``ray.init`` of a process keeps a token under the ``HOME`` of its test
    and demands one from then on; the servers of the next test, which has another ``HOME``, start
    without it, and refuse their own client.
    """
    # A machine with other work to do is slow now and then, and nothing is wrong with that.
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # Ray's sockets and those of multiprocessing lie below it; Linux takes 107 bytes in all.
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        os.environ["TMPDIR"], tempfile.tempdir = "/tmp", None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: they take longest, and at the end one core would wait."""
    through_ray = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in through_ray)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny detector, two commits, averaged weights; only to be read."""
    from tests.support.small_run import make_run

    return make_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set; files that need another size make their own."""
    from orchestrator.data.demo.digits import Recipe, build_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    build_digits(folder, Recipe(train=26, val=4, seed=3))
    return folder


@pytest.fixture(params=[QuickStorage, BucketStorage], ids=["local", "objects"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of a run: a folder, and what behaves like a bucket."""
    make: Callable[[Path], Storage] = request.param
    return make(tmp_path / "run")
