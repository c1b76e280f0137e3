from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import spinenet_oracle
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detectors.backbones.config import SpineNetConfig
from detectors.backbones.spinenet import ARCHITECTURES, Arch, SpineNet, Unit, extra_links

ARCHS = tuple(ARCHITECTURES)


def build(arch: Arch = "49S", *, width: float = 0.0625, **options: Any) -> SpineNet:
    fields = {"zero_init": False, **options}
    return SpineNet(SpineNetConfig(arch=arch, width=width, **fields))


def published(arch: Arch) -> SpineNet:
    with torch.device("meta"):
        return build(arch, width=1.0)


def stir(model: nn.Module, seed: int = 0) -> None:
    """Statistics and scales as after some training, so that nothing cancels."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low in ((part.weight, 0.5), (part.running_var, 0.5), (part.bias, -0.3)):
                tensor.data.uniform_(low, low + 0.8, generator=generator)
            part.running_mean.normal_(0.0, 0.2, generator=generator)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("arch", "count", "convs"),
    [
        # Counted in yan-roo/SpineNet-Pytorch's backbone.
        ("49S", 9_089_215, 130),
        ("49", 21_831_488, 130),
        ("96", 36_262_976, 177),
        ("143", 60_247_616, 224),
        ("190", 126_587_664, 271),
    ],
)
def test_parameters_and_layers(arch: Arch, count: int, convs: int) -> None:
    model = published(arch)
    assert parameters(model) == count
    parts = list(model.modules())
    assert sum(isinstance(part, nn.Conv2d) for part in parts) == convs
    assert sum(isinstance(part, nn.BatchNorm2d) for part in parts) == convs


def test_where_the_parameters_of_spinenet_49_are() -> None:
    model = published("49")
    stem = [model.conv1, model.init_block1, model.init_block2]
    assert sum(map(parameters, stem)) == 154_944
    assert parameters(model.merge_ops) == 6_203_648
    assert parameters(model.scale_permuted_blocks) == 14_290_688
    assert parameters(model.endpoint_convs) == 1_182_208


def test_multiply_adds_of_spinenet_49() -> None:
    model = published("49").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 640, 640, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(28.26, abs=0.006)


def test_widths_are_cut_off_not_rounded() -> None:
    shapes = {name: tuple(value.shape) for name, value in published("49S").state_dict().items()}
    assert shapes["conv1.conv.weight"] == (64, 3, 7, 7)
    assert shapes["init_block1.0.conv1.weight"] == (41, 64, 1, 1)
    assert shapes["init_block1.0.downsample.0.weight"] == (164, 64, 1, 1)
    assert shapes["scale_permuted_blocks.1.0.conv1.weight"] == (166, 166, 3, 3)
    assert shapes["scale_permuted_blocks.2.0.conv3.weight"] == (332, 83, 1, 1)
    # Block 4 (3, bottleneck) takes block 2 (2, bottleneck): 41 * 0.5 channels in between.
    assert shapes["merge_ops.2.resample_ops.0.squeeze_conv.conv.weight"] == (20, 164, 1, 1)
    assert shapes["merge_ops.2.resample_ops.0.downsample_conv.conv.weight"] == (20, 20, 3, 3)
    assert shapes["merge_ops.2.resample_ops.0.expand_conv.conv.weight"] == (332, 20, 1, 1)
    assert "merge_ops.2.resample_ops.1.downsample_conv.conv.weight" not in shapes
    assert shapes["endpoint_convs.7.conv.weight"] == (128, 664, 1, 1)
    large = {name: tuple(value.shape) for name, value in published("190").state_dict().items()}
    assert large["init_block1.0.conv1.weight"] == (83, 64, 1, 1)
    assert large["scale_permuted_blocks.2.3.conv3.weight"] == (664, 166, 1, 1)
    assert large["endpoint_convs.3.conv.weight"] == (512, 664, 1, 1)


def test_names_are_those_of_the_published_weights() -> None:
    names = set(published("49").state_dict())
    ends = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {name.split(".")[0] for name in names} == {
        "conv1",
        "init_block1",
        "init_block2",
        "merge_ops",
        "scale_permuted_blocks",
        "endpoint_convs",
    }
    assert {f"conv1.bn.{end}" for end in ends} <= names
    assert {f"init_block2.0.bn3.{end}" for end in ends} <= names
    assert {f"init_block1.0.downsample.1.{end}" for end in ends} <= names
    assert {n.split(".")[1] for n in names if n.startswith("endpoint_convs")} == set("34567")
    # Only where the channels change is the shortcut projected.
    assert {n.split(".")[0] for n in names if ".downsample." in n} == {"init_block1"}
    # A weight for each of 130 convolutions, five tensors for each normalisation.
    assert len(names) == 130 * 6


@pytest.mark.parametrize("arch", ARCHS)
def test_outputs_agree_with_an_independent_reading(arch: Arch) -> None:
    torch.manual_seed(3)
    model = build(arch)
    stir(model)
    model = model.double().eval()
    images = torch.randn(2, 3, 128, 256, dtype=torch.float64)
    with torch.no_grad():
        found = model(images)
        want = spinenet_oracle.backbone(model.state_dict(), images)
    channels = int(ARCHITECTURES[arch].endpoint_channels * 0.0625)
    shapes = [(2, channels, 128 // stride, 256 // stride) for stride in (8, 16, 32, 64, 128)]
    assert [tuple(map_.shape) for map_ in found] == shapes
    for mine, theirs in zip(found, want, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_silu_and_activated_endpoints() -> None:
    torch.manual_seed(4)
    model = build(activation="silu", endpoints="activated")
    stir(model)
    model = model.double().eval()
    images = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        found = model(images)
        want = spinenet_oracle.backbone(model.state_dict(), images, F.silu, activated=True)
    for mine, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [64, 192, 704])
def test_sizes_that_do_not_halve_to_the_last_level_cannot_be_merged(side: int) -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="broadcast"):
        build().eval()(torch.zeros(1, 3, 128, side))


def test_one_block_is_added_to_an_output_block_as_it_is() -> None:
    assert extra_links() == {14: [11]}


def test_stochastic_depth_grows_with_the_block() -> None:
    model = build("96", stochastic_depth=0.3)
    rates = [[unit.drop for unit in group] for group in model.scale_permuted_blocks]
    assert rates == [[pytest.approx(0.3 * (i + 1) / 15)] * 2 for i in range(15)]
    assert [unit.drop for unit in model.init_block1] == [0.0, 0.0]


def test_stochastic_depth_drops_whole_images_in_training_only() -> None:
    torch.manual_seed(5)
    plain = partial(Unit, 8, 8, bottleneck=False, norm=lambda _: nn.Identity(), act=nn.Identity)
    unit, always = plain(drop=0.25), plain(drop=0.0)
    always.load_state_dict(unit.state_dict())
    x = torch.randn(400, 8, 4, 4)
    with torch.no_grad():
        branch = always(x) - x
        out = unit(x) - x
        torch.testing.assert_close(unit.eval()(x), always(x))
    dropped = (out == 0).flatten(1).all(1)
    assert abs(int(dropped.sum()) - 100) < 6 * 9  # six standard deviations
    torch.testing.assert_close(out[~dropped], branch[~dropped] / 0.75, rtol=1e-4, atol=1e-5)


def test_initialisation() -> None:
    torch.manual_seed(6)
    model = build("49", width=0.5, zero_init=True)
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 5000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            deviation = part.weight.std().item()
            assert deviation == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    scales: dict[bool, set[float]] = {True: set(), False: set()}
    last = {id(part.last_norm) for part in model.modules() if isinstance(part, Unit)}
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            scales[id(part) in last] |= set(part.weight.tolist())
            assert not part.bias.any()
    assert scales == {True: {0.0}, False: {1.0}}


def test_a_new_residual_unit_passes_its_input_on() -> None:
    unit = build(zero_init=True).scale_permuted_blocks[1][0]
    x: Tensor = torch.rand(2, unit.conv1.in_channels, 3, 3)
    torch.testing.assert_close(unit(x), x)
