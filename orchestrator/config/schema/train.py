"""The ``train`` section: optimizer, learning rate, precision, checkpoints and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from detectors.config import Settings
from orchestrator.config.fields import (
    Conflict,
    Count,
    Decay,
    Fraction,
    Location,
    NonNegative,
    NonNegativeInt,
    Pattern,
    Positive,
    refuse,
)
from orchestrator.config.metrics import Metric


class ParameterGroup(Settings):
    """Parameters that are trained differently from the others.

    A parameter belongs to the first group whose ``kind`` and ``names`` it has.

    Attributes:
        kind: ``norm`` for scale and shift of normalisation layers, ``bias`` for the biases of other
            layers, ``weight`` for everything else; ``any`` does not ask.
        names: patterns of parameter names, as the state dict has them; ``*`` stands for any text.
        lr_factor: of the learning rate at every step.
        weight_decay: of these parameters; null keeps what they would have without the group.
    """

    kind: Literal["any", "norm", "bias", "weight"] = "any"
    names: Annotated[tuple[Pattern, ...], Field(min_length=1)] = ("*",)
    lr_factor: NonNegative = 1.0
    weight_decay: NonNegative | None = None


class SGDOptimizer(Settings):
    """Stochastic gradient descent with momentum.

    Attributes:
        name: selects this optimizer.
        lr: base learning rate, for the global batch as it stands: nothing is scaled by the number
            of workers.
        momentum: of the running gradient; 0 switches it off.
        nesterov: look ahead along the momentum.
        weight_decay: L2 penalty, added to the gradient.
        decay_norm_and_bias: whether biases and normalisation layers are decayed too.
        groups: parameters with a learning rate or weight decay of their own.
    """

    name: Literal["sgd"] = "sgd"
    lr: Positive
    momentum: Decay = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    decay_norm_and_bias: bool = True
    groups: tuple[ParameterGroup, ...] = ()

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            message = (
                "train.optimizer.nesterov is true, which needs train.optimizer.momentum above 0"
            )
            refuse([Conflict("nesterov", message)])
        return self


class AdamWOptimizer(Settings):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Attributes:
        name: selects this optimizer.
        lr: base learning rate, for the global batch as it stands.
        betas: decays of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled; multiplied by the learning rate.
        decay_norm_and_bias: whether biases and normalisation layers are decayed too.
        groups: parameters with a learning rate or weight decay of their own.
    """

    name: Literal["adamw"] = "adamw"
    lr: Positive
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.01
    decay_norm_and_bias: bool = True
    groups: tuple[ParameterGroup, ...] = ()


Optimizer: TypeAlias = Annotated[SGDOptimizer | AdamWOptimizer, Field(discriminator="name")]


class _Warmup(Settings):
    """Linear warm-up, which every schedule begins with.

    Attributes:
        warmup_epochs: length of the warm-up in epochs, rounded to whole steps; 0 for none.
        warmup_start: learning rate that the warm-up starts from, absolute.
        warmup_steps: length of the warm-up in steps, instead of ``warmup_epochs``.
        warmup_ends: whether step 0 has ``warmup_start`` and the base rate comes ``after`` the
            warm-up, or ``with`` its last step.
    """

    warmup_epochs: NonNegative = 0.0
    warmup_start: NonNegative = 0.0
    warmup_steps: NonNegativeInt | None = None
    warmup_ends: Literal["after", "with"] = "after"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The schema that editors are given takes its words from docstrings.
        super().__init_subclass__(**kwargs)
        cls.__doc__ = f"{cls.__doc__}{(_Warmup.__doc__ or '').partition('Attributes:')[2]}"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.warmup_steps is not None and self.warmup_epochs > 0.0:
            message = (
                f"train.schedule.warmup_steps is {self.warmup_steps} and "
                f"train.schedule.warmup_epochs is {self.warmup_epochs:g}; give one of them"
            )
            refuse([Conflict("warmup_steps", message)])
        return self


class ConstantSchedule(_Warmup):
    """The base learning rate throughout, after the warm-up.

    Attributes:
        name: selects this schedule.
    """

    name: Literal["constant"] = "constant"


class CosineSchedule(_Warmup):
    """Half a cosine from the base learning rate to its end, over the steps after the warm-up.

    Attributes:
        name: selects this schedule.
        end_factor: the last learning rate, as a multiple of the base rate.
        period_epochs: epochs after the warm-up in which the cosine comes to its end; null: those
            that are left. The MindSpore Faster R-CNN recipe has one more than it trains, so that
            the rate does not reach its end.
    """

    name: Literal["cosine"] = "cosine"
    end_factor: Fraction = 0.001
    period_epochs: Positive | None = None


class MultistepSchedule(_Warmup):
    """A constant rate that changes at given epochs.

    Attributes:
        name: selects this schedule.
        milestones: epochs at which the rate changes, increasing; fractions are allowed.
        factors: the rate after each milestone, as a multiple of the base rate (not of the rate
            before).
    """

    name: Literal["multistep"] = "multistep"
    milestones: Annotated[tuple[Positive, ...], Field(min_length=1)]
    factors: Annotated[tuple[NonNegative, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _milestones_fit(self) -> Self:
        refuse(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        if len(self.factors) != len(self.milestones):
            yield Conflict(
                "factors",
                f"train.schedule.factors has {len(self.factors)} entries and "
                f"train.schedule.milestones {len(self.milestones)}; each milestone needs one",
            )
        if any(right <= left for left, right in pairwise(self.milestones)):
            yield Conflict(
                "milestones",
                f"train.schedule.milestones {list(self.milestones)} must increase",
            )


Schedule: TypeAlias = Annotated[
    ConstantSchedule | CosineSchedule | MultistepSchedule, Field(discriminator="name")
]


class EmaConfig(Settings):
    """Exponential moving average of the weights, which is then what is evaluated and exported.

    Attributes:
        decay: share of the average that stays at each step.
        warmup_steps: the decay grows as ``decay * (1 - exp(-step / warmup_steps))``; 0 for none.
    """

    decay: Decay
    warmup_steps: NonNegativeInt


class FreezeConfig(Settings):
    """What does not train, beside what the detector freezes itself.

    Attributes:
        parameters: patterns of parameter names that keep their values; ``*`` stands for any text.
        batch_norm: patterns of names of batch-normalisation layers that normalise by their stored
            statistics, in training as well, and do not change them. Their scale and shift train
            unless ``parameters`` names them.
    """

    parameters: tuple[Pattern, ...] = ()
    batch_norm: tuple[Pattern, ...] = ()


class CheckpointConfig(Settings):
    """What is kept of a run. The last and the best checkpoints are counted apart.

    Attributes:
        every_epochs: epochs between checkpoints.
        every_steps: also one every so many steps inside an epoch; null for none.
        keep_last: newest checkpoints kept. Two at least, so that one is whole while the next is
            written.
        keep_best: checkpoints kept by ``metric``.
        metric: that ranks checkpoints; larger is better.
    """

    every_epochs: Count = 1
    every_steps: Count | None = None
    keep_last: Annotated[int, Field(ge=2)] = 5
    keep_best: Count = 5
    metric: Metric = "val/AP"


class EarlyStoppingConfig(Settings):
    """When a run that no longer gets better ends by itself, before ``train.epochs``.

    It looks at the evaluations of ``train.evaluate_every_epochs``, each of which then has a
    checkpoint, so that the best of them is kept.

    Attributes:
        metric: that has to rise.
        patience: evaluations in a row without a rise after which the run ends.
        min_delta: a value counts as a rise if it lies above the best one by more than this.
    """

    metric: Metric = "val/AP"
    patience: Count
    min_delta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class TrainConfig(Settings):
    """Training.

    Attributes:
        epochs: passes over the training images. May grow once the run has begun: with a rate that
            does not depend on it the run is then what it would have been from the start.
        continue: what the rate of a cosine without ``period_epochs`` does when ``epochs`` has
            grown: ``stretch``: it is that of a longer cosine, and so jumps up; ``restart``: another
            cosine begins at the base rate where the old one ended; ``hold``: it stays where it
            ended. Null refuses to go on.
        batch_size: images per optimizer step, over all workers and accumulated pieces.
        max_steps: stop after so many steps, for a quick look; the schedule stays that of the whole
            run. Null for none.
        init_from: weights to begin with: a file (``orchestrator convert weights`` lists what is
            understood), published ones by name, such as ``torchvision:ssd300_vgg16``, a checkpoint
            or a run folder. Read only while the run has no checkpoint of
            its own; tensors that depend on the classes are taken only if the classes are the same.
        continue_from: another run, or one of its checkpoints, whose whole state this one begins
            with: weights, optimizer, average and step. Its classes and network have to be the same;
            schedule, data and all else are this run's own. Read only while the run has no
            checkpoint of its own.
        optimizer: the update rule.
        schedule: the learning rate at every step.
        lr_reference_batch: batch that ``optimizer.lr`` is meant for. With another ``batch_size``
            the rate is scaled by ``lr_rule``, and with it all that the schedule makes of it but
            ``warmup_start``. Null takes the rate as it stands.
        lr_rule: ``linear``: as the batch (Goyal et al. 2017, for SGD); ``square_root``: as its
            root (for AdamW). Used with ``lr_reference_batch``.
        precision: of forward and backward. ``auto`` is bf16 where a card has it in hardware, and
            otherwise fp32 on a CPU or GPU and fp16 on an NPU.
        loss_scale: with fp16: ``dynamic``, or a fixed factor on the loss.
        clip_norm: largest L2 norm of the whole gradient; null for no clipping.
        accumulate: pieces a worker's share of a batch is computed in, to save memory. Losses and
            gradients are those of the whole batch; batch norm sees a piece at a time.
        virtual_shards: number of equal parts that every batch is computed in and whose gradients
            are added in one fixed order, so that any number of workers that divides it ends in the
            same bits; batch norm then sees a part at a time. ``auto`` is the number of workers that
            the run begins with. With several workers, each holds a copy of the gradients for each
            of its parts. Null to let each worker compute its share at once, and sums be added in
            whatever order the backend has.
        freeze: what does not train.
        sync_batch_norm: take the statistics of batch normalisation over all workers' images, not
            each worker's over its own.
        ema: moving average of the weights; null for none.
        evaluate_every_epochs: epochs between evaluations; the last epoch is always evaluated.
        evaluation: where. ``in_loop``: all workers stop for it. ``beside``: one more worker scores
            the checkpoint while they train on. ``auto``: beside where nothing waits for the scores
            and the cluster has free what one more worker takes. The scores are the same.
        early_stopping: end before the last epoch when evaluations no longer get better; null never
            does.
        checkpoint: what is kept.
        log_every_steps: steps between logged losses.
        compile: ``graph``: forward pass and losses are compiled as one graph, which on a GPU is
            captured with static buffers; what the compiler cannot take is said and runs without.
            Other rounding, and minutes at the start. ``off``: operator by operator. ``auto``: off.
        deterministic: take deterministic kernels only; an operator that has none is an error that
            names it. False takes the fastest, and the bits of a run are not those of another then.
        nonfinite_limit: consecutive steps with a non-finite loss or gradient after which the run
            stops; until then such a step changes nothing.
        max_failures: restarts without a new checkpoint in between after which the run stops.
    """

    epochs: Count
    batch_size: Count
    max_steps: Count | None = None
    init_from: Location | None = None
    continue_from: Location | None = None
    optimizer: Optimizer
    schedule: Schedule = ConstantSchedule()
    lr_reference_batch: Count | None = None
    lr_rule: Literal["linear", "square_root"] = "linear"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    loss_scale: Literal["dynamic"] | Positive = "dynamic"
    clip_norm: Positive | None = None
    accumulate: Count = 1
    virtual_shards: Literal["auto"] | Count | None = "auto"
    freeze: FreezeConfig = FreezeConfig()
    sync_batch_norm: bool = False
    ema: EmaConfig | None = None
    evaluate_every_epochs: Count = 1
    evaluation: Literal["auto", "beside", "in_loop"] = "auto"
    early_stopping: EarlyStoppingConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_every_steps: Count = 10
    compile: Literal["auto", "off", "graph"] = "auto"
    deterministic: bool = True
    nonfinite_limit: Count = 3
    max_failures: NonNegativeInt = 3
    # A word that Python has taken.
    continuation: Literal["stretch", "restart", "hold"] | None = Field(None, alias="continue")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse(self._conflicts())
        return self

    def _conflicts(self) -> Iterator[Conflict]:
        if self.init_from is not None and self.continue_from is not None:
            yield Conflict(
                "continue_from",
                "train.init_from and train.continue_from both say what to begin with; remove one",
            )
        if self.schedule.warmup_epochs >= self.epochs:
            yield Conflict(
                "schedule.warmup_epochs",
                f"train.schedule.warmup_epochs is {self.schedule.warmup_epochs:g} and must be "
                f"below train.epochs, which is {self.epochs}",
            )
        if isinstance(self.schedule, MultistepSchedule):
            last = self.schedule.milestones[-1]
            if last >= self.epochs:
                yield Conflict(
                    "schedule.milestones",
                    f"train.schedule.milestones ends at {last:g} and must stay below "
                    f"train.epochs, which is {self.epochs}",
                )
        if self.early_stopping is not None:
            yield from self._early_stopping_conflicts(self.early_stopping.patience)
        if self.evaluation == "beside":
            yield from self._beside_conflicts()
        if isinstance(self.virtual_shards, int) and self.accumulate != 1:
            yield Conflict(
                "accumulate",
                f"train.accumulate is {self.accumulate} and train.virtual_shards is "
                f"{self.virtual_shards}, which computes a batch in parts already; remove "
                "train.accumulate",
            )
        if isinstance(self.virtual_shards, int) and self.sync_batch_norm:
            yield Conflict(
                "sync_batch_norm",
                "train.sync_batch_norm takes statistics over all workers at once, and "
                f"train.virtual_shards, which is {self.virtual_shards}, over a part at a time, so "
                "that the number of workers does not matter; remove one of them",
            )
        if self.loss_scale != "dynamic" and self.precision in ("fp32", "bf16"):
            yield Conflict(
                "loss_scale",
                f"train.loss_scale is {self.loss_scale:g}, which only fp16 uses, and "
                f"train.precision is {self.precision}; remove train.loss_scale",
            )

    def _early_stopping_conflicts(self, patience: int) -> Iterator[Conflict]:
        before_the_end = (self.epochs - 1) // self.evaluate_every_epochs
        # The first one is what the others are compared with.
        possible = before_the_end - 1
        if patience > possible:
            remedy = f"at most {possible} would be" if possible > 0 else "remove it"
            yield Conflict(
                "early_stopping.patience",
                f"train.early_stopping.patience is {patience} and could never be used up: with "
                f"train.epochs {self.epochs} and train.evaluate_every_epochs "
                f"{self.evaluate_every_epochs} there are {before_the_end} evaluations before the "
                f"last epoch, and the first is what the others are compared with; {remedy}",
            )

    @property
    def base_rate(self) -> float:
        """The learning rate that the schedule multiplies."""
        return self.scaled(self.optimizer.lr)

    def scaled(self, rate: float) -> float:
        """A learning rate as ``lr_reference_batch`` has it for this batch."""
        if self.lr_reference_batch is None:
            return rate
        ratio = self.batch_size / self.lr_reference_batch
        return rate * (ratio if self.lr_rule == "linear" else math.sqrt(ratio))

    @property
    def scaling(self) -> str | None:
        """What ``lr_reference_batch`` did, in numbers; None where it did nothing."""
        if self.lr_reference_batch is None:
            return None
        ratio = f"{self.batch_size} / {self.lr_reference_batch}"
        factor = ratio if self.lr_rule == "linear" else f"sqrt({ratio})"
        return (
            f"{self.base_rate:g} = {self.optimizer.lr:g} x {factor}, by train.lr_reference_batch, "
            f"{self.lr_rule.replace('_', ' ')} rule"
        )

    @property
    def evaluates_commits(self) -> bool:
        """Whether each evaluation falls on a checkpoint."""
        return self.evaluate_every_epochs % self.checkpoint.every_epochs == 0

    def _beside_conflicts(self) -> Iterator[Conflict]:
        if self.early_stopping is not None:
            yield Conflict(
                "evaluation",
                "train.evaluation is beside, which lets training go on before the scores are "
                "there, and train.early_stopping waits for them; write in_loop or auto, or remove "
                "train.early_stopping",
            )
        if not self.evaluates_commits:
            yield Conflict(
                "evaluation",
                "train.evaluation is beside, which reads checkpoints, so "
                f"train.evaluate_every_epochs, which is {self.evaluate_every_epochs}, must be "
                "divisible by train.checkpoint.every_epochs, which is "
                f"{self.checkpoint.every_epochs}",
            )
