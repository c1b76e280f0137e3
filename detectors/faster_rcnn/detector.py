"""Faster R-CNN on ResNet and feature pyramid, by the recipe of the MindSpore zoo or torchvision.

Sources: mindspore-ai/models, official/cv/FasterRCNN (its first releases in mindspore-ai/mindspore,
model_zoo); torchvision, models/detection. At depth 50, width 1 and 80 classes it has 41,757,156
parameters if normalisation has an affine of its own. State-dict names are torchvision's:
``backbone.body``, ``backbone.fpn``, ``rpn.head``, ``roi_heads``.

Fitting two stages into the contract: ``forward`` goes the whole way with the numbers of evaluation,
its raw outputs hold the proposals, and ``decode`` needs nothing else. The proposals that training
learns from depend on the boxes, so ``loss`` goes its own way after the first stage.

Deviations: images are padded to a canvas of known size, in training to one of two where
``train_canvas`` is set, and boxes are cut to that rather than to what the image fills of it
(torchvision), which mapping back to the original image does anyway; a box without area claims no
anchor; in training mode too, ``forward`` proposes as in evaluation; the zoo's recipe pools as
torchvision, with whose classifier it begins, unless ``pooling`` is the zoo's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors import draws
from detectors.backbones import build_backbone
from detectors.backbones.layers import make_divisible
from detectors.base import Detector
from detectors.boxes import to_centers, to_corners
from detectors.coding import decode, encode
from detectors.faster_rcnn.anchors import Canvas
from detectors.faster_rcnn.config import AssignmentConfig, FasterRCNNConfig
from detectors.faster_rcnn.heads import RPN, RoIHeads, init_mindspore
from detectors.losses import positive_smooth_l1
from detectors.matching import Assignment, match_by_images, match_with_band, with_a_slot
from detectors.pyramid import PyramidBackbone
from detectors.structures import Candidates, LossTerm, Targets
from detectors.suppression import suppress_sorted


class Samples(NamedTuple):
    """Anchors or proposals that were drawn.

    Attributes:
        rows: (N, S) int64 which; arbitrary where not valid.
        valid: (N, S) bool.
        positive: (N, S) bool.
    """

    rows: Tensor
    valid: Tensor
    positive: Tensor


def assign(iou: Tensor, valid: Tensor, usable: Tensor, config: AssignmentConfig) -> Assignment:
    """Match anchors or proposals with boxes; see :func:`~detectors.matching.match_with_band`.

    Args:
        iou: (N, G, A), at least one slot.
        valid: (N, G) bool, the slots that hold boxes.
        usable: (N, A) or (1, A) bool; the rest is ignored.
        config: thresholds and claims.
    """
    return match_with_band(
        iou,
        valid,
        usable,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        claims=config.claims,
        claim_iou=config.claim_iou,
    )


def draw(found: Assignment, keys: Tensor, config: AssignmentConfig) -> Samples:
    """Draw examples: positives up to their share, then negatives until ``samples`` are there.

    On the device that the tensors are on, so that nothing waits for the host.

    Args:
        found: what can be drawn.
        keys: (N, A) uniform in [0, 1); the smallest are drawn.
        config: how many.

    Returns:
        As many slots as ``samples``, or as anchors if those are fewer.
    """
    slots = min(config.samples, keys.shape[1])
    most = min(int(config.samples * config.positive_fraction), keys.shape[1])
    # A chosen positive keeps its key, below 1; negatives follow from 1 to 2; 3 is never taken.
    first = torch.where(found.positive, keys, 3.0).topk(most, dim=1, largest=False, sorted=False)
    chosen = torch.full_like(keys, 3.0).scatter(1, first.indices, first.values)
    order = torch.where(found.negative, keys + 1.0, chosen)
    taken = order.topk(slots, dim=1, largest=False)
    return Samples(rows=taken.indices, valid=taken.values < 2.0, positive=taken.values < 1.0)


#: Channels of the pyramid and of the fully connected layers, at width 1.
_CHANNELS = 256
_HIDDEN = 1024

#: Stride of the finest map, where the backbone has it.
_FINEST = 4

#: Divisors of centre and size offsets in each stage.
_RPN_VARIANCES = (1.0, 1.0)
_HEAD_VARIANCES = (0.1, 0.2)

#: Largest factor on a side of an anchor or proposal, as a logarithm: 16 pixels become 1,000.
_LARGEST_LOG = math.log(1000 / 16)


class _Examples(NamedTuple):
    """What the second stage learns from.

    Attributes:
        boxes: (N, P + G, 4) proposals, then the boxes themselves.
        found: which box each is an example of.
        drawn: those that are learnt from.
    """

    boxes: Tensor
    found: Assignment
    drawn: Samples


class FasterRCNN(Detector):
    """Region proposals from every cell of a pyramid, then a class and a box for each proposal.

    Channel 0 of the class logits is background; class k of the data is channel k + 1.

    Args:
        config: validated configuration.
        num_classes: foreground classes.
    """

    weighs_classes = True
    ranked = ("proposals", "proposal_scores", "cls", "loc")

    pixel: Tensor

    def __init__(self, config: FasterRCNNConfig, *, num_classes: int) -> None:
        super().__init__(
            title=config.title,
            input_size=config.input_size,
            train_canvases=config.train_canvases,
            num_classes=num_classes,
        )
        self.config = config
        backbone = build_backbone(config.backbone or config.own_backbone)
        if not (config.backbone or config.own_backbone).even:
            channels = make_divisible(_CHANNELS * config.width)
            backbone = PyramidBackbone(backbone, finest=_FINEST, channels=channels, extra="pool")
        self.backbone = backbone
        self.rpn = RPN(backbone.channels[0])
        self.roi_heads = RoIHeads(
            channels=backbone.channels[0],
            strides=backbone.strides,
            hidden=make_divisible(_HIDDEN * config.width),
            classes=1 + num_classes,
            aligned=config.head.aligned,
            end_pixel=config.pooling == "mindspore",
            legacy=config.legacy_boxes,
        )
        if config.variant == "faster_rcnn_mindspore":
            init_mindspore(self.backbone, self.roi_heads)
        self.canvases = nn.ModuleDict()
        for size in (config.input_size, *config.train_canvases):
            self.canvases[_name(size)] = Canvas(
                size,
                legacy=config.legacy_boxes,
                cross_border=config.rpn.cross_border,
                strides=backbone.strides,
            )
        self.register_buffer("pixel", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    @property
    def anchors(self) -> Tensor:
        """(A, 4) float32 xyxy pixels of the input, level by level."""
        return self._canvas(self.input_size).anchors

    def prior_boxes(self) -> Tensor:
        """The anchors."""
        return self.anchors

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs of both stages.

        Args:
            images: (N, 3, H, W) RGB on the 0..255 scale, uint8 or float.

        Returns:
            All float32 whatever the precision inside. First stage: ``objectness`` (N, A) logits and
            ``rpn_offsets`` (N, A, 4) of the anchors; ``proposals`` (N, P, 4) xyxy in pixels, best
            first, and ``proposal_scores`` (N, P), -1 in slots that are empty. Second stage:
            ``cls`` (N, P, 1 + K) logits and ``loc`` (N, P, 1 + K, 4) offsets.

        Raises:
            ValueError: images of another size than the anchors were made for.
        """
        maps = self._features(images)
        canvas = self._canvas(images.shape[-2:])
        objectness, offsets = self.rpn.head(maps)
        rule = self.config.rpn
        proposals, scores = self.propose(
            objectness, offsets, canvas, before=rule.before_test, after=rule.after_test
        )
        cls, loc = self.roi_heads(maps, proposals, canvas.layout)
        return {
            "objectness": objectness,
            "rpn_offsets": offsets,
            "proposals": proposals,
            "proposal_scores": scores,
            "cls": cls,
            "loc": loc,
        }

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        """``rpn_cls``, ``rpn_loc``, ``cls`` and ``loc``, to be divided by the examples drawn."""
        targets = with_a_slot(targets)
        maps = self._features(images)
        canvas = self._canvas(images.shape[-2:])
        objectness, offsets = self.rpn.head(maps)
        terms = self._first_stage(objectness, offsets, targets, canvas)
        examples = self._second_examples(objectness, offsets, targets, canvas)
        return terms | self._second_stage(maps, examples, targets, canvas)

    @torch.no_grad()
    def loss_divisors(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Examples drawn; how many proposals there are to draw from the first stage has to say."""
        targets = with_a_slot(targets)
        objectness, offsets = self.rpn.head(self._features(images))
        canvas = self._canvas(images.shape[-2:])
        first = self._first_stage(objectness, offsets, targets, canvas)
        count = self._second_examples(objectness, offsets, targets, canvas).drawn.valid.sum()
        return {name: term.divisor for name, term in first.items()} | {"cls": count, "loc": count}

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Boxes (N, P, K, 4), cut to the canvas, and scores (N, P, K)."""
        boxes = self._boxes(
            raw["loc"][:, :, 1:],
            raw["proposals"].unsqueeze(2),
            self._canvas(self.input_size).limit,
            variances=_HEAD_VARIANCES,
        )
        scores = raw["cls"].softmax(-1)[..., 1:]
        sides = boxes[..., 2:] - boxes[..., :2]
        present = (raw["proposal_scores"] >= 0).unsqueeze(-1)
        counts = present & (sides >= self.config.head.min_size).all(-1)
        return Candidates(boxes=boxes, scores=torch.where(counts, scores, 0.0))

    @torch.no_grad()
    def propose(
        self, objectness: Tensor, offsets: Tensor, canvas: Canvas, *, before: int, after: int
    ) -> tuple[Tensor, Tensor]:
        """The best of the boxes that the first stage sees, as constants.

        Args:
            objectness: (N, A) logits.
            offsets: (N, A, 4).
            canvas: of the images.
            before: best anchors of each level that suppression gets to see.
            after: best boxes of all levels to return.

        Returns:
            (N, P, 4) xyxy and (N, P) scores, best first; P is ``after`` or, where the anchors do
            not suffice for it, less. Empty slots hold a pixel and score -1.
        """
        kept_boxes, kept_scores = [], []
        start = 0
        # Over levels, whose number and lengths are fixed; images go together.
        for length in canvas.level_lengths:
            logits, index = objectness[:, start : start + length].topk(min(before, length), dim=1)
            rows = (start + index).unsqueeze(-1).expand(-1, -1, 4)
            anchors = canvas.anchors.expand(objectness.shape[0], -1, -1).gather(1, rows)
            boxes = self._boxes(
                offsets.gather(1, rows), anchors, canvas.limit, variances=_RPN_VARIANCES
            )
            # A diverged network must reach the guard against that with its loss, and not fail here.
            finite = boxes.isfinite().all(-1) & logits.isfinite()
            boxes = torch.where(finite.unsqueeze(-1), boxes, 0.0)
            sides = boxes[..., 2:] - boxes[..., :2]
            valid = finite & (sides >= self.config.rpn.min_size).all(-1)
            keep = suppress_sorted(boxes, valid, self.config.rpn.nms_iou)
            kept_boxes.append(boxes)
            kept_scores.append(torch.where(keep, logits.sigmoid(), -1.0))
            start += length
        every_score = torch.cat(kept_scores, dim=1)
        scores, index = every_score.topk(min(after, every_score.shape[1]), dim=1)
        boxes = torch.cat(kept_boxes, dim=1).gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        return torch.where((scores >= 0).unsqueeze(-1), boxes, self.pixel), scores

    def _first_stage(
        self, objectness: Tensor, offsets: Tensor, targets: Targets, canvas: Canvas
    ) -> dict[str, LossTerm]:
        """Losses of anchors, over those drawn."""
        rule = self.config.rpn
        found = match_by_images(
            targets.boxes,
            canvas.anchors,
            lambda iou, images: assign(iou, targets.valid[images], canvas.usable, rule.assignment),
            plus_one=self.config.legacy_boxes,
        )
        keys = draws.rand(objectness.shape, device=objectness.device)
        drawn = draw(found, keys, rule.assignment)
        rows = drawn.rows.unsqueeze(-1).expand(-1, -1, 4)
        anchors = canvas.anchors.expand(objectness.shape[0], -1, -1).gather(1, rows)
        slot = found.box.gather(1, drawn.rows)
        wanted = self._offsets(_rows(targets.boxes, slot), anchors, _RPN_VARIANCES)
        cls = F.binary_cross_entropy_with_logits(
            objectness.gather(1, drawn.rows),
            drawn.positive.to(objectness.dtype),
            reduction="none",
        )
        loc = positive_smooth_l1(offsets.gather(1, rows), wanted, drawn.positive, beta=rule.beta)
        count = drawn.valid.sum()
        if rule.fixed_count:
            count = torch.full_like(count, rule.assignment.samples * len(objectness))
        return {
            "rpn_cls": LossTerm(torch.where(drawn.valid, cls, 0.0).sum(), count),
            "rpn_loc": LossTerm(loc.sum(), count),
        }

    def _second_examples(
        self, objectness: Tensor, offsets: Tensor, targets: Targets, canvas: Canvas
    ) -> _Examples:
        """Proposals and the boxes themselves, and which of them the second stage learns from."""
        rpn, rule = self.config.rpn, self.config.head
        proposals, scores = self.propose(
            objectness, offsets, canvas, before=rpn.before_train, after=rpn.after_train
        )
        boxes = torch.cat([proposals, targets.boxes], dim=1)
        usable = torch.cat([scores >= 0, targets.valid], dim=1)
        # Where boxes claim proposals, as in the zoo, they join after that, each for itself: before,
        # every box would claim itself.
        join_after = rule.assignment.claims != "none"
        found = match_by_images(
            targets.boxes,
            proposals if join_after else boxes,
            lambda iou, images: assign(
                iou, targets.valid[images], usable[images, : iou.shape[2]], rule.assignment
            ),
            plus_one=self.config.legacy_boxes,
        )
        if join_after:
            found = _with_themselves(found, targets.valid)
        # Drawn so that padding leaves the numbers of what is there as they are.
        keys = torch.cat(
            [
                draws.rand(proposals.shape[:2], device=boxes.device),
                draws.rand(targets.valid.mT.shape, image_axis=1, device=boxes.device).mT,
            ],
            dim=1,
        )
        return _Examples(boxes, found, draw(found, keys, rule.assignment))

    def _second_stage(
        self, maps: Sequence[Tensor], examples: _Examples, targets: Targets, canvas: Canvas
    ) -> dict[str, LossTerm]:
        """Losses of the examples drawn."""
        boxes, found, drawn = examples
        chosen = torch.where(drawn.valid.unsqueeze(-1), _rows(boxes, drawn.rows), self.pixel)
        slot = found.box.gather(1, drawn.rows)
        channel = torch.where(drawn.positive, targets.labels.gather(1, slot) + 1, 0)
        wanted = self._offsets(_rows(targets.boxes, slot), chosen, _HEAD_VARIANCES)
        logits, offsets = self.roi_heads(maps, chosen, canvas.layout)
        own = channel.view(*channel.shape, 1, 1).expand(-1, -1, 1, 4)
        cls = F.cross_entropy(logits.flatten(0, 1), channel.flatten(), reduction="none")
        factors = self.class_factors(channel - 1)
        if factors is not None:
            cls = cls * factors.flatten()
        loc = positive_smooth_l1(
            offsets.gather(2, own).squeeze(2),
            wanted,
            drawn.positive,
            beta=self.config.head.beta,
        )
        count = drawn.valid.sum()
        return {
            "cls": LossTerm(torch.where(drawn.valid.flatten(), cls, 0.0).sum(), count),
            "loc": LossTerm(loc.sum(), count),
        }

    def _canvas(self, size: Sequence[int]) -> Canvas:
        canvas: Canvas = self.canvases[_name(size)]  # type: ignore[assignment]
        return canvas

    def _features(self, images: Tensor) -> list[Tensor]:
        return list(self.backbone(self.normalize(images)))

    def _offsets(self, boxes: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
        """Offsets (..., 4) from anchors or proposals to boxes, both xyxy."""
        legacy = self.config.legacy_boxes
        return encode(
            to_centers(boxes, plus_one=legacy),
            to_centers(priors, plus_one=legacy),
            variances=variances,
        )

    def _boxes(
        self, offsets: Tensor, priors: Tensor, limit: Tensor, *, variances: tuple[float, float]
    ) -> Tensor:
        """Boxes (..., 4) xyxy on the canvas, from offsets and anchors or proposals xyxy."""
        legacy = self.config.legacy_boxes
        centers = decode(
            offsets,
            to_centers(priors, plus_one=legacy),
            variances=variances,
            log_ratios=(-_LARGEST_LOG if legacy else -math.inf, _LARGEST_LOG),
        )
        corners = to_corners(centers, plus_one=legacy)
        low, high = (part.clamp(min=0).minimum(limit) for part in corners.chunk(2, dim=-1))
        # Less than a pixel long, a legacy box ends before it begins.
        return torch.cat([low, high.maximum(low)], dim=-1)


def _name(size: Sequence[int]) -> str:
    """Key of the canvas of a height and a width."""
    return f"{size[0]}x{size[1]}"


def _with_themselves(found: Assignment, valid: Tensor) -> Assignment:
    """The assignment of proposals, followed by that of the boxes, each to itself.

    Args:
        found: of (N, P) proposals.
        valid: (N, G) bool, the slots that hold boxes.

    Returns:
        Of (N, P + G).
    """
    slots = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    return Assignment(
        box=torch.cat([found.box, slots], dim=1),
        positive=torch.cat([found.positive, valid], dim=1),
        negative=torch.cat([found.negative, torch.zeros_like(valid)], dim=1),
    )


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes (N, S, 4) out of (N, A, 4) by index (N, S)."""
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
