"""ResNet against torchvision's with the same weights, and what frozen parts do."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozen

from detectors.backbones.layers import FrozenBatchNorm2d
from detectors.backbones.resnet import Depth, ResNet, make_norm

LAYERS = {f"layer{index}": f"c{index + 1}" for index in (1, 2, 3, 4)}


def reference(depth: Depth) -> nn.Module:
    """torchvision's network with statistics and affine that are not those of a fresh one."""
    torch.manual_seed(depth)
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 0.5)
            module.running_var.uniform_(0.5, 1.0)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.1)
    return network


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("fc.")}


@pytest.mark.parametrize(
    ("depth", "norm"), [(50, "batch"), (50, "affine"), (50, "frozen"), (101, "batch")]
)
def test_maps_equal_torchvisions(depth: Depth, norm: str) -> None:
    network = reference(depth).eval()
    mine = ResNet(depth=depth, norm=make_norm(norm)).eval()
    mine.load_state_dict(weights_of(network))
    images = torch.randn(2, 3, 63, 97)
    with torch.no_grad():
        wanted = IntermediateLayerGetter(network, LAYERS)(images).values()
        found = mine(images)
    for want, got in zip(wanted, found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert mine.channels == tuple(c.shape[1] for c in found) == (256, 512, 1024, 2048)


@pytest.mark.parametrize(("depth", "count"), [(50, 23_508_032), (101, 42_500_160)])
def test_parameters_and_names(depth: Depth, count: int) -> None:
    mine = ResNet(depth=depth, norm=make_norm("batch"))
    assert sum(p.numel() for p in mine.parameters()) == count
    assert list(mine.state_dict()) == list(weights_of(reference(depth)))


def test_gradients_equal_torchvisions_in_training() -> None:
    network = reference(50).train()
    mine = ResNet(norm=make_norm("batch")).train()
    mine.load_state_dict(weights_of(network))
    images = torch.randn(2, 3, 64, 64)
    sum(x.square().mean() for x in mine(images)).backward()
    sum(
        x.square().mean() for x in IntermediateLayerGetter(network, LAYERS)(images).values()
    ).backward()
    for name, parameter in mine.named_parameters():
        want = network.get_parameter(name).grad
        scale = want.abs().max()
        torch.testing.assert_close(parameter.grad / scale, want / scale, rtol=0, atol=1e-3)
    assert torch.allclose(mine.bn1.running_mean, network.bn1.running_mean)


def test_frozen_parts_take_no_gradient_and_keep_their_statistics() -> None:
    mine = ResNet(norm=make_norm("batch"), width=0.125, frozen_parts=2).train()
    before = weights_of(mine)
    sum(x.square().mean() for x in mine(torch.randn(2, 3, 64, 64))).backward()
    frozen = ("conv1.", "bn1.", "layer1.")
    for name, parameter in mine.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, value in mine.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) == name.startswith(frozen), name


@pytest.mark.parametrize("frozen_parts", range(6))
def test_each_part_can_be_the_last_frozen_one(frozen_parts: int) -> None:
    mine = ResNet(norm=make_norm("affine"), width=0.125, frozen_parts=frozen_parts)
    parts = ("1", "layer1", "layer2", "layer3", "layer4")
    trains = {
        part: {
            p.requires_grad
            for name, p in mine.named_parameters()
            if name.split(".")[0].removeprefix("conv").removeprefix("bn") == part
        }
        for part in parts
    }
    assert trains == {part: {index >= frozen_parts} for index, part in enumerate(parts)}


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_equals_torchvisions(eps: float) -> None:
    theirs, mine = TorchvisionFrozen(6, eps=eps), FrozenBatchNorm2d(6, eps=eps)
    for value in theirs.state_dict().values():
        value.uniform_(0.5, 1.5)
    mine.load_state_dict(theirs.state_dict())
    assert list(mine.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(mine.train()(x), theirs(x))
    assert list(mine.parameters()) == []


def test_frozen_norm_can_train_its_affine_only() -> None:
    mine = FrozenBatchNorm2d(6, train_affine=True).train()
    mine(torch.randn(2, 6, 5, 4)).square().sum().backward()
    assert [name for name, _ in mine.named_parameters()] == ["weight", "bias"]
    assert mine.weight.grad.any()
    assert mine.bias.grad.any()
    assert torch.equal(mine.running_mean, torch.zeros(6))


@pytest.mark.parametrize("size", [(64, 96), (66, 62)])
def test_mindspores_pooling_is_padded_at_the_end(size: tuple[int, int]) -> None:
    """``P.MaxPool(kernel_size=3, strides=2, pad_mode="SAME")`` of the zoo's resnet.py."""
    torch.manual_seed(0)
    mine = ResNet(norm=make_norm("affine"), width=0.125, pooling="mindspore").eval()
    seen: list[Tensor] = []
    mine.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, *size)
    mine(images)
    stem = F.relu(mine.bn1(mine.conv1(images)))
    # SAME: ceil(n / 2) windows of three from every other cell; the smaller half of what is missing
    # comes first. Of an even number one cell is missing, of an odd one two.
    missing = [1 + n % 2 for n in stem.shape[-2:]]
    top, left = (each // 2 for each in missing)
    padded = F.pad(stem, (left, missing[1] - left, top, missing[0] - top), value=-math.inf)
    windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(seen[0], windows.amax(dim=(-2, -1)), rtol=0, atol=0)
