"""Scoring the commits of a run in a process that does not train.

What is computed is what the step loop computes: the same weights and statistics, the same batches,
rank by rank, on as many threads of the same kind of device.
"""

from __future__ import annotations

from orchestrator.accelerators import Accelerator
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.training.job import TrainingJob
from orchestrator.training.predictor import in_whole_images, predict_share
from orchestrator.training.session import initial_model, open_store
from orchestrator.training.validation import Scored, weights_to_score


class CommitEvaluator:
    """A detector of its own that takes over one commit after the other.

    Args:
        job: the run.
        batches: what is in which of its batches.
        accelerator: the kind of device it trains on.
    """

    def __init__(self, job: TrainingJob, batches: BatchPlan, accelerator: Accelerator) -> None:
        train = job.experiment.train
        accelerator.set_determinism(train.deterministic, job.threads)
        self._device = accelerator.device()
        self._model = initial_model(
            job.experiment, len(job.label_map), accelerator, self._device
        ).eval()
        self._job = job
        self._accelerator = accelerator
        self._precision = accelerator.resolve_precision(train.precision)
        self._store = open_store(job)
        world = job.experiment.cluster.workers
        self._shares = [
            LocalStream(batches, rank=rank, world=world, streams=world) for rank in range(world)
        ]

    def score(self, step: int) -> Scored:
        """Scores of the commit of ``step``: those that the ranks together would find.

        Raises:
            StorageError: there is no such commit, or it is damaged.
        """
        averaged = self._job.experiment.train.ema is not None
        self._model.load_state_dict(weights_to_score(self._store, step, averaged=averaged))
        found = Detections.merge([self._predict(share) for share in self._shares])
        config = self._job.experiment.detector.postprocess
        found = in_whole_images(found, self._job.val_tiling, config)
        return Scored(found, evaluate(self._job.val, found))

    def _predict(self, share: LocalStream) -> Detections:
        return predict_share(
            self._model,
            share.eval_batches(),
            self._job.experiment.detector.postprocess,
            accelerator=self._accelerator,
            precision=self._precision,
            device=self._device,
        )
