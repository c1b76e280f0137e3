"""From evaluation batches to detections in original pixels, alone or shared over ranks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from detectors.base import Detector
from detectors.boxes import map_to_original
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.structures import Candidates
from orchestrator.accelerators import Accelerator, Precision
from orchestrator.data.batch import Batch
from orchestrator.data.tiling import Tiling
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.tile_merging import merge_tiles
from orchestrator.training.collective import Collective


def images_to_device(batch: Batch, device: torch.device) -> torch.Tensor:
    """(N, H, W, 3) uint8 NumPy images as a (N, 3, H, W) uint8 tensor on ``device``.

    The copy is of bytes; the permuted view is what channels_last kernels like.
    """
    return torch.from_numpy(batch.images).to(device, non_blocking=True).permute(0, 3, 1, 2)


@torch.inference_mode()
def predict_batch(
    model: Detector, batch: Batch, config: PostprocessConfig, device: torch.device
) -> Detections:
    """Detections of the real images of one batch; padded images are left out.

    A batch may be all padding: on a rank with fewer images than others, or none.
    """
    real = batch.sample_ids >= 0
    if not real.any():
        return Detections.merge([])
    candidates = model.decode(model(images_to_device(batch, device)))
    boxes = map_to_original(
        candidates.boxes.float().cpu(),
        torch.from_numpy(batch.transforms),
        torch.from_numpy(batch.sizes),
    )
    found = postprocess(Candidates(boxes, candidates.scores.float().cpu()), config)
    kept = [(index, found[index]) for index in np.flatnonzero(real).tolist()]
    counts = [len(one.scores) for _, one in kept]
    ids = batch.image_ids[real]
    return Detections(
        images=ids,
        image_ids=np.repeat(ids, counts),
        labels=torch.cat([one.labels for _, one in kept]).numpy().astype(np.int64),
        boxes=torch.cat([one.boxes for _, one in kept]).numpy().astype(np.float32),
        scores=torch.cat([one.scores for _, one in kept]).numpy().astype(np.float32),
    )


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
        found, tiling, iou=config.iou_threshold, class_agnostic=config.class_agnostic
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

    The model is put into evaluation mode and left in the mode it had.
    """
    training = model.training
    model.eval()
    try:
        with accelerator.autocast(precision):
            parts = [predict_batch(model, batch, config, device) for batch in batches]
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
