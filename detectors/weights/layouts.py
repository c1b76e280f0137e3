"""Published layouts of weights: how to recognise each, and its names in this program's networks.

A layout is recognised by tensors that no other one has. Its names are then rewritten into those of
a *part*, such as VGG16-reduced, and ``SITES`` says under which prefix each detector holds that
part.

Sources of the names: amdegroot/ssd.pytorch, VDIGPKU/M2Det, yan-roo/SpineNet-Pytorch,
mindspore-ai/models (official/cv/SSD, the port of M2Det, and official/cv/FasterRCNN: of
src/FasterRcnn at e60768e the files fpn_neck.py and rcnn.py, its tools for checkpoints that speak of
``rpn_with_loss.rpn_convs_list.0.rpn_conv``), torchvision 0.29.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from detectors.weights.archives import WeightsError

Tensors: TypeAlias = Mapping[str, Tensor]


class Piece(NamedTuple):
    """A tensor on its way.

    Attributes:
        name: in the part; None if the part has no place for it.
        value: as the part wants it.
        source: name in the file.
        source_shape: shape in the file.
        change: what was done to it; empty if nothing.
    """

    name: str | None
    value: Tensor
    source: str
    source_shape: tuple[int, ...]
    change: str = ""


class Classes(NamedTuple):
    """Which tensors of a layout hold rows for classes.

    Attributes:
        counted_by: tensor whose first axis tells the number of class channels.
        repeats: rows for each class channel in that tensor.
        rows: pattern of names in the part, and where the class axis lies among the rows: ``inner``
            when classes vary fastest (anchor by anchor), ``outer`` when they vary slowest.
        background: class channels before the first foreground class.
    """

    counted_by: str
    repeats: int
    rows: tuple[tuple[str, Literal["inner", "outer"]], ...]
    background: int = 1


@dataclass(frozen=True)
class Layout:
    """A way to name and shape the tensors of a network.

    Attributes:
        name: for the command line and reports.
        title: what it is, for people.
        landmarks: names that are all present in it.
        rename: name in the file to the name in the part; None where the part has no place for it.
        sites: prefix of the part in each detector that has it.
        reshape: by name in the file: what to do to the tensor, given all of them, and how to call
            that.
        classes: rows for classes, if it has any.
        settings: of the detector, or of its backbone, that the weights were trained with and that
            no tensor tells.
    """

    name: str
    title: str
    landmarks: tuple[str, ...]
    rename: Callable[[str], str | None]
    sites: Mapping[str, str]
    reshape: Mapping[str, tuple[Callable[[Tensor, Tensors], Tensor], str]] = field(
        default_factory=dict
    )
    classes: Classes | None = None
    settings: Mapping[str, float | str] = field(default_factory=dict)

    def fits(self, tensors: Tensors) -> bool:
        """Whether all landmarks are there."""
        return all(name in tensors for name in self.landmarks)

    def pieces(self, tensors: Tensors) -> Iterator[Piece]:
        """Every tensor under its name in the part."""
        for source, tensor in tensors.items():
            value, change = tensor, ""
            if source in self.reshape:
                function, change = self.reshape[source]
                try:
                    value = function(tensor, tensors)
                except (RuntimeError, IndexError) as error:
                    raise WeightsError(
                        f"{source}: found shape {tuple(tensor.shape)}, which is not that of "
                        f"{self.title}: {error}"
                    ) from error
            try:
                name = self.rename(source)
            except ValueError:  # A number of more digits than Python reads.
                name = None
            yield Piece(name, value, source, tuple(tensor.shape), change)

    def channels(self, tensors: Tensors) -> int | None:
        """Class channels of the file, background included; None where it has none.

        Raises:
            WeightsError: what tells them tells of no class.
        """
        if self.classes is None or self.classes.counted_by not in tensors:
            return None
        counted = tensors[self.classes.counted_by]
        # Without numbers it may have any number of rows.
        rows = len(counted) if counted.dim() and counted.numel() else 0
        if rows // self.classes.repeats <= self.classes.background:
            raise WeightsError(
                f"{self.classes.counted_by}: found shape {tuple(counted.shape)}, which has rows "
                f"for no class of {self.title}"
            )
        return rows // self.classes.repeats


def _same(name: str) -> str:
    return name


def _substitute(*rules: tuple[str, str]) -> Callable[[str], str | None]:
    """The first rule whose pattern matches the whole name rewrites it; None if none does."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str | None:
        for pattern, replacement in compiled:
            if pattern.fullmatch(name):
                return pattern.sub(replacement, name)
        return None

    return rename


def _vgg_classifier(features: str) -> Callable[[str], str | None]:
    """Names in a VGG16 classifier, whose convolutions are below ``features``, to the reduced's."""
    return _substitute(
        (rf"{features}\.(.*)", r"\1"),
        (r"classifier\.0\.(.*)", r"31.\1"),
        (r"classifier\.3\.(.*)", r"33.\1"),
    )


def _fc6(weight: Tensor, _: Tensors) -> Tensor:
    """(4096, 25088) to (1024, 512, 3, 3): every fourth output, every third tap of 7 x 7."""
    return weight.view(4096, 512, 7, 7)[::4, :, ::3, ::3]


def _fc7(weight: Tensor, _: Tensors) -> Tensor:
    """(4096, 4096) to (1024, 1024, 1, 1): every fourth output and input."""
    return weight.view(4096, 4096, 1, 1)[::4, ::4]


_EVERY_FOURTH = "every fourth output"
#: On pyramids a backbone stands below ``body``, but for one whose maps are a pyramid themselves.
_PYRAMID_SITES = {"faster_rcnn": "backbone.body.", "retinanet": "backbone.body."}
_VGG_SITES = {"ssd": "vgg.", "m2det": "base.", **_PYRAMID_SITES}
#: How a VGG16 classifier, of which two layers are large, becomes the reduced network.
_VGG_CLASSIFIER: Mapping[str, tuple[Callable[[Tensor, Tensors], Tensor], str]] = {
    "classifier.0.weight": (_fc6, f"{_EVERY_FOURTH}, every third tap of 7x7"),
    "classifier.0.bias": (lambda bias, _: bias[::4], _EVERY_FOURTH),
    "classifier.3.weight": (_fc7, f"{_EVERY_FOURTH} and input"),
    "classifier.3.bias": (lambda bias, _: bias[::4], _EVERY_FOURTH),
}
_RESNET_SITES = {"m2det": "base.", **_PYRAMID_SITES}
_MOBILENET_TAIL = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _mobilenet_v2(name: str) -> str | None:
    """Torchvision's ``features.<i>`` to the model zoo's two halves, cut after block 13."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
    if match is None:
        return None
    index, rest = int(match[1]), match[2]
    half = f"features_1.{index}" if index <= 13 else f"features_2.{index - 14}"
    if not rest.startswith("conv."):
        return f"{half}.features.{rest}"
    # A convolution with its normalisation is a module of its own there, and has three parts here.
    inner = re.sub(rf"^conv\.(\d+)\.([01])\.{_MOBILENET_TAIL}$", r"conv.\1.features.\2.\3", rest)
    return f"{half}.{inner}"


def _torchvision_ssd300(name: str) -> str | None:
    """``backbone.extra.0`` goes on where ``features`` ends, at the pool after conv4_3."""
    if name == "backbone.scale_weight":
        return "L2Norm.weight"
    if match := re.fullmatch(r"backbone\.features\.(\d+)\.(\w+)", name):
        return f"vgg.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"backbone\.extra\.0\.(\d+)\.(\w+)", name):
        return f"vgg.{23 + int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"backbone\.extra\.0\.7\.(\d+)\.(\w+)", name):
        return f"vgg.{30 + int(match[1])}.{match[2]}"
    if match := re.fullmatch(r"backbone\.extra\.(\d+)\.([02])\.(\w+)", name):
        return f"extras.{2 * (int(match[1]) - 1) + int(match[2]) // 2}.{match[3]}"
    if match := re.fullmatch(r"head\.(\w+)_head\.module_list\.(\d+)\.(\w+)", name):
        kind = {"classification": "conf", "regression": "loc"}.get(match[1])
        return kind and f"{kind}.{match[2]}.{match[3]}"
    return None


#: Gamma, beta and the running statistics as MindSpore calls them.
_MINDSPORE_ENDINGS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _mindspore(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{_MINDSPORE_ENDINGS.get(ending, ending)}"


def _mindspore_spinenet(name: str) -> str:
    """Its convolutions come with a ``norm``; the copy of its source on record has no other name."""
    return re.sub(r"\.norm\.(\w+)$", r".bn.\1", _mindspore(name))


def _mindspore_m2det(name: str) -> str:
    """Its VGG16 keeps its layers in a list of that name."""
    return re.sub(r"^base\.layers\.(\d+)\.", r"base.\1.", _mindspore(name))


def _mindspore_resnet(name: str) -> str | None:
    """The classifier's names, or those of a backbone made of it for Faster R-CNN."""
    name = _mindspore(name).removeprefix("backbone.")
    name = re.sub(r"\.(?:down_sample_layer\.0|conv_down_sample)\.", ".downsample.0.", name)
    name = re.sub(r"\.(?:down_sample_layer\.1|bn_down_sample)\.", ".downsample.1.", name)
    return name if re.match(r"(conv1|bn1|layer\d)\.", name) else None


_mindspore_heads = _substitute(
    (r"fpn_n(?:eck|cek)\.lateral_convs_list\.(\d)\.(\w+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
    (r"fpn_n(?:eck|cek)\.fpn_convs_list\.(\d)\.(\w+)", r"backbone.fpn.layer_blocks.\1.0.\2"),
    # All levels share the layers of the first.
    (r"rpn_with_loss\.rpn_convs_list\.0\.rpn_conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
    (r"rpn_with_loss\.rpn_convs_list\.0\.rpn_cls\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"rpn_with_loss\.rpn_convs_list\.0\.rpn_reg\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"rcnn\.shared_fc_0\.(\w+)", r"roi_heads.box_head.fc6.\1"),
    (r"rcnn\.shared_fc_1\.(\w+)", r"roi_heads.box_head.fc7.\1"),
    (r"rcnn\.cls_scores\.(\w+)", r"roi_heads.box_predictor.cls_score.\1"),
    (r"rcnn\.reg_scores\.(\w+)", r"roi_heads.box_predictor.bbox_pred.\1"),
)


def _mindspore_faster_rcnn(name: str) -> str | None:
    """The zoo's Faster R-CNN, whose pyramid was called ``fpn_ncek`` in its first releases."""
    if not name.startswith("backbone."):
        return _mindspore_heads(name)
    body = _mindspore_resnet(name)
    return body and f"backbone.body.{body}"


def _turned(weight: Tensor, _: Tensors) -> Tensor:
    """(in, out), as its layers without transposition hold it, to (out, in)."""
    return weight.t()


def _offsets(values: Tensor, tensors: Tensors) -> Tensor:
    """Offsets of the boxes of all classes, with those of the background, which newer files lack."""
    rows = values.t() if values.dim() == 2 else values
    lacking = 4 * len(tensors["rcnn.cls_scores.bias"]) - len(rows)
    if lacking != 4:
        return rows
    return torch.cat([rows.new_zeros(4, *rows.shape[1:]), rows])


_RETINA_CLASSES = Classes(
    "bbox_head.retina_cls.bias",
    9,
    ((r"bbox_head\.retina_cls\.\w+", "inner"),),
    background=0,
)
_CONF_ROWS: tuple[tuple[str, Literal["inner", "outer"]], ...] = ((r"conf\.\d+\.\w+", "inner"),)

#: In the order in which they are tried.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="m2det",
        title="a released M2Det",
        landmarks=("unet1.toplayer.0.bn.weight", "leach.0.conv.weight", "conf.0.bias"),
        rename=_same,
        sites={"m2det": ""},
        classes=Classes("conf.0.bias", 6, _CONF_ROWS),
    ),
    Layout(
        name="amdegroot_ssd",
        title="an SSD of amdegroot/ssd.pytorch",
        landmarks=("vgg.0.weight", "L2Norm.weight", "conf.0.bias"),
        rename=_same,
        sites={"ssd": ""},
        classes=Classes("conf.0.bias", 4, _CONF_ROWS),
    ),
    Layout(
        name="torchvision_ssd300",
        title="torchvision's ssd300_vgg16",
        landmarks=("backbone.scale_weight", "head.classification_head.module_list.0.bias"),
        rename=_torchvision_ssd300,
        sites={"ssd": ""},
        classes=Classes("head.classification_head.module_list.0.bias", 4, _CONF_ROWS),
    ),
    Layout(
        name="torchvision_faster_rcnn",
        title="torchvision's fasterrcnn_resnet50_fpn",
        landmarks=("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.bias"),
        # The released file is older than the layer of names around FPN and RPN convolutions.
        rename=_substitute(
            (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
            (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
            (r"(.*)", r"\1"),
        ),
        sites={"faster_rcnn": ""},
        classes=Classes(
            "roi_heads.box_predictor.cls_score.bias",
            1,
            ((r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.\w+", "outer"),),
        ),
        settings={"bn_eps": 0.0, "pooling": "torchvision"},
    ),
    Layout(
        name="spinenet",
        title="a SpineNet backbone of yan-roo/SpineNet-Pytorch",
        landmarks=("merge_ops.0.resample_ops.0.squeeze_conv.conv.weight",),
        rename=_same,
        sites={"retinanet": "backbone.", "faster_rcnn": "backbone.", "m2det": "base."},
    ),
    Layout(
        name="spinenet_detector",
        title="a detector of yan-roo/SpineNet-Pytorch",
        landmarks=(
            "backbone.merge_ops.0.resample_ops.0.squeeze_conv.conv.weight",
            "backbone.init_block1.0.bn1.weight",
        ),
        rename=_same,
        sites={"retinanet": ""},
        # A Mask R-CNN of the same project shares the backbone alone.
        classes=_RETINA_CLASSES,
    ),
    Layout(
        name="mindspore_spinenet_detector",
        title="a RetinaNet-SpineNet of the MindSpore model zoo",
        landmarks=(
            "backbone.merge_ops.0.resample_ops.0.squeeze_conv.conv.weight",
            "backbone.init_block1.0.bn1.gamma",
        ),
        rename=_mindspore_spinenet,
        sites={"retinanet": ""},
        classes=_RETINA_CLASSES,
    ),
    Layout(
        name="mindspore_ssd",
        title="an SSD300-MobileNetV2 of the MindSpore model zoo",
        landmarks=(
            "backbone.features_1.0.features.1.gamma",
            "multi_box.multi_cls_layers.0.3.bias",
        ),
        rename=_mindspore,
        sites={"ssd": ""},
        classes=Classes(
            "multi_box.multi_cls_layers.0.3.bias",
            3,
            ((r"multi_box\.multi_cls_layers\.\d+\.3\.\w+", "inner"),),
        ),
    ),
    Layout(
        name="mindspore_m2det",
        title="an M2Det of the MindSpore port",
        landmarks=("unet1.toplayer.0.bn.gamma", "leach.0.bn.gamma", "conf.0.bias"),
        rename=_mindspore_m2det,
        sites={"m2det": ""},
        classes=Classes("conf.0.bias", 6, _CONF_ROWS),
    ),
    Layout(
        name="mindspore_faster_rcnn",
        title="a Faster R-CNN of the MindSpore model zoo",
        landmarks=(
            "backbone.conv1.weight",
            "rpn_with_loss.rpn_convs_list.0.rpn_conv.weight",
            "rcnn.cls_scores.bias",
        ),
        rename=_mindspore_faster_rcnn,
        sites={"faster_rcnn": ""},
        reshape={
            **{
                f"rcnn.{layer}.weight": (_turned, "turned")
                for layer in ("shared_fc_0", "shared_fc_1", "cls_scores")
            },
            "rcnn.reg_scores.weight": (_offsets, "turned, with rows of the background"),
            "rcnn.reg_scores.bias": (_offsets, "with rows of the background"),
        },
        classes=Classes(
            "rcnn.cls_scores.bias",
            1,
            ((r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.\w+", "outer"),),
        ),
        settings={"pooling": "mindspore"},
    ),
    Layout(
        name="mindspore_resnet",
        title="a ResNet classifier of the MindSpore model zoo",
        landmarks=("conv1.weight", "bn1.gamma", "layer1.0.down_sample_layer.0.weight"),
        rename=_mindspore_resnet,
        sites=_RESNET_SITES,
        settings={"pooling": "mindspore"},
    ),
    Layout(
        name="mindspore_faster_rcnn_backbone",
        title="a ResNet backbone of the MindSpore zoo's Faster R-CNN",
        landmarks=("backbone.conv1.weight", "backbone.layer1.0.conv_down_sample.weight"),
        rename=_mindspore_resnet,
        sites=_RESNET_SITES,
        settings={"pooling": "mindspore"},
    ),
    Layout(
        name="mindspore_vgg16_reducedfc",
        title="vgg16_reducedfc of the MindSpore port of M2Det",
        landmarks=("layers.0.weight", "layers.28.weight", "layers.31.weight", "layers.33.weight"),
        rename=lambda name: name.removeprefix("layers."),
        sites=_VGG_SITES,
    ),
    Layout(
        name="vgg16_reducedfc",
        title="vgg16_reducedfc.pth",
        landmarks=("0.weight", "28.weight", "31.weight", "33.weight"),
        rename=_same,
        sites=_VGG_SITES,
    ),
    Layout(
        name="torchvision_vgg16",
        title="torchvision's vgg16 classifier",
        landmarks=("features.0.weight", "features.28.weight", "classifier.3.weight"),
        rename=_vgg_classifier("features"),
        sites=_VGG_SITES,
        reshape=_VGG_CLASSIFIER,
    ),
    Layout(
        name="mindspore_vgg16",
        title="the VGG16 classifier of the MindSpore model zoo, without batch normalisation",
        landmarks=("layers.0.weight", "layers.28.weight", "classifier.3.weight"),
        # official/cv/VGG16, trained on ImageNet by its imagenet2012_config.yaml.
        rename=_vgg_classifier("layers"),
        sites=_VGG_SITES,
        reshape=_VGG_CLASSIFIER,
    ),
    Layout(
        name="torchvision_resnet",
        title="a torchvision ResNet classifier",
        landmarks=("conv1.weight", "layer1.0.conv1.weight", "layer4.0.downsample.0.weight"),
        rename=_same,
        sites=_RESNET_SITES,
        settings={"pooling": "torchvision"},
    ),
    Layout(
        name="torchvision_mobilenet_v2",
        title="torchvision's mobilenet_v2 classifier",
        landmarks=("features.0.0.weight", "features.18.0.weight", "classifier.1.weight"),
        rename=_mobilenet_v2,
        sites={"ssd": "backbone.", "m2det": "base.", **_PYRAMID_SITES},
    ),
)

#: What wrappers put before every name: DataParallel, training cells, compiled modules.
_WRAPPERS = ("module.", "network.", "net.", "model.", "_orig_mod.")


def unwrap(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors without a wrapper's prefix, where all of them have it."""
    found = dict(tensors)
    while True:
        shared = [w for w in _WRAPPERS if found and all(name.startswith(w) for name in found)]
        if not shared:
            return found
        found = {name.removeprefix(shared[0]): tensor for name, tensor in found.items()}


def recognise(tensors: Tensors) -> Layout | None:
    """The first layout whose landmarks are all there."""
    return next((layout for layout in LAYOUTS if layout.fits(tensors)), None)
