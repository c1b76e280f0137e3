"""From evaluation batches to detections in original pixels, alone or shared over ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from detectors.base import Detector
from detectors.config import PostprocessConfig
from detectors.postprocess import Frames, View, detections_of
from orchestrator.accelerators import Accelerator, Precision, as_network_input
from orchestrator.data.batch import Batch
from orchestrator.data.dataset import Tiling
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.tile_merging import merge_tiles
from orchestrator.training.collective import Collective


def images_to_device(batch: Batch, device: torch.device) -> torch.Tensor:
    """(N, H, W, 3) uint8 NumPy images as a (N, 3, H, W) uint8 tensor on ``device``.

    The copy is of bytes, and turned on the device.
    """
    return as_network_input(torch.from_numpy(batch.images).to(device, non_blocking=True))


@dataclass(frozen=True)
class Begun:
    """A batch that a device has been given.

    Attributes:
        batch: the images.
        view: what the network made of them, on its way to the host.
        config: how it becomes detections.
    """

    batch: Batch
    view: View
    config: PostprocessConfig

    def finish(self) -> Detections:
        """Detections of the real images; padded images are left out."""
        real = self.batch.sample_ids >= 0
        found = detections_of([self.view], self.config)
        kept = [found[index] for index in np.flatnonzero(real).tolist()]
        counts = [len(one.scores) for one in kept]
        ids = self.batch.image_ids[real]
        return Detections(
            images=ids,
            image_ids=np.repeat(ids, counts),
            labels=torch.cat([one.labels for one in kept]).numpy().astype(np.int64),
            boxes=torch.cat([one.boxes for one in kept]).numpy().astype(np.float32),
            scores=torch.cat([one.scores for one in kept]).numpy().astype(np.float32),
        )


@torch.inference_mode()
def begin_batch(
    model: Detector,
    batch: Batch,
    config: PostprocessConfig,
    *,
    accelerator: Accelerator,
    device: torch.device,
) -> Begun | None:
    """Give a device a batch; None for one that is all padding.

    There are such on a rank with fewer images than others, or none.
    """
    if not (batch.sample_ids >= 0).any():
        return None
    candidates = model.decode(model(images_to_device(batch, device)))
    frames = Frames(torch.from_numpy(batch.transforms), torch.from_numpy(batch.sizes))
    view = View(candidates, config, frames=frames, to_host=accelerator.to_host)
    return Begun(batch, view, config)


def in_whole_images(
    found: Detections, tiling: Tiling | None, config: PostprocessConfig
) -> Detections:
    """Detections of the images themselves, where those evaluated were tiles of them.

    Args:
        found: in the images that were evaluated.
        tiling: what part of which image each of those is; None where they are the images.
        config: by which boxes of one object were told in each tile.
    """
    if tiling is None:
        return found
    return merge_tiles(
        found,
        tiling,
        iou=config.iou_threshold,
        class_agnostic=config.class_agnostic,
        max_per_class=config.max_per_class,
        limit=config.max_per_image,
    )


def predict_share(
    model: Detector,
    batches: Iterable[Batch],
    config: PostprocessConfig,
    *,
    accelerator: Accelerator,
    precision: Precision,
    device: torch.device,
) -> Detections:
    """Detections of one rank's batches.

    While the device computes a batch, the host suppresses in the one before. The model is put into
    evaluation mode and left in the mode it had.
    """
    training = model.training
    model.eval()
    parts: list[Detections] = []
    waiting: Begun | None = None
    try:
        with accelerator.autocast(precision):
            for batch in batches:
                begun = begin_batch(model, batch, config, accelerator=accelerator, device=device)
                if waiting is not None:
                    parts.append(waiting.finish())
                waiting = begun
            if waiting is not None:
                parts.append(waiting.finish())
    finally:
        model.train(training)
    return Detections.merge(parts)


def predict_all(
    model: Detector,
    batches: Iterable[Batch],
    config: PostprocessConfig,
    *,
    accelerator: Accelerator,
    precision: Precision,
    collective: Collective,
) -> Detections | None:
    """Detections of every rank's batches, merged on rank 0; None on the others.

    The model is put into evaluation mode and left in the mode it had.
    """
    share = predict_share(
        model,
        batches,
        config,
        accelerator=accelerator,
        precision=precision,
        device=collective.device,
    )
    gathered = collective.gather(share)
    return None if gathered is None else Detections.merge(gathered)
