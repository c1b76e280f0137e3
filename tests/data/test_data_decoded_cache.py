"""Decoded images that are kept on the node's disk, by several processes at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import decoded_cache
from orchestrator.data.decoded_cache import DecodedCache, key_of


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    yield
    decoded_cache._used.cache_clear()
    decoded_cache._folder.cache_clear()


def test_another_process_may_give_its_files_their_names_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes aside and renames, and who looks finds one of the names gone."""
    cache = DecodedCache(str(tmp_path), 10**8)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    cache.put(key_of("a"), image)
    (kept,) = tmp_path.rglob("*.npy")
    aside = kept.with_name(".new-b")
    aside.write_bytes(b"of another process")
    scandir = os.scandir

    @contextmanager
    def crowded(place: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(place) as found:
            entries = list(found)
            aside.replace(kept.with_name("b.npy"))
            yield iter(entries)

    decoded_cache._used.cache_clear()
    monkeypatch.setattr(os, "scandir", crowded)
    cache.put(key_of("c"), image)
    monkeypatch.undo()
    found = cache.get(key_of("c"))
    assert found is not None
    assert found.tolist() == image.tolist()
