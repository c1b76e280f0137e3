"""What fits on which node, and what is said where it does not."""

from __future__ import annotations

import os

import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.cluster import placement as module
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.placement import Placement, place, share_of_node
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError


def node(number: int, **resources: float) -> Node:
    return Node(f"n{number}", f"host{number}", f"10.0.0.{number}", resources)


def placed(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[Node],
    *,
    one_thread: bool = False,
    threads_before: int | None = None,
    **keys: object,
) -> Placement:
    monkeypatch.setattr(module, "alive_nodes", lambda: nodes)
    return place(ClusterConfig(**keys), one_thread=one_thread, threads_before=threads_before)


def test_a_worker_has_to_fit_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    two_small = [node(1, CPU=2.0), node(2, CPU=2.0)]
    with pytest.raises(ConfigError) as caught:
        placed(monkeypatch, two_small, workers=1, cpus_per_worker=3.0)
    text = str(caught.value)
    # The sum, 4 CPUs, would do.
    assert "1 workers x 3 CPU do not fit: a worker has to be on one node" in text
    assert "host1 (10.0.0.1): 2 CPU for 0; host2 (10.0.0.2): 2 CPU for 0" in text
    assert "room for 0" in text
    # 3 x 1.5 + 1 = 5.5 of 6 CPUs, but one on each of two nodes, and 1 CPU left on either.
    two_of_three = [node(1, CPU=3.0), node(2, CPU=2.0), node(3, CPU=1.0)]
    assert placed(monkeypatch, two_of_three, workers=3, cpus_per_worker=1.5).strategy == "PACK"
    with pytest.raises(ConfigError, match=r"host2 \(10\.0\.0\.2\): 1\.9 CPU for 1.*room for 2"):
        placed(monkeypatch, [node(1, CPU=2.9), node(2, CPU=1.9), node(3, CPU=1.0)], workers=3,
               cpus_per_worker=1.5)  # fmt: skip


def test_fractions_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 x 0.1 is not 0.3 in binary fractions.
    assert placed(monkeypatch, [node(1, CPU=1.3)], workers=3, cpus_per_worker=0.1)


def test_devices_are_counted_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(1, CPU=16.0), node(2, CPU=2.0, GPU=8.0)]
    assert placed(monkeypatch, nodes, workers=2).accelerator == Accelerator("gpu")
    with pytest.raises(ConfigError, match="2 CPU and 8 GPU for 2; so the cluster has room for 2"):
        placed(monkeypatch, nodes, workers=3)


@pytest.mark.parametrize(
    ("strategy", "fits", "refused"),
    [("pack", 6, 7), ("spread", 6, 7), ("strict_pack", 4, 5), ("strict_spread", 2, 3)],
)
def test_strategies(
    strategy: str, fits: int, refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for 4 and for 2 workers of 2 CPUs, and 1 CPU more for reading.
    nodes = [node(1, CPU=9.0), node(2, CPU=4.0)]
    keys = {"cpus_per_worker": 2.0, "placement": strategy}
    found = placed(monkeypatch, nodes, workers=fits, **keys)
    assert found.strategy == strategy.upper()
    with pytest.raises(ConfigError, match=r"cluster\.workers: "):
        placed(monkeypatch, nodes, workers=refused, **keys)


def test_types_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Node("f", "fast", "10.0.0.9", {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0},
                {"market-type": "spot"})  # fmt: skip
    slow = Node("s", "slow", "10.0.0.8", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:T4": 1.0})
    nodes = [fast, slow]
    assert placed(monkeypatch, nodes, workers=6).takes(slow)
    found = placed(monkeypatch, nodes, workers=2, accelerator_type="H100")
    assert [found.takes(one) for one in nodes] == [True, False]
    with pytest.raises(ConfigError, match=r"fast .*8 CPU and 2 GPU for 2; so .* room for 2"):
        placed(monkeypatch, nodes, workers=3, accelerator_type="H100")
    with pytest.raises(ConfigError, match=r"accelerator_type: no node has a H200; .*: H100, T4"):
        placed(monkeypatch, nodes, workers=1, accelerator_type="H200")
    assert placed(monkeypatch, nodes, workers=2, labels={"market-type": "spot"}).takes(fast)
    with pytest.raises(
        ConfigError, match=r"no node has market-type: on-demand; .* market-type: sp"
    ):
        placed(monkeypatch, nodes, workers=1, labels={"market-type": "on-demand"})
    with pytest.raises(ConfigError, match="market-type: spot and a T4"):
        placed(monkeypatch, nodes, workers=1, accelerator_type="T4", labels={"market-type": "spot"})


def test_threads_follow_from_the_workers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert share_of_node(64.0, 8) == 7
    # A container's share of the machine, as Ray was told.
    assert share_of_node(9.0, 2) == 4
    assert share_of_node(1.0, 1) == 1
    nodes = [node(1, CPU=33.0), node(2, CPU=5.0)]
    found = placed(monkeypatch, nodes, workers=4)
    # Four may be together on the smaller node: (5 - 1) // 4.
    assert (found.threads, found.by_node) == (1, True)
    assert not placed(monkeypatch, nodes, workers=4, threads_per_worker=3).by_node
    found = placed(monkeypatch, nodes, workers=1, one_thread=True)
    assert (found.threads, found.by_node) == (1, False)


def test_a_run_keeps_its_threads_where_its_ray_is_told_of_fewer_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of threads is part of the bits; that of a container's cores was not looked at."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    own = Node("n", "host", "10.0.0.1", {"CPU": 3.0}, {"orchestrator-own": "true"})
    assert placed(monkeypatch, [own], workers=1, threads_before=63).threads == 63
    assert placed(monkeypatch, [own], workers=1, threads_before=64).threads == 2
    other = node(1, CPU=3.0)
    assert placed(monkeypatch, [other], workers=1, threads_before=63).threads == 2
