"""Cores that a process may use, whatever container or queue it is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.cluster.cores import usable_cores


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        # The one that counts is a service's, and this process is in a part of it.
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        # As a container sees it that does not know its name outside.
        ("0::/docker/0123\n", {"cpu.max": "300000 100000"}, 3),
        ("4:memory:/a\n1:cpu,cpuacct:/a\n",
         {"cpu/a/cpu.cfs_quota_us": "600000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 6),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/../../other\n", {"cpu.max": "300000 100000"}, 64),
        (None, {}, 64),
    ],
)  # fmt: skip
def test_a_container_has_the_cores_that_it_is_given(
    groups: str | None, files: dict[str, str], cores: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    own = tmp_path / "cgroup"
    if groups is not None:
        own.write_text(groups)
    assert usable_cores(own, tmp_path / "groups") == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert usable_cores(own, tmp_path / "groups") == 1
