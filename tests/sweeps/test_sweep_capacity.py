"""How many trials fit, worked out by hand for small clusters."""

from __future__ import annotations

import pytest

from orchestrator.errors import ConfigError
from orchestrator.sweeps.capacity import agreed, capacity

CPU = {"CPU": 1.0}
GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "each", "workers", "trials"),
    [
        ([{"CPU": 2.0}], CPU, 1, 1),  # A worker and a reader.
        ([{"CPU": 4.0}], CPU, 1, 2),
        ([{"CPU": 4.0}], CPU, 2, 1),
        ([{"CPU": 2.0}], CPU, 2, 0),
        ([{"CPU": 2.0}] * 4, CPU, 2, 2),  # 8 CPUs, 3 a trial.
        ([{"CPU": 3.0}] * 2, {"CPU": 2.0}, 1, 2),
        ([{"CPU": 1.0}] * 4, {"CPU": 2.0}, 1, 0),  # 4 CPUs, but no node has two.
        ([{"CPU": 8.0, "GPU": 4.0}], GPU, 2, 2),
        ([{"CPU": 4.0, "GPU": 4.0}, {"CPU": 2.0}], GPU, 1, 3),  # The fourth would have no reader.
        ([{"CPU": 16.0}], {"CPU": 1.0, "NPU": 1.0}, 1, 0),
        ([{"CPU": 2.0}], {"CPU": 0.5}, 2, 1),
    ],
)
def test_trials_that_fit(
    nodes: list[dict[str, float]], each: dict[str, float], workers: int, trials: int
) -> None:
    assert capacity(nodes, each, workers).trials == trials


def test_what_can_never_be_placed_is_refused_with_the_arithmetic() -> None:
    small = capacity([{"CPU": 2.0}], CPU, 2)
    with pytest.raises(ConfigError, match=r"2 workers x 1 CPU, plus 1 CPU .* the cluster has 2"):
        agreed(small, None, 4)
    two = capacity([{"CPU": 4.0}], CPU, 1)
    with pytest.raises(ConfigError, match=r"sweep.concurrency is 3.* enough for 2 at a time"):
        agreed(two, 3, 4)
    assert agreed(two, None, 8) == 2
    assert agreed(two, None, 1) == 1
    assert agreed(two, 1, 8) == 1
