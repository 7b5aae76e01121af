"""Factors of norms between projections and the products of heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.recover import Attention, Refit


class Normed(nn.Module):
    """Queries and keys that pass a norm over each head, and in one way of writing it a turn of pairs."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.q, self.k, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 8)
        self.q_norm, self.k_norm = (nn.LayerNorm(4, elementwise_affine=way != "bare") for _ in range(2))
        self.factor = nn.Parameter(torch.rand(4) + 0.5)

    def norm(self, x: Tensor, layer: nn.LayerNorm, factor: Tensor | float) -> Tensor:
        if self.way in ("layer norm", "bare"):
            return layer(x)
        length = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return x * length * (factor + 1.0) if self.way == "difference" else factor * (x * length)

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None] * torch.full((4,), 0.7)
        one, two = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-two, one], -1) * angle.sin() if self.way == "turned" else x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.way == "keys":
            q, k = q / q.square().sum(-1, keepdim=True).sqrt(), self.norm(k, self.k_norm, self.factor)
        else:
            q, k = self.norm(q, self.q_norm, self.factor), self.norm(k, self.k_norm, 1.0)
        y = nn.functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def cut(model: nn.Module) -> tuple[sc.Study, sc.Plan, nn.Module, list[Any]]:
    data = [(torch.randn(3, 6, 8, dtype=torch.float64),) for _ in range(8)]
    found = sc.study(model, data[0])
    plan = found.plan(ratios={"*qk": 0.5})
    return found, plan, sc.apply(found, plan).model, data


def distance(one: nn.Module, other: nn.Module, data: list[Any]) -> float:
    with torch.no_grad():
        return sum(float((one(*x) - other(*x)).square().sum()) for x in data)


WAYS = ["plain", "difference", "layer norm", "turned", "keys"]


@pytest.mark.parametrize("way", WAYS)
def test_scores_come_nearer(way: str) -> None:
    torch.manual_seed(3)
    model = Normed(way).double().eval()
    found, plan, small, data = cut(model)
    recovered = Attention()(small, found.cut(plan), data)
    assert not recovered.skipped
    assert recovered.changes["qk"].detail == "factors of the norm"
    assert recovered.changes["qk"].after < 0.999 * recovered.changes["qk"].before


@pytest.mark.parametrize("way", WAYS)
def test_what_is_there_twice_is_made_up_for_exactly(way: str) -> None:
    torch.manual_seed(3)
    model = Normed(way).double().eval()
    one, two = ([0, 2], [1, 3]) if way == "turned" else ([0, 1], [2, 3])
    with torch.no_grad():
        for tensor in (*model.q.parameters(), *model.k.parameters()):
            for head in range(0, len(tensor), 4):
                tensor[[head + n for n in two]] = tensor[[head + n for n in one]]
        model.factor[two] = model.factor[one]
        for norm in (model.q_norm, model.k_norm):
            for tensor in norm.parameters():
                tensor.copy_(torch.rand(4))
                tensor[two] = tensor[one]
    found, _, _, data = cut(model)
    plan = found.plan(indices={"qk": [1] if way == "turned" else two})
    small = sc.apply(found, plan).model
    assert distance(model, small, data) > 1e-3
    Attention()(small, found.cut(plan), data)
    assert distance(model, small, data) < 1e-9


def test_a_norm_without_factors_stays_with_a_reason() -> None:
    torch.manual_seed(3)
    found, plan, small, data = cut(Normed("bare").double().eval())
    recovered = Attention()(small, found.cut(plan), data)
    assert recovered.skipped["qk"] == "a norm without a vector of factors of its own stands between a projection and the product"
    assert not recovered.changes


def test_a_refit_begins_with_the_factors() -> None:
    torch.manual_seed(3)
    model = Normed("plain").double().eval()
    found, plan, small, data = cut(model)
    before = distance(model, small, data)
    assert Refit()(small, found.cut(plan), data).changes["qk"].detail == "factors of the norm"
    assert distance(model, small, data) < before
