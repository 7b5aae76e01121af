"""Means of removed channels in the biases of those that read them, without data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from secateur.pipeline import apply
from secateur.recover import FoldMeans
from secateur.study import study


class Net(nn.Module):
    """A batch norm with known shift and scale, an activation, and a layer that reads it."""

    def __init__(self, activation: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.activation, self.tail = activation, tail
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5, 1.5]))
            self.norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.activation(self.norm(self.stem(x))))


def folded(model: nn.Module, remove: tuple[int, ...] = (1, 3)) -> tuple[nn.Module, dict[str, str]]:
    found = study(model.eval(), torch.randn(2, 2, 5, 5))
    plan = found.plan(indices={"stem": remove})
    result = apply(found, plan)
    recovered = FoldMeans()(result.model, found.cut(plan))
    return result.model, dict(recovered.skipped)


def relu_mean(beta: float, gamma: float) -> float:
    z = beta / gamma
    return beta * (1 + math.erf(z / math.sqrt(2))) / 2 + gamma * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def test_means_behind_relu_are_the_known_ones() -> None:
    model = Net(nn.ReLU(), nn.Conv2d(4, 3, 3))
    small, skipped = folded(model)
    mean = torch.tensor([0, relu_mean(1, 2), 0, relu_mean(-1, 1.5)])
    expected = model.tail.bias + torch.einsum("oiyx,i->o", model.tail.weight, mean)
    torch.testing.assert_close(small.tail.bias, expected, atol=1e-4, rtol=0)
    assert not skipped


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish(), nn.ReLU6(), nn.GELU(), nn.Identity()], ids=str)
def test_means_behind_any_activation_are_those_of_many_draws(activation: nn.Module) -> None:
    model = Net(activation, nn.Conv2d(4, 3, 1))
    small, _ = folded(model)
    draws = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0)) * model.norm.weight.detach() + model.norm.bias.detach()
    mean = activation(draws).mean(0) * torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(small.tail.bias, model.tail.bias + model.tail.weight[:, :, 0, 0] @ mean, atol=0.02, rtol=0)


def test_a_batch_norm_behind_takes_the_shift() -> None:
    model = Net(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)))
    small, _ = folded(model)
    mean = torch.tensor([0, relu_mean(1, 2), 0, relu_mean(-1, 1.5)])
    torch.testing.assert_close(small.tail[1].running_mean, -model.tail[0].weight[:, :, 0, 0] @ mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variances", [True, False])
def test_a_batch_norm_behind_expects_what_the_kept_channels_vary_by(bias: bool, variances: bool) -> None:
    model = Net(nn.Identity(), nn.Sequential(nn.Conv2d(4, 3, 1, bias=bias), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))).eval()
    nn.init.uniform_(model.tail[1].running_var, 0.5, 2)
    found = study(model, torch.randn(2, 2, 5, 5))
    plan = found.plan(indices={"stem": (1, 3)})
    small = apply(found, plan).model
    FoldMeans(variances=variances)(small, found.cut(plan))
    squares = model.tail[0].weight.detach().flatten(1).square() * model.norm.weight.detach().square()
    part = squares[:, [0, 2]].sum(1) / squares.sum(1) if variances else torch.ones(3)
    torch.testing.assert_close(small.tail[1].running_var, model.tail[1].running_var * part)


def test_pooling_and_flattening_on_the_way_do_not_matter() -> None:
    model = Net(nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    small, _ = folded(model)
    mean = torch.tensor([0, relu_mean(1, 2), 0, relu_mean(-1, 1.5)])
    torch.testing.assert_close(small.tail[2].bias, model.tail[2].bias + model.tail[2].weight @ mean, atol=1e-4, rtol=0)


class TwoNorms(Net):
    """The sum of two batch norms: what an activation makes of it is not known from either."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(4, 3, 1))
        self.other = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.activation(self.norm(self.stem(x)) + self.other(x)))


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [
        (Net(nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)), "tail", "no batch norm says"),
        (TwoNorms(), "tail", "no batch norm says"),
        (Net(nn.ReLU(), nn.Conv2d(4, 3, 1, bias=False)), "tail", "neither a bias nor a batch norm"),
    ],
    ids=["maximum", "sum", "no bias"],
)
def test_what_is_not_known_stays_with_a_reason(model: nn.Module, layer: str, why: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = study(model.eval(), torch.randn(2, 2, 5, 5))
    group = next(row.name for row in found.layers if row.prunable)
    plan = found.plan(indices={group: (1, 3)})
    result = apply(found, plan)
    recovered = FoldMeans()(result.model, found.cut(plan))
    assert why in recovered.skipped[layer]
    assert not recovered.changes
    if "tail.bias" in before:
        assert torch.equal(result.model.state_dict()["tail.bias"], before["tail.bias"])
