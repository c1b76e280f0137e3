"""Where an evaluation's time goes, with hard and Soft-NMS, with and without compiled kernels.

    python benchmarks/bench_evaluation.py RUN [--rounds 3] [--score-threshold 0.01]

RUN is the folder of a run with a scored checkpoint; without it a small run on generated images is
trained first. The best checkpoint, with its averaged weights if it has them, scores the run's own
validation images on one thread. CPU time of the process by part, the median of rounds in which all
settings take turns: reading and decoding images, the network with the decoding of its boxes,
suppression (threshold, candidates, NMS), COCO matching. The Python reference of the kernels serves
in a process of its own, as it would where nothing was compiled, and has to reach the same AP.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from results import keep
from small_runs import train
from timing import table

import native
from detectors.registry import build_detector
from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.runs.plan import make_plan
from orchestrator.training import predictor
from orchestrator.training.session import open_store

METHODS = ("hard", "soft_linear", "soft_gaussian")
PARTS = ("data", "network", "suppression", "matching")


class Clock:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: object) -> object:
            with self.part(name):
                return function(*arguments)

        return timed


class Evaluation:
    """The best checkpoint of a run, ready to score the run's validation images."""

    def __init__(self, run: Path, score_threshold: float) -> None:
        resolved = load_experiment(run / "config" / "resolved.yaml", [])
        self.plan = make_plan(resolved, run, threads=1)
        store = open_store(self.plan.job)
        best = store.best()
        if best is None:
            raise SystemExit(f"{run}: no scored checkpoint. Next: let the run end")
        state = store.load(best.step)
        config = resolved.experiment.detector
        self.model = build_detector(config, num_classes=len(self.plan.job.label_map))
        self.model.load_state_dict({**state.model, **(state.ema or {})})
        self.model.to(memory_format=torch.channels_last).eval()
        self.config = config.postprocess.model_copy(update={"score_threshold": score_threshold})

    def run(self, method: str) -> dict[str, float]:
        """One evaluation: CPU seconds by part, and AP."""
        config = self.config.model_copy(update={"nms": method})
        clock, found = Clock(), list[Detections]()
        batches = iter(LocalStream(self.plan.batches).eval_batches())
        accelerator = Accelerator("cpu")
        suppress = clock.around("suppression", predictor.detections_of)
        with mock.patch.object(predictor, "detections_of", suppress):
            while True:
                with clock.part("data"):
                    batch = next(batches, None)
                if batch is None:
                    break
                with clock.part("network"):
                    begun = predictor.begin_batch(
                        self.model,
                        batch,
                        config,
                        accelerator=accelerator,
                        device=accelerator.device(),
                    )
                    if begun is not None:
                        found.append(begun.finish())
        clock.seconds["network"] -= clock.seconds["suppression"]
        with clock.part("matching"):
            scores = evaluate(self.plan.job.val, Detections.merge(found))
        return {**clock.seconds, "AP": scores.numbers["AP"]}


def measure(run: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Medians by method with the kernels this process has; milliseconds an image."""
    torch.set_num_threads(1)
    evaluation = Evaluation(run, options.score_threshold)
    images = len(evaluation.plan.job.val.image_ids)
    evaluation.run(METHODS[0])
    rounds = [{name: evaluation.run(name) for name in METHODS} for _ in range(options.rounds)]
    table: dict[str, dict[str, float]] = {}
    for name in METHODS:
        table[name] = {
            part: statistics.median(one[name][part] for one in rounds) / images * 1e3
            for part in PARTS
        }
        table[name]["AP"] = rounds[0][name]["AP"]
    return table


def small_run(folder: Path) -> Path:
    """A run to measure where none is given: the quickstart's detector, 30 steps."""
    build_digits(folder / "digits", Recipe(train=64, val=64))
    overrides = [f"data.root={folder / 'digits'}", "train.max_steps=30", "tracking.mlflow=null"]
    resolved = load_experiment("experiments/quickstart.yaml", overrides)
    train(resolved, folder / "run")
    return folder / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--score-threshold", type=float, default=0.01)
    parser.add_argument("--as-json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_json:
        print(json.dumps([native.backend(), measure(options.run, options)]))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or small_run(Path(folder))
        tables = {}
        for choice in ("0", "1"):
            command = [sys.executable, __file__, str(run), "--as-json"]
            command += [
                f"--rounds={options.rounds}",
                f"--score-threshold={options.score_threshold}",
            ]
            environment = {**os.environ, "ORCHESTRATOR_NATIVE": choice}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            backend, tables[choice] = json.loads(done.stdout.splitlines()[-1])
            assert backend == ("native" if choice == "1" else "reference")
    columns = ["suppression", "kernels", *(f"{part} ms" for part in PARTS), "share", "AP"]
    table(*columns)
    ratios = {}
    for name in METHODS:
        slow, fast = (tables[choice][name]["suppression"] for choice in ("0", "1"))
        ratios[f"{name}: suppression, reference / compiled"] = slow / fast
        assert tables["0"][name]["AP"] == tables["1"][name]["AP"], name
        for choice, label in (("0", "reference"), ("1", "compiled")):
            row = tables[choice][name]
            total = sum(row[part] for part in PARTS)
            cells = [f"{row[part]:.2f}" for part in PARTS]
            share = f"{row['suppression'] / total:.1%}"
            print(f"| {name} | {label} | {' | '.join(cells)} | {share} | {row['AP']:.4f} |")
    keep("evaluation", ratios)


if __name__ == "__main__":
    main()
