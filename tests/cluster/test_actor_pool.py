"""What a process that shares out work reserves on the cluster."""

from __future__ import annotations

from orchestrator.cluster.actor_pool import actor_options


def test_every_kind_of_device_is_reserved() -> None:
    assert actor_options({"CPU": 2.0, "GPU": 1.0}) == {
        "num_cpus": 2.0,
        "num_gpus": 1.0,
        "resources": {},
    }
    assert actor_options({"CPU": 1.0, "NPU": 1.0})["resources"] == {"NPU": 1.0}
