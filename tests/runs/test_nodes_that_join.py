"""Which nodes a run looks at, and when; no cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.cluster.nodes import Node
from orchestrator.errors import ConfigError
from orchestrator.runs import reach
from orchestrator.runs.reach import marked_folder


def test_only_nodes_that_have_joined_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node(name: str) -> Node:
        return Node(name, name, name, {"CPU": 0.0 if name == "head" else 4.0})

    asked: list[list[str]] = []

    def survey(nodes: Any, needed: Any, marker: Path) -> list[Node]:
        asked.append([node.id for node in nodes])
        assert marker.exists()
        if "blind" in asked[-1]:
            raise ConfigError("data.val.images: /data cannot be read on blind")
        return [node for node in nodes if node.id == "far"]

    there = [node("head"), node("here")]
    for name, value in {
        "alive_nodes": lambda: list(there),
        "this_node": lambda: "here",
        "is_own_ray": lambda: False,
        "needed_by": lambda plan, done: [],
        "read_note": lambda key: None,
        "leave_note": lambda key, text: None,
        "survey": survey,
    }.items():
        monkeypatch.setattr(reach, name, value)
    plan: Any = SimpleNamespace(job=SimpleNamespace(bucket=None))
    said: list[str] = []
    with marked_folder(plan, tmp_path, done=0, say=said.append) as around:
        # Alone on the driver's node there is nothing to find out.
        assert asked == []
        there.append(node("far"))
        for _ in range(2):
            around.look(1)
        assert asked == [["far"]]
        assert len(said) == 1
        assert "workers on far send through it what they write" in said[0]
        there.append(node("blind"))
        for _ in range(2):  # It may be mended in between.
            with pytest.raises(ConfigError, match="cannot be read on blind"):
                around.look(1)
        there.pop()
        around.look(1)
    assert asked == [["far"], ["blind"], ["blind"]]
    assert list(tmp_path.iterdir()) == []
