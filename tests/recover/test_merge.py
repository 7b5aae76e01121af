"""Outgoing weights of removed channels at the places of their neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import CASES, call, studied
from secateur.recover import Merge


def merged(model: nn.Module, inputs: Any, indices: dict[str, list[int]], recovery: Merge | None = None) -> tuple[nn.Module, Any]:
    study = sc.study(model.eval(), inputs)
    plan = study.plan(indices=indices)
    small = sc.apply(study, plan).model
    return small, (recovery or Merge())(small, study.cut(plan))


class Net(nn.Module):
    """A convolution, a batch norm, and something that reads them."""

    def __init__(self, tail: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.norm, self.tail = nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6), tail
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.running_var):
                tensor.copy_(torch.rand(6) + 0.5)
            self.norm.bias.copy_(torch.rand(6) + 0.5)
            self.norm.running_mean.copy_(-1 - torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.norm(self.stem(x))))


def repeat(net: Net, source: int, target: int, factor: float) -> None:
    """Make one channel a multiple of another, through another filter, scale and shift; and the first one like it but for its mean."""
    with torch.no_grad():
        net.stem.weight[target] = 3 * net.stem.weight[source]
        net.stem.bias[target] = 3 * net.stem.bias[source]
        net.norm.running_mean[target] = 3 * net.norm.running_mean[source]
        spread = (net.norm.running_var[target] + net.norm.eps).sqrt() / (net.norm.running_var[source] + net.norm.eps).sqrt()
        net.norm.weight[target] = factor * net.norm.weight[source] * spread / 3
        net.norm.bias[target] = factor * net.norm.bias[source]
        for tensor in (net.stem.weight, net.stem.bias, net.norm.weight, net.norm.bias, net.norm.running_var):
            tensor[0] = tensor[source]
        net.norm.running_mean[0] = net.norm.running_mean[source] + 1


TAILS = {
    "convolution": lambda: nn.Conv2d(6, 3, 3),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(54, 4)),
    "pooled": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_multiples_of_kept_channels_cost_nothing(tail: str, factor: float) -> None:
    model, x = Net(TAILS[tail]()), torch.randn(2, 2, 5, 5)
    repeat(model, 1, 4, factor)
    small, found = merged(model, x, {"stem": [4]})
    torch.testing.assert_close(small(x), model(x))
    assert len(found.changes) == 1
    dropped = sc.apply(model, sc.study(model, x).plan(indices={"stem": [4]}), x).model
    assert not torch.allclose(dropped(x), model(x), atol=1e-2)


def test_by_distance_the_nearest_filter_takes_the_weights_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 1.0]]))
        model[0].bias.zero_()
    columns = model[2].weight.detach().clone()
    near, _ = merged(model, torch.randn(1, 2), {"0": [2]}, Merge("distance"))
    torch.testing.assert_close(near[2].weight, torch.stack([columns[:, 0] + columns[:, 2], columns[:, 1]], 1))
    along, _ = merged(model, torch.randn(1, 2), {"0": [2]}, Merge("direction"))
    torch.testing.assert_close(along[2].weight, torch.stack([columns[:, 0] + 4 * columns[:, 2], columns[:, 1]], 1))


def test_channels_that_no_other_resembles_are_dropped() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
        model[0].bias.zero_()
    small, found = merged(model, torch.randn(1, 2), {"0": [2]})
    torch.testing.assert_close(small[2].weight, model[2].weight[:, :2])
    assert "like those" in found.skipped["2"]


@pytest.mark.parametrize(("bias", "wanted"), [((1.0, -1.0, 1.1), 2), ((-1.0, -1.1, 1.0), 1)])
def test_biases_count_as_part_of_filters(bias: tuple[float, ...], wanted: int) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0]] * 3))
        model[0].bias.copy_(torch.tensor(bias))
    small, _ = merged(model, torch.randn(1, 2), {"0": [0]}, Merge("distance"))
    columns = model[2].weight.detach().clone()
    columns[:, wanted] += columns[:, 0]
    torch.testing.assert_close(small[2].weight, columns[:, 1:])


def test_a_filter_that_points_the_other_way_is_no_neighbour() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.5], [-2.0, -1.0], [0.0, 1.0]]))
        model[0].bias.zero_()
    columns = model[2].weight.detach().clone()
    small, _ = merged(model, torch.randn(1, 2), {"0": [0]})
    torch.testing.assert_close(small[2].weight, torch.stack([columns[:, 1], columns[:, 2] + 0.5 * columns[:, 0]], 1))


def test_channels_of_a_stream_are_compared_by_all_filters_that_make_them() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.one(x) + self.two(x.flip(-1))))

    model, x = Stream(), torch.randn(5, 3)
    with torch.no_grad():
        for layer in (model.one, model.two):
            layer.weight[3], layer.bias[3] = 2 * layer.weight[2], 2 * layer.bias[2]
        model.one.weight[0], model.one.bias[0] = model.one.weight[3], model.one.bias[3]
    study = sc.study(model, x)
    name = next(layer.name for layer in study.layers if layer.prunable)
    small, _ = merged(model, x, {name: [3]})
    torch.testing.assert_close(small(x), model(x))


def test_layers_behind_depthwise_convolutions_stay() -> None:
    tail = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 3, 1))
    model, x = Net(tail), torch.randn(2, 2, 5, 5)
    small, found = merged(model, x, {"stem": [4]})
    assert "channel by channel" in found.skipped["tail.2"]
    torch.testing.assert_close(small.tail[2].weight, model.tail[2].weight[:, [0, 1, 2, 3, 5]])


@pytest.mark.parametrize("name", ["residual", "dense_block", "grouped", "fused_qkv", "rotary", "mixer", "flatten"])
def test_shapes_stay_and_other_tensors_too(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    study = studied(case)
    plan = study.plan(sc.GeometricMedian(), ratio=0.4)
    small = sc.apply(study, plan).model
    before = {key: value.clone() for key, value in small.state_dict().items()}
    found = Merge()(small, study.cut(plan))
    after = small.state_dict()
    moved = {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == set(found.changes)
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    call(small, case.inputs())
