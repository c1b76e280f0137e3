"""What a machine with a device and little else tells of this program in nine minutes.

    python -m orchestrator.benchmark.check_device [--device auto] [--output FOLDER] [--quick]

Needs torch, torchvision, NumPy and OpenCV, and of what is brought along pydantic, PyYAML and
safetensors with what they need. Parts come in the order of their worth and have time limits of
their own; each leaves a json file, so that what was found before an end that was not foreseen is
there. ``--quick`` takes small networks and few steps: it shows that the parts run, and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from orchestrator.accelerators import Accelerator, of_this_process
from orchestrator.benchmark import device_parts as parts
from orchestrator.benchmark import device_steps as steps
from orchestrator.benchmark.device_parts import Setting

Tree: TypeAlias = dict[str, Any]

#: Seconds of all parts together.
_SECONDS = 540.0


@dataclass(frozen=True)
class Part:
    """One of the questions.

    Attributes:
        name: of its file.
        seconds: it should take at most, of :data:`_SECONDS` for all.
        work: answers it, until the moment it is given.
    """

    name: str
    seconds: float
    work: Callable[[Setting], Tree]


PARTS = (
    Part("correctness", 70, steps.correctness),
    Part("waits", 60, steps.waits),
    Part("throughput", 170, steps.throughput),
    Part("gains", 90, steps.gains),
    Part("feeding", 40, parts.feeding),
    Part("evaluation", 50, parts.evaluation),
    Part("checkpoint", 30, parts.checkpoint),
    Part("export", 30, parts.export),
)


@dataclass
class Check:
    """Runs the parts and writes what they found.

    Attributes:
        accelerator: the kind of device.
        folder: for the files.
        quick: small networks, few steps.
        seconds: for all parts together.
    """

    accelerator: Accelerator
    folder: Path
    quick: bool
    seconds: float = _SECONDS
    failed: list[str] = field(default_factory=list)

    def run(self, names: Sequence[str]) -> int:
        """Run the parts of these names; the number of those that failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        self._write("00_machine", self._machine())
        for number, part in enumerate(PARTS, start=1):
            left = self.seconds - (time.monotonic() - started)
            if part.name not in names:
                continue
            if left <= 0:
                self._write(f"{number:02}_{part.name}", {"left out": "no time was left"})
                continue
            share = part.seconds / _SECONDS * self.seconds
            until = time.monotonic() + min(left, share)
            self._run(f"{number:02}_{part.name}", part, until)
        return len(self.failed)

    def _run(self, name: str, part: Part, until: float) -> None:
        began = time.monotonic()
        setting = Setting(self.accelerator, self.quick, until)
        try:
            found = part.work(setting)
        # Whatever one part meets, the others have their turn.
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
            self.failed.append(part.name)
        found["seconds"] = round(time.monotonic() - began, 1)
        self._write(name, found)

    def _machine(self) -> Tree:
        accelerator = self.accelerator
        device = accelerator.device()
        return {
            "device": accelerator.device_name() or accelerator.kind,
            "memory": accelerator.memory(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu_threads": torch.get_num_threads(),
            "numerics": {
                str(deterministic).lower(): accelerator.numerics_text(
                    deterministic, accelerator.resolve_precision("auto")
                )
                for deterministic in (True, False)
            },
            "matrix_tflops": parts.matrix_rate(accelerator, device, quick=self.quick),
        }

    def _write(self, name: str, tree: Tree) -> None:
        text = json.dumps(tree, indent=1)
        (self.folder / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {json.dumps(tree)[:600]}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Parse the command line and run."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="check_device", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu", "npu"])
    parser.add_argument("--output", type=Path, default=Path("device-check"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="for all parts")
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    arguments = parser.parse_args(argv)
    accelerator = of_this_process(arguments.device)
    check = Check(accelerator, arguments.output, arguments.quick, arguments.seconds)
    failed = check.run(arguments.parts)
    if failed:
        print(f"{failed} parts failed: {', '.join(check.failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
