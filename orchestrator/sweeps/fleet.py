"""Running trials at the same time: Ray Tune with this program's plan, journal and verdicts."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.cluster.connection import ClusterWatch
from orchestrator.cluster.nodes import alive_nodes, this_node
from orchestrator.errors import OrchestratorError, PreemptedError, first_line
from orchestrator.storage.run_files import STOP, trial_name
from orchestrator.sweeps.judge import Judge
from orchestrator.sweeps.plan import Trial
from orchestrator.sweeps.runner import Runner, read_end
from orchestrator.training.trial_decision import write_verdict

#: Share of a node's own resource that the driver of a trial takes: it needs no CPU of its own, and
#: Ray takes no request for nothing.
_A_LITTLE = 0.001
#: Starts of a trial whose process was lost, with its node or for want of memory, or whose workers
#: were told to stop by somebody else.
STARTS = 3


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> Trial | None:
        """The next trial to run; None when there is none any more."""

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Take note of how a trial ended; see :func:`~orchestrator.sweeps.runner.read_end`."""


class CutShort:
    """Trials that somebody else has ended, such as a cloud that took a worker's node back.

    Args:
        source: that they came from.
        trials: each of them.
    """

    def __init__(self, source: Source, trials: Sequence[Trial]) -> None:
        self._source = source
        self._waiting = deque(trials)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> Trial | None:
        """The next of them."""
        return self._waiting.popleft() if self._waiting else None

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Let the source know."""
        self._source.ended(trial, end)


class Fleet:
    """Trials under way.

    Args:
        runner: what runs in a trial's process.
        source: where trials come from; told how each of them ended.
        judge: who decides whether a trial goes on; None to let all of them.
    """

    def __init__(self, runner: Runner, source: Source, judge: Judge | None) -> None:
        self._runner = runner
        self._source = source
        self._judge = judge
        self.folder = runner.planner.folder
        self.running: dict[str, Trial] = {}
        self.stopping = False
        #: Trials that have committed and ended although nobody has asked this fleet to stop.
        self.cut_short: list[Trial] = []
        self.fatal: str | None = None
        #: Why no more trials are given out; those under way go on to their ends.
        self.failure: Exception | None = None

    def run(self, *, trials: int, concurrency: int) -> None:
        """Run trials until the source has no more, or somebody asked to stop.

        Args:
            trials: that the source has, at most.
            concurrency: trials at a time.

        Raises:
            OrchestratorError: a sampled value did not reach its trial; or there was no next one,
                which is said when those under way have ended.
            PreemptedError: Ray has lost a process and Tune cannot go on.
        """
        # Tune would print, write logs of its own, and move every trial into a folder of its own.
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
        # A trial that fails, or is stopped, before its first evaluation has no score to report.
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
        storage = self.folder / "ray"
        name = f"start-{uuid.uuid4().hex[:8]}"
        runner = self._runner

        def trainable(config: dict[str, Any]) -> None:
            runner.run(config)

        tuner = tune.Tuner(
            tune.with_resources(trainable, _driver_resources()),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=trials,
                search_alg=_Feed(self),
                scheduler=_Verdicts(self),
                max_concurrent_trials=concurrency,
                # A new process imports for seconds.
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=STARTS - 1),
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            if self.failure is not None:
                raise self.failure from error
            if not isinstance(error, RayError):
                raise
            # Tune starts a trial again whose process has died, but gives up itself where Ray names
            # the cause, such as a lack of memory. Commits and journal hold all that was done.
            names = ", ".join(sorted(self.names())) or "no trial"
            raise PreemptedError(
                f"Ray lost the process of a trial while {names} ran: {first_line(error)}. Next: "
                "run the same command again; trials under way go on from their commits"
            ) from error
        finally:
            # What Tune leaves there, now or in a start that was killed, is never read again.
            shutil.rmtree(storage, ignore_errors=True)
        if self.fatal is not None:
            raise OrchestratorError(self.fatal)
        if self.failure is not None:
            raise self.failure

    def given_up(self, watch: ClusterWatch) -> BaseException | None:
        """Why waiting has become useless; None while it is not.

        How trials end whose cluster is gone says nothing about them: they go on in the next start.
        """
        lost = watch.error()
        self.failure = self.failure or lost
        return lost

    def names(self) -> set[str]:
        """Of the trials under way."""
        return {trial.name for trial in list(self.running.values())}

    def stop(self) -> None:
        """Start no more trials, and ask those under way to commit and end, as their runners see."""
        self.stopping = True
        (self.folder / STOP).touch()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Configuration of the next trial for Tune."""
        trial = None
        if not self.stopping and self.failure is None:
            try:
                trial = self._source.next()
            except Exception as error:
                # Raised in here, it would make Tune drop the trials that train.
                self.failure = error
        if trial is None:
            return None
        self.running[trial_id] = trial
        return {"trial": trial.number, "values": json.dumps(trial.values)}

    def complete(self, trial_id: str, *, error: bool) -> None:
        """A trial's process has ended."""
        trial = self.running.pop(trial_id)
        end = read_end(self.folder / trial.name, error=error)
        if error and self.failure is not None:
            end = {"state": "preempted"}  # It was ended because nothing can be decided any more.
        if end.get("fatal"):
            self.fatal = f"{trial.name}: {end['reason']}"
            self.stop()
        if end["state"] == "preempted" and not self.stopping:
            self.cut_short.append(trial)
        try:
            self._source.ended(trial, end)
        except Exception as error:
            self.failure = self.failure or error

    def report(self, result: dict[str, Any]) -> None:
        """An evaluation of a trial; where it is judged, the trial gets its verdict."""
        epoch = result.get("epoch")
        if self._judge is None or epoch not in self._runner.judged_epochs:
            return
        try:
            goes_on = self._judge.goes_on(result["trial"], int(epoch), result["score"])
            run_dir = self.folder / trial_name(result["trial"])
            write_verdict(run_dir, result["step"], goes_on=goes_on)
        except Exception as error:
            # The trial would wait for ever, so Tune ends with this, and says it in its own words.
            self.failure = self.failure or error
            raise


def _driver_resources() -> dict[str, float]:
    """Of the driver of a trial: beside that of the sweep, which sees the folder of the sweep."""
    here = next(node for node in alive_nodes() if node.id == this_node())
    return {"CPU": 0, here.own_resource: _A_LITTLE}


class _Unkept:
    """Part of a Tuner that is not worth keeping: the journal rebuilds it."""

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        # Tune pickles its parts for a restore of its own, which never happens here.
        return (object, ())


class _Feed(_Unkept, Searcher):  # type: ignore[misc]
    """Hands the fleet's trials to Tune."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(metric="score", mode="max")
        self._fleet = fleet

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return self._fleet.suggest(trial_id) or Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._fleet.complete(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see :class:`_Unkept`."""


class _Verdicts(_Unkept, FIFOScheduler):  # type: ignore[misc]
    """Passes evaluations on. Tune itself never stops a trial: the trial does when it is told."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._fleet.report(result)
        return str(TrialScheduler.CONTINUE)
