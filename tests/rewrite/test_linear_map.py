"""Products with stored matrices become layers of a graph, under the user's names and in the user's layout."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.rewrite import Cut, rewrite
from secateur.rewrite.linear_map import LinearMap
from secateur.study import study

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


class Holder(nn.Module):
    """Holds a matrix and a vector, of which a function makes the output."""

    def __init__(self, form: Form, *, inputs_first: bool = True, bias: int | None = 6) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.randn((4, 6) if inputs_first else (6, 4)))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.zeros(6) if self.bias is None else self.bias
        return self.form(x, self.weight, bias)


def flattened(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def as_graph(model: nn.Module, inputs: Tensor) -> fx.GraphModule:
    found = study(model.eval(), inputs)
    done = rewrite(Cut(found.solution, np.zeros(found.solution.count, dtype=bool)), prefer="graph")
    assert isinstance(done.model, fx.GraphModule)
    return done.model


FORMS: dict[str, tuple[Form, bool, int | None, type[nn.Module]]] = {
    "product": (lambda x, w, b: x @ w, True, None, LinearMap),
    "product and sum": (lambda x, w, b: x @ w + b, True, 6, LinearMap),
    "sum of a product": (lambda x, w, b: b + x @ w, True, 6, LinearMap),
    "laid out": (flattened, True, 6, LinearMap),
    "transposed layer": (lambda x, w, b: F.linear(x, w.T, b), True, 6, LinearMap),
    "transposed product": (lambda x, w, b: x @ w.T, False, None, nn.Linear),
    "transposed product and sum": (lambda x, w, b: x @ w.mT + b, False, 6, nn.Linear),
    "layer and sum": (lambda x, w, b: F.linear(x, w) + b, False, 6, nn.Linear),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_a_layer_under_the_users_names(form: str) -> None:
    compute, first, bias, kind = FORMS[form]
    model = nn.Sequential(Holder(compute, inputs_first=first, bias=bias), nn.ReLU(), nn.Linear(6, 2))
    small = as_graph(model, torch.randn(2, 3, 4))
    assert isinstance(small.get_submodule("0"), kind)
    assert {n: t.shape for n, t in small.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    for shape in ((2, 3, 4), (1, 5, 4), (7, 2, 4)):
        inputs = torch.randn(shape)
        torch.testing.assert_close(small(inputs), model(inputs))


def test_a_map_multiplies_rows_of_any_tensor() -> None:
    torch.manual_seed(0)
    layer, inputs = LinearMap(4, 6, bias=True), torch.randn(5, 4)
    nn.init.normal_(layer.get_parameter("weight"))
    nn.init.normal_(layer.get_parameter("bias"))
    torch.testing.assert_close(layer(inputs), inputs @ layer.weight + layer.bias)
    torch.testing.assert_close(layer(inputs), layer(inputs[None])[0])
    assert repr(layer) == "LinearMap(4, 6, bias=True)"


def twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = x @ weight
    return product + bias - product.relu()


OTHERS: dict[str, tuple[Form, int]] = {
    "the product is read twice": (twice, 6),
    "a part of the bias": (lambda x, w, b: torch.add(x @ w, b, alpha=2), 6),
    "a part of the product": (lambda x, w, b: torch.addmm(b, x[0], w, alpha=2), 6),
    "one number for all outputs": (lambda x, w, b: x @ w + b, 1),
    "a product of its own columns": (lambda x, w, b: (w @ w.T @ x.mT).mT + b[:4], 6),
    "the vector in a product too": (lambda x, w, b: (x @ w) * b, 6),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_linear_map_of_the_input_stays(other: str) -> None:
    form, size = OTHERS[other]
    model = Within(Holder(form, bias=size))
    inputs = torch.randn(2, 3, 4)
    small = as_graph(model, inputs)
    assert type(small.get_submodule("inner")) is nn.Module
    torch.testing.assert_close(small(inputs), model(inputs))


class Within(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Borrowed(nn.Module):
    """Products with the matrix of a table, and with one of a layer that has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(9, 4), Holder(lambda x, w, b: x @ w + b)

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.table(numbers)
        y: Tensor = (self.layer(x) + x @ self.layer.weight) @ self.layer.weight.T
        return y @ self.table.weight.T


def test_others_that_multiply_by_the_matrix_of_a_layer_do_so_still() -> None:
    model, numbers = Borrowed(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    small = as_graph(model, numbers)
    assert isinstance(small.get_submodule("table"), nn.Embedding)
    assert isinstance(small.get_submodule("layer"), LinearMap)
    assert small.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(small(numbers), model(numbers))


def test_training_such_a_graph_is_training_the_users_class() -> None:
    model = nn.Sequential(Holder(lambda x, w, b: x @ w + b), nn.Tanh(), nn.Linear(6, 2)).double()
    inputs = torch.randn(2, 3, 4, dtype=torch.float64)
    models = [as_graph(model, inputs).train(), copy.deepcopy(model).train()]
    for each in models:
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        each(inputs).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(dict(models[0].state_dict()), dict(models[1].state_dict()))
    assert not torch.equal(models[0].state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_a_pickled_graph_needs_no_class_of_ours() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(Holder(lambda x, w, b: x @ w + b), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 3, 4)
    written = pickle.dumps(as_graph(model, inputs))
    assert b"secateur" not in written
    torch.testing.assert_close(pickle.loads(written)(inputs), model(inputs))  # noqa: S301 - written here
