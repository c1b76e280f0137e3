"""Two steps of a small SSD on one or two ranks of simulated NPUs, over ``hccl``.

    python -m tests.support.simulated_npu.ranks RANK WORLD MEETING

Batches are computed in two parts whatever the number of ranks. Prints the digest of the weights.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace

import torch.distributed as dist

from orchestrator.accelerators import Accelerator
from orchestrator.config.schema import TrainConfig
from orchestrator.training.collective import Collective
from orchestrator.training.stepper import Stepper
from tests.support import simulated_npu
from tests.support.simulated_npu.steps import batch_of, build

_IMAGES = 4


def main(rank: int, world: int, meeting: str) -> None:
    """One rank."""
    simulated_npu.install()
    accelerator = Accelerator("npu")
    accelerator.set_determinism(True, 1)
    device = accelerator.device(rank)
    if world > 1:
        dist.init_process_group(
            accelerator.backend, init_method=f"file://{meeting}", rank=rank, world_size=world
        )
    model = build({"name": "ssd", "variant": "ssd300_mobilenet_v2", "width": 0.25})
    stepper = Stepper(
        accelerator.place(model, device).train(),
        TrainConfig.model_validate(
            {
                "epochs": 1,
                "batch_size": _IMAGES,
                "virtual_shards": 2,
                "optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9},
            }
        ),
        seed=7,
        accelerator=accelerator,
        precision="fp32",
        collective=Collective(device),
    )
    mine = slice(rank * _IMAGES // world, (rank + 1) * _IMAGES // world)
    for number in range(2):
        whole = batch_of(number, model.input_size, images=_IMAGES)
        columns = {
            name: getattr(whole, name)[mine] for name in whole.__dict__ if name not in _SCALARS
        }
        stepper.run(replace(whole, **columns), learning_rate=1e-3, stop=False)
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    print(digest.hexdigest(), flush=True)
    os._exit(0)


#: Of a batch, what is not a row for each image.
_SCALARS = ("step", "replaced")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
