"""Samples of the machine, by hand from what Linux writes."""

from __future__ import annotations

import pytest
from failing_store import Store

from orchestrator.tracking.ship import Machine
from orchestrator.tracking.ship_state import RunSpec, ShipState
from orchestrator.tracking.shipping import RunShipper


def test_values_follow_from_proc(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  4096 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")
    (tmp_path / "stat").write_text("cpu  100 0 100 600 100 50 50 0 7 7\ncpu0 1 2\n")
    machine = Machine(tmp_path, tmp_path)
    assert "system/cpu_utilization_percentage" not in machine.sample()
    # 200 ticks more, 50 of them waiting.
    (tmp_path / "stat").write_text("cpu  200 0 150 640 110 50 50 0 9 9\ncpu0 1 2\n")
    found = machine.sample()
    assert found["system/cpu_utilization_percentage"] == pytest.approx(75.0)
    assert found["system/system_memory_usage_megabytes"] == 3.0
    assert found["system/system_memory_usage_percentage"] == 75.0
    assert 0.0 < found["system/disk_usage_percentage"] <= 100.0


def test_no_linux_is_no_failure(tmp_path):
    assert Machine(tmp_path, tmp_path / "none").sample() == {}


def test_samples_are_numbered_on_after_a_restart(tmp_path):
    store = Store()
    spec = RunSpec("http://somewhere", "d", "r")
    for _ in range(2):
        shipper = RunShipper(tmp_path, spec, lambda uri: store)
        shipper.sample({"system/x": 1.0})  # Before the run exists: nowhere to go.
        shipper.ship()
        shipper.sample({"system/x": 1.0})
        shipper.sample({})
    assert sorted(step for _, _, step, _ in store.rows) == [0, 1]
    state = ShipState.load(tmp_path)
    assert state is not None
    assert state.samples == 2
