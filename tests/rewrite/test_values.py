"""Models in which values decide on sizes, and layers of which only parts are called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.rewrite.graph import rewrite_graph
from secateur.rewrite.nodes import first_difference


class Routed(nn.Module):
    """Sends the rows that a norm finds positive through a layer of their own; as many as there are for these inputs."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.norm, self.inner, self.out = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        hit = (self.norm(x)[:, 0] > 0).nonzero()[:, 0]
        chosen = x[hit].reshape(hit.numel(), *self.shape).flatten(1)
        return x.index_add(0, hit, self.out(self.inner(chosen).relu()))


def rows() -> Tensor:
    """Rows whose first element lies close to their mean, so that a slight shift decides otherwise."""
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    x[:, 0] = x[:, 1:].mean(1) + torch.linspace(-0.05, 0.05, 16)
    return x


def test_calls_that_perturbed_weights_would_change_are_proven_with_the_models_own() -> None:
    model = Routed(2, 3).eval()
    study = sc.study(model, rows())
    result = sc.apply(study, study.plan(ratio=0.5))
    assert result.model.inner.out_features == 4
    assert result.proof.holds
    assert "the model's own weights were used" in " ".join(result.proof.notes)


def test_a_size_that_is_repeated_and_changes_nothing_does_not_hold_for_one_set_of_values() -> None:
    model = Routed(6).eval()
    study = sc.study(model, rows())
    result = sc.apply(study, study.plan(ratio=0.5))
    assert len(result.proof.trials) == 2
    assert not result.proof.notes


def test_a_difference_is_found_where_perturbed_weights_do_not_run() -> None:
    study = sc.study(Routed(2, 3).eval(), rows())
    cut = study.cut(study.plan(ratio=0.5))
    program = rewrite_graph(cut)
    program.get_parameter("inner.bias").data += 1
    assert str(first_difference(cut, program, study.capture.flat_inputs(), 0)).startswith("linear_default (")


class Apart(nn.Module):
    """Multiplies by a layer's weight and adds its bias elsewhere; the widths of a split keep the class from holding less."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split(4, dim=-1)
        y = F.linear(torch.cat([right, left], -1), self.second.weight).relu()
        return self.last(y + self.second.bias)


def test_a_bias_that_is_read_apart_from_its_weight_stays() -> None:
    model, x = Apart().eval(), torch.randn(2, 6)
    result = sc.apply(model, sc.study(model, x).plan(ratio=0.5), x, prefer="graph")
    assert result.kind == "graph"
    assert result.model.second.bias.shape == (4,)
