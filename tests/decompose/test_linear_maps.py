"""Layers of any class that multiply by a matrix, and matrices that belong to no layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from secateur.capture import record
from secateur.capture.normalize import normalize
from secateur.decompose import SVD, Call, Refusal, captured_layers, decomposable, decompose, gather_moments
from secateur.decompose.linear_maps import acts_as_linear_map, inputs_first
from secateur.errors import SelectionError


class Own(nn.Module):
    """Multiplies by a weight ``(in, out)``, as some libraries store it."""

    def __init__(self, inputs=16, outputs=16, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x):
        x = x @ self.weight
        return x if self.bias is None else x + self.bias


class OutputsFirst(Own):
    """Multiplies by the transpose of a weight ``(out, in)``."""

    def __init__(self, outputs=16, inputs=16, bias=True):
        super().__init__(outputs, inputs, bias)
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Flattened(Own):
    """Lays out the positions in one dimension meanwhile."""

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], -1)


class Scaled(Own):
    def forward(self, x):
        return 0.5 * super().forward(x)


class Dropped(Own):
    """A product in evaluation alone."""

    def forward(self, x):
        return functional.dropout(super().forward(x), 0.5, self.training)


class Clamped(Own):
    """A product while inputs are small."""

    def forward(self, x):
        return super().forward(x.clamp(-50, 50))


class Mixing(Own):
    """A product along the dimension before the last."""

    def forward(self, x):
        return self.weight @ x


class Single(Own):
    """A product in single precision whatever it is given."""

    def forward(self, x):
        return (x.float() @ self.weight.float() + self.bias.float()).to(x.dtype)


class Shifted(Own):
    """Takes something to add."""

    def forward(self, x, shift=0):
        return super().forward(x) + shift


class Masked(Own):
    """Holds a tensor besides, which factors would lose."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(16, 16))


@pytest.mark.parametrize(
    ("layer", "first"),
    [
        (Own(), True),
        (Own(16, 24, bias=False), True),
        (OutputsFirst(), False),
        (OutputsFirst(16, 24, bias=False), False),
        (Flattened(), True),
    ],
)
def test_the_layout_of_the_weight_is_found(layer, first):
    layer.eval()
    x = torch.randn(2, 3, layer.weight.shape[0 if first else 1])
    weight = layer.weight.clone()
    assert inputs_first(layer) is first
    assert acts_as_linear_map(layer, x)
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)
    nn.init.zeros_(layer.weight)
    assert inputs_first(layer) is first


@pytest.mark.parametrize(
    "layer", [Scaled(), Dropped(), Clamped(), Mixing(), Single(), nn.LayerNorm((16, 16))], ids=lambda x: type(x).__name__
)
def test_what_is_no_product_is_not_taken_for_one(layer):
    assert not acts_as_linear_map(layer.eval(), torch.randn(16, 16))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_full_rank_reproduces_such_a_layer_with_plain_ones(first, bias):
    layer = (Own if first else OutputsFirst)(12, 20, bias=bias).double()
    x = torch.randn(3, 5, 12 if first else 20, dtype=torch.float64)
    found = decompose(layer, SVD(), 12, accept_dearer=True, trust_forward=True)
    assert [type(part) for part in found.module] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(found.module(x), layer(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.weight, layer.weight, rtol=1e-10, atol=1e-10)
    with pytest.raises(SelectionError, match="class of its own"):
        decompose(layer, SVD(), 4)


def test_fitted_factors_of_such_a_layer_are_those_of_the_plain_one():
    layer, plain = Own(12, 20).double(), nn.Linear(12, 20, dtype=torch.float64)
    plain.load_state_dict({"weight": layer.weight.detach().mT, "bias": layer.bias.detach()})
    x = torch.randn(40, 12, dtype=torch.float64) * torch.arange(1, 13)
    wanted, found = (
        decompose(each, SVD(), 4, moments=gather_moments(nn.Sequential(each), ["0"], [x], trust_forward=True)["0"], trust_forward=True)
        for each in (plain, layer)
    )
    torch.testing.assert_close(found.module(x), wanted.module(x))
    torch.testing.assert_close(found.weight, wanted.weight.mT)


class Holders(nn.Module):
    """Layers of other classes, used alone, twice, by somebody else, with more inputs, computed, hooked, and matrices of nobody's."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 16)
        self.plain, self.twice, self.read, self.tied, self.wide = (Own() for _ in range(5))
        self.copy = Own()
        self.copy.weight = self.tied.weight
        self.shifted, self.dropped, self.masked, self.computed, self.hooked = (
            Shifted(),
            Dropped(),
            Masked(),
            parametrizations.weight_norm(Own()),
            Own(),
        )
        self.hooked.register_forward_hook(lambda module, args, output: output * 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.recurrent = nn.GRU(16, 16, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, numbers):
        x = self.twice(self.twice(self.plain(self.table(numbers)))) @ self.read.weight
        x = self.hooked(self.computed(self.masked(self.shifted(self.dropped(self.copy(self.tied(self.read(x)))), 1))))
        x = self.recurrent(self.attention(x, x, x, need_weights=False)[0])[0]
        return self.wide(x=x) @ self.matrix[1] @ self.table.weight.T


@pytest.fixture(scope="module")
def listed():
    torch.manual_seed(0)
    return captured_layers(normalize(record(Holders().eval(), (torch.arange(6).reshape(2, 3),))))


def test_layers_of_any_class_are_listed_with_their_methods(listed):
    assert {row.name: row.methods for row in listed if row.methods} == {"plain": ("svd",), "twice": ("svd",)}
    assert listed["plain"].kind == "Own 16 -> 16"
    assert listed["twice"].calls == (Call(6, ()), Call(6, ()))
    assert (listed["twice"].parameters, listed["twice"].macs, listed["twice"].trusted) == (272, 2 * 6 * 256, True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("read", "read by the model itself"),
        ("tied", "shared with copy.weight"),
        ("shifted", "not seen to compute a product"),
        ("dropped", "in evaluation and in training"),
        ("computed", "other values than those of its weight"),
        ("hooked", "hooks"),
        ("wide", "not seen to compute a product"),
        ("masked", "multiplies by its weight elsewhere"),
        ("attention", "multiplies by its in_proj_weight elsewhere"),
        ("recurrent", "multiplies by its weight_ih_l0, weight_hh_l0 elsewhere"),
        ("table", "multiplies by its weight elsewhere"),
        ("", "multiplies by its matrix elsewhere"),
    ],
)
def test_matrices_that_stay_carry_a_reason(listed, name, reason):
    assert reason in listed[name].reason


def test_a_table_names_the_model_itself_and_what_it_holds(listed):
    assert listed[""].kind == "Holders matrix 2 x 16 x 16"
    assert "(the model)" in str(listed)


def test_tables_that_nobody_multiplies_by_are_not_listed():
    rows = captured_layers(normalize(record(nn.Sequential(nn.Embedding(9, 16), Own()).eval(), (torch.arange(3),))))
    assert [row.name for row in rows] == ["1"]
    assert isinstance(decomposable(nn.Embedding(9, 16), trust_forward=True), Refusal)
