"""Batch-norm statistics of the smaller model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cases import vary
from secateur.errors import SelectionError
from secateur.pipeline import apply
from secateur.recover import BatchNorm, reestimate_batch_norm, shift_batch_norm
from secateur.study import study


def net() -> nn.Sequential:
    layers = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    return vary(nn.Sequential(*layers).eval())


def images(seed: int = 0) -> Tensor:
    return torch.randn(16, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_averages_over_batches() -> None:
    model = net()
    x = images()
    with torch.no_grad():
        parts = [model[0](part) for part in x.split(8)]
    assert reestimate_batch_norm(model, list(x.split(8))) == 2
    torch.testing.assert_close(model[1].running_mean, torch.stack([p.mean((0, 2, 3)) for p in parts]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([p.var((0, 2, 3)) for p in parts]).mean(0))
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_nothing_moves_without_a_cut() -> None:
    model = net()
    found = study(model, images()[:4])
    small = copy.deepcopy(model)
    assert shift_batch_norm(small, model, found.cut_of({}), [images()]) == 2
    for name, tensor in model.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(small.state_dict()[name], tensor)


def test_statistics_move_by_what_the_cut_changed() -> None:
    model, x = net(), images()
    found = study(model, x[:4])
    plan = found.plan(indices={"0": (1, 4)})
    small = apply(found, plan).model
    with torch.no_grad():
        middle = [m[3](torch.relu(_normed(m[1], m[0](x)))) for m in (small, model)]
    BatchNorm()(small, found.cut(plan), x)
    torch.testing.assert_close(small[1].running_mean, model[1].running_mean[[0, 2, 3, 5]])
    moved = model[4].running_mean + middle[0].mean((0, 2, 3)) - middle[1].mean((0, 2, 3))
    torch.testing.assert_close(small[4].running_mean, moved)
    scaled = model[4].running_var * middle[0].var((0, 2, 3)) / middle[1].var((0, 2, 3))
    torch.testing.assert_close(small[4].running_var, scaled)


def _normed(layer: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)


def test_anew_takes_those_of_the_data() -> None:
    model, x = net(), images()
    found = study(model, x[:4])
    plan = found.plan(indices={"0": (1, 4)})
    small = apply(found, plan).model
    recovered = BatchNorm("anew")(small, found.cut(plan), x)
    torch.testing.assert_close(small[1].running_mean, small[0](x).mean((0, 2, 3)).detach())
    assert list(recovered.changes) == ["1", "4"]


def test_it_asks_for_data() -> None:
    found = study(net(), images()[:4])
    with pytest.raises(SelectionError, match="needs calibration data"):
        BatchNorm()(net(), found.cut_of({}))
    with pytest.raises(SelectionError, match="hold no samples"):
        BatchNorm()(net(), found.cut_of({}), iter([]))


def test_a_batch_of_one_value_is_refused_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    reestimate_batch_norm(model, [torch.randn(8, 3, 8, 8)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SelectionError, match="larger"):
        reestimate_batch_norm(model, [torch.randn(8, 3, 8, 8), torch.randn(1, 3, 3, 3)])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model[1].momentum == 0.1
