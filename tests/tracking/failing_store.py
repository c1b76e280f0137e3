"""A stand-in for MLflow that fails where a test wants it to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class Crash(BaseException):
    """Stands for the end of the process: nothing catches it."""


class Store:
    """MLflow as its store behaves: one row per (key, time, step, value). Fails as it is told to."""

    def __init__(self) -> None:
        self.rows: set[tuple[str, int, int, float]] = set()
        self.runs: dict[str, str] = {}
        self.calls = 0
        self.fail = lambda call: None

    def _call(self, action):
        self.calls += 1
        how = self.fail(self.calls)
        if how == "before":
            raise ConnectionError("refused")
        result = action()
        if how == "after":
            raise ConnectionError("answer lost")
        if how == "crash":
            raise Crash
        return result

    def _run(self, run_id: str) -> Any:
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, experiment_id="1", lifecycle_stage="active"),
            data=SimpleNamespace(params={}, tags={}),
        )

    def get_experiment_by_name(self, name):
        return self._call(lambda: SimpleNamespace(experiment_id="1", lifecycle_stage="active"))

    def search_runs(self, experiments, query, max_results):
        key = query.split("'")[1]
        found = [self._run(run) for run, owner in self.runs.items() if owner == key]
        return self._call(lambda: found)

    def create_run(self, experiment, start, *, tags, run_name):
        def create():
            run_id = f"run{len(self.runs)}"
            self.runs[run_id] = tags["orchestrator_run_key"]
            return self._run(run_id)

        return self._call(create)

    def get_run(self, run_id):
        return self._call(lambda: self._run(run_id))

    def update_run(self, run_id, status):
        self._call(lambda: None)

    def set_terminated(self, run_id, status, end_time):
        self._call(lambda: None)

    def log_batch(self, run_id, *, metrics=(), params=(), tags=(), synchronous):
        assert len(metrics) <= 1000
        new = [(m.key, m.timestamp, m.step, m.value) for m in metrics]
        self._call(lambda: self.rows.update(new))
