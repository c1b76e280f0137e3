"""Published figures against what is built, and that a wrong one would be noticed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from detectors.figures import Measured, Published
from detectors.measure import measure
from detectors.published import compare_with_published, published_networks
from detectors.registry import DETECTORS, build_detector, variant_config, variants

NETWORKS = [network for name in DETECTORS for network in published_networks(name)]


def test_every_variant_of_a_published_detector_has_figures() -> None:
    own = {name for name, config in variants().items() if config.published is not None}
    assert {network.variant for network in NETWORKS} == own
    for network in NETWORKS:
        assert network.figures
        assert {figure.name for figure in network.figures} <= set(Measured._fields)
        assert all(figure.source for figure in network.figures)
    assert len({network.title for network in NETWORKS}) == len(NETWORKS)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.title)
def test_what_is_built_is_what_was_published(network: Published) -> None:
    for one in compare_with_published([network]):
        assert one.agrees, one


def test_a_wrong_figure_is_noticed() -> None:
    (first, *_) = NETWORKS
    wrong = [figure._replace(value=figure.value + 1) for figure in first.figures]
    assert not any(
        v.agrees for v in compare_with_published([dataclasses.replace(first, figures=tuple(wrong))])
    )
    near = [figure._replace(within=1) for figure in wrong]
    assert all(
        v.agrees for v in compare_with_published([dataclasses.replace(first, figures=tuple(near))])
    )


def test_counts_are_those_of_a_real_network() -> None:
    config = variant_config("ssd300_mobilenet_v2", width=0.25)
    model = build_detector(config, num_classes=3)
    counted = measure(config, num_classes=3)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    state = model.state_dict()
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    assert counted.values == sum(tensor.numel() for tensor in floats)
    assert counted.value_tensors == len(floats)
    assert counted.state_entries == len(state)
    assert (counted.height, counted.width, counted.priors) == (300, 300, 1917)


def test_multiply_adds_by_hand() -> None:
    """Each convolution costs its weights, bias aside, once per cell of its output."""
    config = variant_config("ssd300_mobilenet_v2", width=0.25)
    model = build_detector(config, num_classes=3).eval()
    total = 0

    def count(module: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output.shape[2] * output.shape[3]

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
    assert measure(config, num_classes=3).multiply_adds == total
