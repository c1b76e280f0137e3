"""What a file's nodes can hold is what a run finds room for on a cluster of such nodes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orchestrator.accelerators import from_resources
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.placement import Placement, _total, shortage
from orchestrator.cluster_files.fit import _misfit, misfit
from orchestrator.cluster_files.sheet import Nodes
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import ConfigError

RECIPE = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


def run_finds_room(experiment, kinds: list[Nodes]) -> bool:
    """As a run decides when it starts, on nodes that Ray tells it of."""
    cluster = experiment.cluster
    nodes = [
        Node(f"{kind.name}{number}", kind.name, f"10.0.0.{number}", kind.resources, kind.labels)
        for kind in kinds
        for number in range(kind.count)
    ]
    try:
        accelerator = from_resources(cluster.accelerator, _total(nodes))
    except ConfigError:
        return False
    each = {"CPU": cluster.cpus_per_worker}
    if accelerator.kind != "cpu":
        each[accelerator.ray_resource] = 1.0
    placement = Placement(
        accelerator, each, 1, strategy=cluster.placement.upper(), labels=cluster.labels
    )
    if not any(placement.takes(node) for node in nodes):
        return False
    return shortage(cluster.workers, placement, nodes) is None


@pytest.mark.parametrize(
    ("placement", "room"),
    [("pack", 8_000_000_000), ("strict_spread", 2_000_000_000), ("strict_pack", 4)],
)
def test_any_number_of_nodes_is_counted_at_once(placement: str, room: int) -> None:
    overrides = [f"cluster.placement={placement}", "train.batch_size=10000000000"]
    nodes = [Nodes("node", 2_000_000_000, {"CPU": 5.0}), Nodes("none", 0, {"CPU": 100.0})]
    for workers, fits in ((room, True), (room + 1, False)):
        cluster = load_experiment(RECIPE, overrides).experiment.cluster
        cluster = cluster.model_copy(update={"workers": workers, "cpus_per_worker": 1.2})
        assert (_misfit(cluster, nodes) is None) == fits


@pytest.mark.parametrize("seed", range(40))
def test_both_agree_on_drawn_clusters(seed: int) -> None:
    draw = random.Random(seed)
    experiment = load_experiment(
        RECIPE,
        [
            "train.batch_size=840",
            f"cluster.workers={draw.randint(1, 8)}",
            f"cluster.cpus_per_worker={draw.choice([0.5, 1, 1.5, 2, 3])}",
            f"cluster.accelerator={draw.choice(['auto', 'cpu', 'gpu', 'npu'])}",
            f"cluster.placement={draw.choice(['pack', 'spread', 'strict_pack', 'strict_spread'])}",
            *draw.choice([[], [], ["cluster.labels={zone: a}"]]),
        ],
    ).experiment
    seen = set()
    for _ in range(25):
        kinds = [
            Nodes(
                f"kind{number}",
                draw.randint(0, 4),
                {
                    name: float(amount)
                    for name in ("CPU", "GPU", "NPU")
                    if (amount := draw.choice([0, 1, 2, 4, 8]))
                    and (name == "CPU" or draw.random() < 0.4)
                },
                labels=draw.choice([{}, {"zone": "a"}, {"zone": "b"}]),
            )
            for number in range(draw.randint(1, 3))
        ]
        found = misfit(experiment, kinds)
        assert (found is None) == run_finds_room(experiment, kinds), (found, kinds)
        seen.add(found is None)
    assert seen
