"""A Ray of a test's own, which neither finds nor leaves anything in the home folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray


@contextmanager
def local_ray(home: Path, **options: Any) -> Iterator[None]:
    """While the block runs.

    Args:
        home: folder to be ``HOME``.
        options: of ``ray.init``.
    """
    # Socket paths are limited to 107 characters, so pytest's folders are too deep.
    folder = tempfile.mkdtemp(prefix="ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        ray.init(address="local", include_dashboard=False, _temp_dir=folder, **options)
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
