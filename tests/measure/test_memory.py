"""Peak memory follows from who is alive when; tied weights take their room once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.measure import live_bytes, peak_activation_bytes, weight_bytes

FLOAT = 4


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


PEAKS = {
    "input, and one step held by the next": (lambda x: x.exp().sin().cos(), 4 + 4 + 4),
    "three nodes: 4 in, then 8 and 8, then 1": (lambda x: torch.cat([x, x]).exp().sum(), 4 + 8 + 8),
    "an input that nobody reads any more is still the caller's": (lambda x: torch.cat([x, x]).exp().sin(), 4 + 8 + 8),
    "a value read late stays": (lambda x: (y := x.exp()).sin().cos() + y, 4 + 4 + 4 + 4),
    "views take no room": (lambda x: x.view(2, 2).t().unsqueeze(0)[:, :1], 4),
    "a view keeps its base": (lambda x: (y := torch.cat([x, x]))[:1].exp().sin() + y[1:2], 4 + 8 + 1 + 1),
    "reshape of rows is a view": (lambda x: x.exp().view(2, 2).reshape(4), 4 + 4),
    "reshape of columns copies": (lambda x: x.view(2, 2).t().reshape(4), 4 + 4),
    "a view of columns that stay columns, taken for a copy": (lambda x: x.view(2, 2).t().exp().t().view(4), 4 + 4 + 4),
    "contiguous copies what is not": (lambda x: x.view(2, 2).t().contiguous(), 4 + 4),
    "a conversion to the same type is none": (lambda x: x.to(torch.float32), 4),
    "a conversion to a wider type is one": (lambda x: x.to(torch.float64), 4 + 8),
    "a move to where it is": (lambda x: x.exp().to(torch.device("cpu")), 4 + 4),
    "in place takes none": (lambda x: x.exp().relu_().add_(1), 4 + 4),
    "dropout in evaluation hands on": (lambda x: F.dropout(x, 0.5, False), 4),
    "every piece of a split is a view": (lambda x: sum(torch.cat([x, x]).split(2)), 4 + 8 + 2 + 2),
    "all outputs live to the end": (lambda x: (x.exp(), x.sin(), x.cos()), 4 + 4 + 4 + 4),
}


@pytest.mark.parametrize("case", PEAKS)
def test_peak_by_hand(case, graph_of):
    function, elements = PEAKS[case]
    assert peak_activation_bytes(graph_of(Function(function), torch.rand(4))) == elements * FLOAT


def test_bytes_alive_at_each_node_of_a_chain(graph_of):
    graph = graph_of(Function(lambda x: torch.cat([x, x]).exp().sum()), torch.rand(4))
    assert [*live_bytes(graph).values()] == [elements * FLOAT for elements in (4, 4 + 8, 4 + 8 + 8, 4 + 8 + 1, 4 + 1)]


def test_weights_are_no_activations(graph_of):
    assert peak_activation_bytes(graph_of(nn.Linear(4, 2), torch.rand(1, 4))) == (4 + 2) * FLOAT


def test_tensors_of_several_outputs_are_counted(graph_of):
    graph = graph_of(Function(lambda x: torch.topk(x, 3)), torch.rand(4))
    assert peak_activation_bytes(graph) == 4 * FLOAT + 3 * (FLOAT + 8)


def test_tied_weights_take_their_room_once():
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    second.weight = first.weight
    second.bias = nn.Parameter(first.bias.detach())  # another parameter in the same memory
    assert weight_bytes(nn.Sequential(first, second)) == (12 + 3) * FLOAT


def test_buffers_weigh_by_their_own_type():
    assert weight_bytes(nn.BatchNorm1d(5)) == 4 * 5 * FLOAT + 8
