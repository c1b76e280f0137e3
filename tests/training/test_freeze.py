"""Groups, freezing and shared normalisation, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.schema import FreezeConfig, ParameterGroup, SGDOptimizer, TrainConfig
from orchestrator.errors import ConfigError
from orchestrator.training.freeze import adapt
from orchestrator.training.normalization import (
    FixedBatchNorm2d,
    SharedBatchNorm2d,
    replace_batch_norm,
)
from orchestrator.training.optim import build_optimizer, parameter_groups
from tests.support.ranks import run_ranks


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
            "body": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
            "head": nn.Conv2d(4, 2, 1),
        }
    )


def config(**changes: object) -> TrainConfig:
    values = {"epochs": 1, "batch_size": 4, "optimizer": SGDOptimizer(lr=0.1), **changes}
    return TrainConfig(**values)  # type: ignore[arg-type]


def settings(model: nn.Module, groups: list[dict[str, object]]) -> dict[str, tuple[object, object]]:
    """Decay and factor of each parameter by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["weight_decay"], group["lr_factor"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }


def test_a_parameter_belongs_to_the_first_group_that_it_fits() -> None:
    """Caffe's rule for biases, none of the decay on normalisation, a slower stem."""
    model = network()
    groups = (
        ParameterGroup(kind="norm", weight_decay=0.0),
        ParameterGroup(kind="bias", lr_factor=2.0, weight_decay=0.0),
        ParameterGroup(names=("stem.*",), lr_factor=0.1),
    )
    found = settings(
        model,
        parameter_groups(model, weight_decay=5e-4, decay_norm_and_bias=True, groups=groups),
    )
    assert found == {
        "stem.0.weight": (5e-4, 0.1),
        "stem.1.weight": (0.0, 1.0),
        "stem.1.bias": (0.0, 1.0),
        "body.0.weight": (5e-4, 1.0),
        "body.0.bias": (0.0, 2.0),
        "body.1.weight": (0.0, 1.0),
        "body.1.bias": (0.0, 1.0),
        "head.weight": (5e-4, 1.0),
        "head.bias": (0.0, 2.0),
    }


def test_without_norm_decay_biases_keep_theirs() -> None:
    model = network()
    groups = (ParameterGroup(kind="norm", weight_decay=0.0),)
    found = settings(
        model, parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=True, groups=groups)
    )
    assert found["body.0.bias"] == (0.1, 1.0)
    assert found["body.1.bias"] == (0.0, 1.0)


def test_a_group_may_ask_for_decay_where_there_was_none() -> None:
    model = network()
    groups = (ParameterGroup(kind="bias", weight_decay=0.25),)
    found = settings(
        model, parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=False, groups=groups)
    )
    assert found["head.bias"] == (0.25, 1.0)
    assert found["stem.1.weight"] == (0.0, 1.0)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            ParameterGroup(names=("boddy.*",)),
            r"train\.optimizer\.groups\.1: 'boddy\.\*' fits none of the detector's 9 trainable "
            r"parameters, the first of which is 'stem\.0\.weight'; did you mean 'body\*'\?",
        ),
        (
            ParameterGroup(kind="bias", names=("stem.*",)),
            r"'stem\.\*' fits none of the detector's 2 trainable parameters of kind bias",
        ),
    ],
)
def test_a_group_without_members_is_refused(group: ParameterGroup, message: str) -> None:
    optimizer = SGDOptimizer(lr=0.1, groups=(ParameterGroup(names=("head.*",)), group))
    with pytest.raises(ConfigError, match=message):
        build_optimizer(network(), optimizer)


def test_frozen_parameters_get_no_gradient_and_no_group() -> None:
    model = network()
    adapt(model, config(freeze=FreezeConfig(parameters=("stem.*", "body.1.*"))))
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {"body.0.weight", "body.0.bias", "head.weight", "head.bias"}
    groups = parameter_groups(model, weight_decay=0.0, decay_norm_and_bias=True)
    assert set(settings(model, groups)) == trains


def test_fixed_normalisation_uses_and_keeps_its_statistics() -> None:
    model = network()
    names = list(model.state_dict())
    adapt(model, config(freeze=FreezeConfig(batch_norm=("stem.*",))))
    assert list(model.state_dict()) == names
    stem, body = model["stem"][1], model["body"][1]
    assert isinstance(stem, FixedBatchNorm2d)
    assert type(body) is nn.BatchNorm2d
    with torch.no_grad():
        stem.running_mean.fill_(3.0)
        stem.running_var.fill_(4.0 - stem.eps)
        stem.weight.fill_(10.0)
        stem.bias.fill_(1.0)
    model.train()
    x = torch.full((2, 4, 1, 1), 5.0)
    assert torch.allclose(stem(x), torch.full_like(x, 11.0))  # (5 - 3) / 2 * 10 + 1
    assert stem.running_mean.tolist() == [3.0] * 4
    assert stem.num_batches_tracked == 0
    body(torch.randn(2, 4, 3, 3))
    assert body.num_batches_tracked == 1
    stem(x).sum().backward()
    assert stem.bias.grad is not None


def test_a_shared_layer_stays_shared() -> None:
    norm = nn.BatchNorm2d(2)
    model = nn.ModuleList([norm, norm, nn.BatchNorm2d(2)])
    assert replace_batch_norm(model, SharedBatchNorm2d, lambda _: True) == ["0", "1", "2"]
    assert model[0] is model[1]
    assert model[0] is not model[2]
    assert model[0].weight is norm.weight


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (FreezeConfig(parameters=("stm.*",)), r"freeze\.parameters\.0: .* did you mean 'stem\*'\?"),
        (
            FreezeConfig(batch_norm=("stem.*", "head*")),
            r"freeze\.batch_norm\.1: 'head\*' fits none of the detector's 2 batch-normalisation",
        ),
        (FreezeConfig(parameters=("*",)), "no parameter is left to train"),
    ],
)
def test_a_pattern_that_says_nothing_is_refused(freeze: FreezeConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapt(network(), config(freeze=freeze))


def _two_halves(rank: int, folder: Path) -> None:
    x, weights, model = _problem()
    adapt(model, config(sync_batch_norm=True))
    half = x[2 * rank : 2 * rank + 2].clone().requires_grad_(True)
    out = model(half)
    (out * weights[2 * rank : 2 * rank + 2]).sum().backward()
    torch.save(
        {
            "out": out.detach(),
            "input": half.grad,
            **{name: p.grad for name, p in model.named_parameters()},
            **dict(model.named_buffers()),
        },
        folder / f"{rank}.pt",
    )


def _problem() -> tuple[Tensor, Tensor, nn.Module]:
    torch.manual_seed(3)
    x = torch.randn(4, 3, 5, 5) * 3 + 7
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    return x, torch.randn(4, 4, 3, 3), model.train()


def test_two_ranks_normalise_as_one_process_does(tmp_path: Path) -> None:
    run_ranks(_two_halves, tmp_path, count=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    x, weights, model = _problem()
    x.requires_grad_(True)
    out = model(x)
    (out * weights).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([part["input"] for part in parts]), x.grad, **close)
    for name, parameter in model.named_parameters():
        summed = parts[0][name] + parts[1][name]
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-4, atol=1e-4, msg=name)
    for name, buffer in model.named_buffers():
        for part in parts:
            torch.testing.assert_close(part[name], buffer, rtol=1e-5, atol=1e-6, msg=name)


def test_alone_shared_normalisation_is_the_plain_one() -> None:
    x, _, model = _problem()
    plain = model(x)
    x, _, model = _problem()
    adapt(model, config(sync_batch_norm=True))
    assert torch.equal(model(x), plain)


class OwnNorm(nn.BatchNorm2d):
    """As a detector from elsewhere may have it."""


@pytest.mark.parametrize(
    ("layer", "changes", "key"),
    [
        (OwnNorm(4), {"freeze": FreezeConfig(batch_norm=("*",))}, r"freeze\.batch_norm\.0"),
        (OwnNorm(4), {"sync_batch_norm": True, "virtual_shards": None}, "sync_batch_norm"),
        (nn.BatchNorm1d(4), {"sync_batch_norm": True, "virtual_shards": None}, "sync_batch_norm"),
    ],
)
def test_a_layer_that_would_stay_as_it_is_is_refused(
    layer: nn.Module, changes: dict[str, object], key: str
) -> None:
    model = nn.ModuleDict({"plain": nn.BatchNorm2d(4), "own": layer, "head": nn.Linear(4, 1)})
    kind = type(layer).__name__
    with pytest.raises(ConfigError, match=rf"train\.{key}: 'own' is a {kind}, a kind of its own"):
        adapt(model, config(**changes))


def test_a_layer_that_is_frozen_needs_not_be_shared() -> None:
    model = nn.ModuleDict({"stem": nn.BatchNorm2d(4), "body": nn.BatchNorm2d(4)})
    both = {"sync_batch_norm": True, "virtual_shards": None}
    adapt(model, config(freeze=FreezeConfig(batch_norm=("stem",)), **both))
    assert isinstance(model["stem"], FixedBatchNorm2d)
    assert isinstance(model["body"], SharedBatchNorm2d)


def layers_of_all_kinds() -> list[nn.BatchNorm2d]:
    return [
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm2d(3, momentum=0.3),
    ]


def _shares_of_all_kinds(rank: int, folder: Path) -> None:
    """A rank's half of each batch, through layers of all kinds."""
    model = nn.ModuleList(layers_of_all_kinds())
    replace_batch_norm(model, SharedBatchNorm2d, lambda _: True)
    rows = slice(2 * rank, 2 * rank + 2)
    outputs = [[layer(batch[rows]).detach() for batch in _batches()] for layer in model]
    torch.save({"outputs": outputs, "state": model.state_dict()}, folder / f"{rank}.pt")


def _batches() -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.randn(4, 3, 5, 2) * 3 + 1 for _ in range(2)]


def test_shared_layers_of_all_kinds_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """With no scale of their own, no stored statistics, or the mean of all batches."""
    run_ranks(_shares_of_all_kinds, tmp_path, count=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = nn.ModuleList(layers_of_all_kinds())
    for index, layer in enumerate(whole):
        for number, batch in enumerate(_batches()):
            found = torch.cat([part["outputs"][index][number] for part in parts])
            torch.testing.assert_close(found, layer(batch).detach(), rtol=1e-5, atol=1e-5)
    for name, value in whole.state_dict().items():
        for part in parts:
            torch.testing.assert_close(part["state"][name], value, rtol=1e-5, atol=1e-5, msg=name)
