"""Means and variances that weights and norms tell, beside those of many draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from score.by_hand import solved
from secateur.capture.calls import short_name
from secateur.score.moments import Expectation

DRAWS = 100_000


class Branches(nn.Module):
    """Two batch norms, an activation, a gate, a sum, and layers of every kind that read it."""

    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.stem, self.other, self.tail = nn.Linear(3, 4), nn.Linear(3, 4), tail
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, 2, -0.5, 0.1]))
            self.first.bias.copy_(torch.tensor([0.0, 1, 2, -1]))
            self.second.weight.copy_(torch.tensor([0.3, 0.2, 1, 2]))
            self.second.bias.copy_(torch.tensor([1.0, -1, 0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(self.stem(x)), self.second(self.other(x))
        return self.tail(torch.relu(first) * torch.sigmoid(second) - second * 2)


def drawn(model: Branches) -> Tensor:
    """What goes into the tail, for batch norms that put out independent normal values."""
    generator = torch.Generator().manual_seed(0)
    first, second = (n.bias.detach() + n.weight.detach() * torch.randn(DRAWS, 4, generator=generator) for n in (model.first, model.second))
    third = model.second.bias.detach() + model.second.weight.detach() * torch.randn(DRAWS, 4, generator=generator)
    return torch.relu(first) * torch.sigmoid(second) - third * 2


def node_named(model: nn.Module, example: Tensor, name: str, which: int = -1) -> tuple[fx.Node, Expectation]:
    solution, _ = solved(model, example)
    nodes = [n for n in solution.walk.capture.graph.nodes if short_name(n) == name]
    return nodes[which], Expectation(solution)


def test_functions_products_and_sums_of_normal_values() -> None:
    torch.manual_seed(0)
    model = Branches(nn.Linear(4, 3))
    node, expected = node_named(model, torch.randn(2, 3), "linear")
    source = expected[expected.layers[node][0].source]
    values = drawn(model)
    torch.testing.assert_close(source.mean, values.mean(0).double(), atol=0.03, rtol=0.02)
    torch.testing.assert_close(source.variance, values.var(0).double(), atol=0.03, rtol=0.03)
    assert source.told


@pytest.mark.parametrize(
    ("layer", "name", "shape"),
    [
        (nn.Linear(4, 6), "linear", (4,)),
        (nn.Conv2d(4, 6, 1), "conv2d", (4, 1, 1)),
        (nn.Conv2d(4, 6, 1, groups=2), "conv2d", (4, 1, 1)),
        (nn.Conv1d(4, 4, 1, groups=4), "conv1d", (4, 1)),
        (nn.ConvTranspose2d(4, 6, 1), "conv_transpose2d", (4, 1, 1)),
        (nn.ConvTranspose1d(4, 6, 1, groups=2), "conv_transpose1d", (4, 1)),
    ],
)
def test_outputs_of_layers_of_every_kind(layer: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shape)](4)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(norm, layer, nn.Flatten(), nn.Linear(6 if name != "conv1d" else 4, 2)).eval()
    node, expected = node_named(model, torch.randn(2, *shape), name, 0)
    bias, weight = (t.detach().view(-1, *(1,) * (len(shape) - 1)) for t in (norm.bias, norm.weight))
    with torch.no_grad():
        values = layer(bias + weight * torch.randn(DRAWS, *shape, generator=torch.Generator().manual_seed(1))).flatten(1)
    torch.testing.assert_close(expected.layers[node][1], values.var(0).double(), atol=0.02, rtol=0.03)
    torch.testing.assert_close(expected[node].mean, values.mean(0).double(), atol=0.03, rtol=0.02)
    assert not expected[node].told


class Residual(nn.Module):
    """A stream of variance 4 to which a branch of variance 1 is added, and an output of both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.inner, self.branch = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)
        nn.init.constant_(self.norm.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.out(x + self.branch(self.inner(x)))


def test_a_branch_counts_by_its_part_of_the_sum() -> None:
    node, expected = node_named(Residual(), torch.randn(2, 3), "linear", 1)
    stream, _ = node_named(Residual(), torch.randn(2, 3), "batch_norm", 0)
    assert expected.weights[node] == pytest.approx(0.2)
    found = {n.name: w for n, w in expected.weights.items()}
    assert found[stream.name] == pytest.approx(1.0)


def test_summands_of_which_no_norm_tells_count_alike() -> None:
    class Plain(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.out(x + self.inner(x))

    node, expected = node_named(Plain(), torch.randn(2, 3), "linear", 1)
    assert expected.weights[node] == pytest.approx(0.5)


def test_nothing_random_is_called() -> None:
    class Noisy(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            return self.out(x + torch.rand_like(x))

    solution, _ = solved(Noisy(), torch.zeros(2, 3))
    state = torch.random.get_rng_state()
    Expectation(solution)
    assert torch.equal(state, torch.random.get_rng_state())


class Root(nn.Module):
    """A root of normalised values, which half of them do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sqrt(self.norm(self.stem(x))).nan_to_num())


def test_a_function_counts_where_it_has_a_value() -> None:
    node, expected = node_named(Root().eval(), torch.randn(2, 3), "sqrt")
    halves = torch.randn(DRAWS, generator=torch.Generator().manual_seed(0)).abs().sqrt().double()
    torch.testing.assert_close(expected[node].mean, halves.mean().expand(4), atol=0.01, rtol=0.02)
    torch.testing.assert_close(expected[node].variance, halves.var().expand(4), atol=0.01, rtol=0.03)
