"""How long a checkpoint holds up the step loop: save_async beside one memory copy and torch.save.

    python benchmarks/bench_checkpoint.py [--megabytes 500] [--rounds 7] [--folder DIR]

The state is that of a detector of 42 M parameters with momentum and a weight average: some 700
tensors, convolutions in channels_last. All arms take turns in every round and the median counts.
`blocked` is wall time until the caller may go on, `cpu` the CPU time of the calling thread in it,
which the load of the machine changes less. One memory copy is `copy_` of a flat tensor of the same
size into memory that was used before; torch.save writes to the same folder, without fsync. The
writer's thread is waited for outside the measured time.

Goals: blocked at most 1.5 times the memory copy and at most a quarter of torch.save.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import keep

from orchestrator.checkpoints.codec import TrainState
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.storage.local import LocalStorage

DIGESTS = {"config_digest": "c" * 64, "data_digest": "d" * 64, "label_map": "{}"}


def make_state(megabytes: int) -> TrainState:
    """Weights, momentum and average of about ``megabytes`` in all."""
    generator = torch.Generator().manual_seed(0)
    left = megabytes * 1_000_000 // 3 // 4
    model: dict[str, torch.Tensor] = {}
    channels = (64, 128, 256, 512)
    layer = 0
    while left > 0:
        out = channels[layer % len(channels)]
        kernel = 3 if layer % 3 else 1
        shape = (min(out, max(1, left // (256 * kernel * kernel))), 256, kernel, kernel)
        weight = torch.randn(shape, generator=generator)
        model[f"layer{layer}.conv.weight"] = weight.to(memory_format=torch.channels_last)
        for name in ("weight", "bias", "running_mean", "running_var"):
            model[f"layer{layer}.norm.{name}"] = torch.randn(shape[0], generator=generator)
        model[f"layer{layer}.norm.num_batches_tracked"] = torch.tensor(layer)
        left -= weight.numel() + 4 * shape[0]
        layer += 1
    momentum = {
        f"momentum_buffer/{n}": t.clone() for n, t in model.items() if t.is_floating_point()
    }
    average = {name: tensor.clone() for name, tensor in model.items()}
    return TrainState(1, model, momentum, average, {"world": 1})


def size_of(state: TrainState) -> int:
    return sum(t.numel() * t.element_size() for g in state.groups().values() for t in g.values())


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and thread CPU milliseconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    action()
    return (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    state = make_state(arguments.megabytes)
    size = size_of(state)
    count = sum(map(len, state.groups().values()))
    source = torch.ones(size // 4)
    target = torch.zeros_like(source)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    store = CommitStore(LocalStorage(folder / "run"), keep_last=2, keep_best=1)
    trees = {"step": state.step, **state.groups()}

    def save_async() -> None:
        state.step += 1
        store.save_async(state, **DIGESTS)

    arms: dict[str, Callable[[], object]] = {
        "one memory copy": lambda: target.copy_(source),
        "save_async": save_async,
        "torch.save": lambda: torch.save(trees, folder / "torch.pt"),
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    totals = []
    try:
        first, _ = timed(save_async)
        store.wait()
        for _ in range(arguments.rounds):
            for name, action in arms.items():
                begin = time.perf_counter()
                results[name].append(timed(action))
                if name == "save_async":
                    store.wait()
                    totals.append(time.perf_counter() - begin)
                elif name == "torch.save":
                    (folder / "torch.pt").unlink()
    finally:
        store.close()
        shutil.rmtree(folder)

    print(f"{size / 1e6:.0f} MB in {count} tensors, {arguments.rounds} rounds, one thread, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    medians = {}
    for name, rows in results.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        medians[name] = (wall, cpu)
        print(f"{name:16} blocked {wall:8.1f} ms   cpu {cpu:8.1f} ms")
    print(f"first save_async, which allocates: {first:.0f} ms; commit safe on disk after "
          f"{statistics.median(totals):.2f} s")  # fmt: skip
    ratios = {}
    for other, goal in (("one memory copy", 1.5), ("torch.save", 0.25)):
        wall, cpu = (a / b for a, b in zip(medians["save_async"], medians[other], strict=True))
        print(f"save_async / {other}: wall {wall:.2f}, cpu {cpu:.2f} (goal: at most {goal})")
        ratios[f"{other} / save_async, blocked"] = 1 / wall
    keep("checkpoint", ratios)


if __name__ == "__main__":
    main()
