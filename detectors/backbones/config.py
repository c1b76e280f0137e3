"""Typed configurations of backbones, and which of them fit a detector; nothing here imports torch.

To add one here: its module and its line in ``_OWN``. From another package: an entry point of the
group ``orchestrator.backbones`` that names its configuration class; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from detectors.config import DetectorConfig, Positive, Settings
from detectors.plugins import ByName, Offered, offered

#: Depths of ResNet there are.
Depth = Literal[50, 101, 152]

#: How many parts, from the image on, do not train: 0 none, 1 the stem, 2 the first stage too, ...
FrozenParts = Annotated[int, Field(ge=0, le=5)]

#: Normalisation layers: ``batch`` learns statistics and affine, ``affine`` the affine only,
#: ``frozen`` neither.
NormName = Literal["batch", "affine", "frozen"]

#: Members of the SpineNet family.
Arch = Literal["49S", "49", "96", "143", "190"]

#: Whose pooling: after the stem of a ResNet ``torchvision`` pads on both sides, ``mindspore`` at
#: the end (``SAME``), which is another grid. Weights are at home on the one they were trained on.
Pooling = Literal["torchvision", "mindspore"]

Activation = Literal["relu", "silu"]
Endpoints = Literal["linear", "activated"]
Width = Annotated[float, Field(ge=0.05, le=4.0)]


class BackboneConfig(Settings):
    """Base of every backbone's typed configuration.

    Attributes:
        name: selects the backbone.
        builder: ``module:callable`` that builds it from the configuration, imported when one is
            built; it gives a :class:`~detectors.backbones.layers.Backbone`.
        strides: pixels per cell of the maps handed out, rising.
        divisor: height and width of the input must be multiples of it.
        even: whether all maps have equally many channels and double their stride, so that no
            pyramid has to be built on them.
    """

    builder: ClassVar[str]
    strides: ClassVar[tuple[int, ...]]
    divisor: ClassVar[int] = 1
    even: ClassVar[bool] = False

    name: str

    @property
    def title(self) -> str:
        """Name for people."""
        return self.name


class ResNetConfig(BackboneConfig):
    """ResNet (He et al., CVPR 2016), under torchvision's names.

    Attributes:
        name: selects this backbone.
        depth: number of layers by which it is known.
        width: factor on every channel count, rounded to multiples of 8.
        norm: what normalisation layers learn: ``batch`` statistics and affine, ``affine`` the
            affine only, ``frozen`` nothing.
        bn_eps: added to the variance there.
        frozen_parts: leading parts that do not train: 1 the stem, 2 the first stage as well, and so
            on.
        pooling: ``mindspore`` for weights of the MindSpore model zoo.
    """

    builder = "detectors.backbones.resnet:ResNet.from_config"
    strides = (4, 8, 16, 32)

    name: Literal["resnet"] = "resnet"
    depth: Depth = 50
    width: Width = 1.0
    norm: NormName = "batch"
    bn_eps: Annotated[float, Field(ge=0.0)] = 1e-5
    frozen_parts: FrozenParts = 0
    pooling: Pooling = "torchvision"

    @property
    def title(self) -> str:
        """Name for people."""
        return _wide(f"ResNet-{self.depth}", self.width)


class SpineNetConfig(BackboneConfig):
    """SpineNet (Du et al., CVPR 2020), under SpineNet-Pytorch's names.

    Attributes:
        name: selects this backbone.
        arch: member of the family.
        width: factor on every channel count.
        activation: ``relu``, or ``silu`` as in the paper's longest schedule.
        endpoints: maps handed out: ``linear`` (SpineNet-Pytorch, MindSpore port) or ``activated``
            (tensorflow/tpu).
        stochastic_depth: probability with which the convolutions of the last block are left out in
            training; earlier blocks have less.
        zero_init: begin with residual units that do nothing (SpineNet-Pytorch).
        bn_momentum: weight of the new batch in the running statistics, torch's convention.
        bn_eps: added to the variance in batch normalisation.
    """

    builder = "detectors.backbones.spinenet:SpineNet"
    strides = (8, 16, 32, 64, 128)
    divisor = 128
    even = True

    name: Literal["spinenet"] = "spinenet"
    arch: Arch = "49"
    width: Width = 1.0
    activation: Activation = "relu"
    endpoints: Endpoints = "linear"
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    zero_init: bool = True
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    bn_eps: Positive = 1e-3

    @property
    def title(self) -> str:
        """Name for people."""
        return _wide(f"SpineNet-{self.arch}", self.width)


class VGG16Config(BackboneConfig):
    """VGG16 with its two large layers as convolutions, under the names of amdegroot/ssd.pytorch.

    Attributes:
        name: selects this backbone.
        width: factor on every channel count, rounded to multiples of 8.
    """

    builder = "detectors.backbones.vgg:VGG16Reduced.from_config"
    strides = (4, 8, 16)
    divisor = 16

    name: Literal["vgg16"] = "vgg16"
    width: Width = 1.0

    @property
    def title(self) -> str:
        """Name for people."""
        return _wide("VGG16", self.width)


class MobileNetV2Config(BackboneConfig):
    """MobileNetV2 (Sandler et al., CVPR 2018), under the names of the MindSpore model zoo.

    Attributes:
        name: selects this backbone.
        width: factor on every channel count, rounded to multiples of 8.
        bn_momentum: weight of the new batch in the running statistics, torch's convention.
        bn_eps: added to the variance in batch normalisation.
    """

    builder = "detectors.backbones.mobilenet_v2:MobileNetV2.from_config"
    strides = (4, 8, 16, 32)

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: Width = 1.0
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.03
    bn_eps: Positive = 1e-3

    @property
    def title(self) -> str:
        """Name for people."""
        return _wide("MobileNetV2", self.width)


def _wide(title: str, width: float) -> str:
    return title if width == 1.0 else f"{title} at width {width:g}"


_OWN: dict[str, type[BackboneConfig]] = {
    "mobilenet_v2": MobileNetV2Config,
    "resnet": ResNetConfig,
    "spinenet": SpineNetConfig,
    "vgg16": VGG16Config,
}


@cache
def backbones() -> Offered:
    """Configuration class of each backbone, by the ``name`` in its configuration."""
    return offered("orchestrator.backbones", BackboneConfig, _OWN)


#: Type of the ``backbone`` field of a detector.
AnyBackboneConfig: TypeAlias = Annotated[BackboneConfig, ByName(backbones)]


def backbone_config(name: str, **fields: Any) -> BackboneConfig:
    """Configuration of a backbone.

    Args:
        name: one of :func:`backbones`.
        fields: values other than the defaults.

    Raises:
        PluginError: the package that offers it cannot be used.
        KeyError: there is no such backbone.
    """
    classes, broken = backbones()
    if name in broken and name not in classes:
        raise broken[name]
    config: BackboneConfig = classes[name](name=name, **fields)
    return config


def check_fit(
    detector: DetectorConfig,
    backbone: BackboneConfig | None,
    *,
    strides: Sequence[int],
    size: tuple[int, int],
    replaced: Sequence[str],
) -> None:
    """Refuse a backbone that a detector cannot use.

    Args:
        detector: its configuration.
        backbone: the one chosen; None for that of the variant, which fits.
        strides: maps that the detector takes.
        size: height and width of the input.
        replaced: fields of the detector that describe the variant's own backbone.

    Raises:
        ValueError: a map is missing, the input size does not fit, or a field in ``replaced`` was
            given.
    """
    if backbone is None:
        return
    if not set(strides) <= set(backbone.strides):
        fitting = [
            name for name, one in backbones().classes.items() if set(strides) <= set(one.strides)
        ]
        raise ValueError(
            f"{detector.name} takes maps of stride {_and(strides)}; {backbone.name} hands out "
            f"{_and(backbone.strides)}; allowed are {_and(fitting)}"
        )
    if any(side % backbone.divisor for side in size):
        raise ValueError(
            f"{backbone.name} takes sizes that are multiples of {backbone.divisor}, found "
            f"{size[0]} x {size[1]}; choose another size or another backbone"
        )
    for field in replaced:
        if getattr(detector, field) != detector.preset(field):
            raise ValueError(
                f"'{field}' belongs to the variant's own backbone, which 'backbone' replaces; "
                f"take it out, and set what {backbone.name} has instead below 'backbone'"
            )


def _and(values: Sequence[Any]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last
