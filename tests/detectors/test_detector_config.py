from __future__ import annotations

import json

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from detectors.registry import DETECTORS, AnyDetectorConfig, build_detector, variant_config
from detectors.ssd.config import FocalLossConfig, SSDConfig
from tests.detectors.small_detectors import SMALL

ANY: TypeAdapter[AnyDetectorConfig] = TypeAdapter(AnyDetectorConfig)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_resolved_configuration_is_its_own_fixed_point(name: str) -> None:
    config = ANY.validate_python({"name": name})
    assert type(config) is DETECTORS[name][0]
    assert config.name == name
    text = config.model_dump_json()
    assert ANY.validate_json(text) == config
    assert {"name", "postprocess"} <= set(json.loads(text))


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_configurations_are_frozen_and_refuse_unknown_keys(name: str) -> None:
    config = ANY.validate_python({"name": name})
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"
    with pytest.raises(ValidationError, match="colour"):
        ANY.validate_python({"name": name, "colour": 1})


def test_mobilenet_defaults_are_the_published_recipe() -> None:
    config = SSDConfig()
    assert config.model_dump() == {
        "name": "ssd",
        "variant": "ssd300_mobilenet_v2",
        "width": 1.0,
        "bn_momentum": 0.03,
        "bn_eps": 0.001,
        "class_weights": None,
        "priors": "mindspore",
        "loss": {
            "name": "focal",
            "match_threshold": 0.5,
            "alpha": 0.75,
            "gamma": 2.0,
            "loc_reduction": "sum",
            "prior_score": None,
        },
        "postprocess": {
            "score_threshold": 0.1,
            "top_k_per_class": None,
            "nms": "hard",
            "iou_threshold": 0.6,
            "sigma": 0.5,
            "soft_score_threshold": 0.001,
            "plus_one": True,
            "max_per_class": 100,
            "max_per_image": None,
            "class_agnostic": False,
        },
    }


@pytest.mark.parametrize("variant", ["ssd300_vgg16", "ssd512_vgg16"])
def test_vgg_defaults_are_the_published_recipe(variant: str) -> None:
    config = SSDConfig.model_validate({"name": "ssd", "variant": variant})
    tree = config.model_dump()
    assert tree["loss"] == {"name": "multibox", "match_threshold": 0.5, "negative_ratio": 3.0}
    assert tree["priors"] == "coco"
    assert tree["bn_eps"] is tree["bn_momentum"] is None
    assert tree["postprocess"] == {
        "score_threshold": 0.01,
        "top_k_per_class": 400,
        "nms": "hard",
        "iou_threshold": 0.45,
        "sigma": 0.5,
        "soft_score_threshold": 0.001,
        "plus_one": False,
        "max_per_class": None,
        "max_per_image": 200,
        "class_agnostic": False,
    }
    assert SSDConfig.model_validate(tree) == config


def test_given_fields_lie_over_the_preset_also_inside_sections() -> None:
    config = SSDConfig.model_validate(
        {"name": "ssd", "loss": {"alpha": 0.25}, "postprocess": {"score_threshold": 0.01}}
    )
    assert isinstance(config.loss, FocalLossConfig)
    assert config.loss.alpha == 0.25
    assert config.loss.gamma == 2.0
    assert config.postprocess.score_threshold == 0.01
    assert config.postprocess.iou_threshold == 0.6


def test_whole_numbers_serve_as_floats_but_text_does_not() -> None:
    config = SSDConfig.model_validate_json('{"name": "ssd", "width": 1, "loss": {"gamma": 2}}')
    assert isinstance(config.width, float)
    with pytest.raises(ValidationError, match="width"):
        SSDConfig.model_validate({"width": "0.5"})


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"variant": "ssd300_mobilenet_v3"}, "variant"),
        ({"variant": ["ssd300_mobilenet_v2"]}, "variant"),
        ({"width": 0}, "width"),
        ({"width": float("nan")}, "width"),
        ({"bn_momentum": 1.5}, "bn_momentum"),
        ({"bn_momentum": None}, "bn_momentum"),
        ({"priors": "coco"}, "priors"),
        ({"variant": "ssd300_vgg16", "bn_eps": 0.001}, "bn_eps"),
        ({"variant": "ssd512_vgg16", "priors": "mindspore"}, "priors"),
        ({"loss": {"name": "cross_entropy"}}, "loss"),
        ({"loss": {"name": "multibox", "alpha": 0.5}}, "loss.multibox.alpha"),
        ({"loss": {"match_threshold": 1.0}}, "loss.focal.match_threshold"),
        ({"loss": {"gamma": float("inf")}}, "loss.focal.gamma"),
        ({"loss": "focal"}, "loss"),
        ({"postprocess": {"nms": "medium"}}, "postprocess.nms"),
        ({"postprocess": None}, "postprocess"),
    ],
)
def test_wrong_values_are_refused_where_they_stand(tree: dict[str, object], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SSDConfig.model_validate({"name": "ssd", **tree})
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [where]


def test_a_detector_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one foreground class, got 0"):
        build_detector(SSDConfig(), num_classes=0)


@pytest.mark.parametrize(
    "variant", ["ssd300_mobilenet_v2", "faster_rcnn_mindspore", "retinanet_spinenet49"]
)
def test_images_of_another_size_are_refused(variant: str) -> None:
    model = build_detector(variant_config(variant, **SMALL[variant]), num_classes=3)
    height, width = model.input_size
    message = (
        rf"takes images of {height} x {width} pixels, got a batch of shape \(1, 3, {height + 20}"
    )
    with pytest.raises(ValueError, match=rf"{message}.*detector\.input_size"):
        model(torch.zeros(1, 3, height + 20, width))
