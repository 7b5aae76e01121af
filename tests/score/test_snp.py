from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cases import CASES, call
from score.by_hand import group, solved
from secateur.allocate import Options
from secateur.errors import SelectionError
from secateur.groups import ChannelGroup
from secateur.score import SNP, Combine, Evidence, calibrate, gather
from secateur.score.snp import pair_scores, unlikeness
from secateur.study import study

PLAIN = Combine("average", "none")


class Attention(nn.Module):
    """Self-attention with a fused projection, written in three ways."""

    def __init__(self, how: str, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, 2)
        self.how, self.heads = how, heads

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        if self.how == "fused":
            y = functional.scaled_dot_product_attention(q, k, v)
        elif self.how == "matmul":
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            y = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def dense(query: Tensor, key: Tensor, terms: int) -> Tensor:
    """The definition, with tokens x tokens matrices."""
    u, s, vt = torch.linalg.svd(query @ key.T)
    out = torch.zeros(query.shape[1], dtype=torch.float64)
    for i in range(query.shape[1]):
        own = torch.outer(query[:, i], key[:, i])
        for j in range(terms):
            lead = s[j] * torch.outer(u[:, j], vt[j])
            out[i] += ((lead * own).sum() / (lead.norm() * own.norm())).abs()
    return out


def pairs_of(groups: list[ChannelGroup]) -> ChannelGroup:
    return next(g for g in groups if g.name.endswith("qk"))


@pytest.mark.parametrize("tokens", [5, 9, 40])
@pytest.mark.parametrize("terms", [1, 3])
def test_the_short_form_equals_the_definition(tokens: int, terms: int) -> None:
    query, key = torch.randn(tokens, 8, dtype=torch.float64), torch.randn(tokens + 2, 8, dtype=torch.float64)
    torch.testing.assert_close(pair_scores(query, key, terms), dense(query, key, terms), rtol=0, atol=1e-12)


def test_a_share_takes_the_fewest_terms_that_hold_it() -> None:
    query = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    key = torch.eye(3, dtype=torch.float64)
    assert pair_scores(query, key, 9 / 14).tolist() == [1, 0, 0]
    assert pair_scores(query, key, 0.65).tolist() == [1, 1, 0]
    assert pair_scores(query, key, 1.0).tolist() == [1, 1, 1]
    assert pair_scores(query, key, 2).tolist() == [1, 1, 0]


def test_pairs_without_energy_score_zero() -> None:
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    query[:, 1] = 0
    key[:, 2] = 0
    found = pair_scores(query, key, 0.9)
    assert found[1] == 0
    assert found[2] == 0
    assert pair_scores(0 * query, key, 0.9).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("how", ["fused", "matmul", "einsum"])
def test_query_and_key_pairs_are_averaged_over_samples_head_by_head(how: str) -> None:
    model, data = Attention(how), torch.randn(5, 6, 12)
    solution, groups = solved(model, data[:2])
    observed = calibrate(solution, groups, [SNP()], data)
    found = SNP()(pairs_of(groups), gather(solution, combine=PLAIN, observed=observed))
    with torch.no_grad():
        q, k, _ = model.split(data)
    expected = pair_scores(q, k, 0.9).mean(0).flatten()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("how", ["repeated", "native"])
def test_a_key_head_shared_by_queries_is_averaged_over_them(how: str) -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(12, 2)

        def split(self, x: Tensor) -> list[Tensor]:
            return [f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.q, self.k, self.v)]

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.split(x)
            if how == "repeated":
                k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=how == "native")
            return self.out(y.transpose(1, 2).flatten(2))

    model, data = Grouped(), torch.randn(4, 5, 6)
    solution, groups = solved(model, data[:2])
    found = SNP()(pairs_of(groups), gather(solution, combine=PLAIN, observed=calibrate(solution, groups, [SNP()], data)))
    with torch.no_grad():
        q, k, _ = model.split(data)
    expected = pair_scores(q, k.repeat_interleave(2, dim=1), 0.9).mean(0).unflatten(0, (2, 2)).mean(1).flatten()
    torch.testing.assert_close(found, expected)


class Operands(TorchFunctionMode):
    """Keeps the queries and keys of a model's attention, as ``(batch, heads, tokens, neurons)``, whatever function multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.found.append((args[0], args[1]))
        elif name in ("matmul", "__matmul__") and args[0].ndim == 4 and not self.found:
            self.found.append((args[0], args[1].mT))
        elif name == "einsum" and not self.found:
            self.found.append((args[1].transpose(1, 2), args[2].transpose(1, 2)))
        elif name == "multi_head_attention_forward":
            query, _, _, width, heads, weight, bias = args[:7]
            query, key = (query @ weight[: 2 * width].T + bias[: 2 * width]).chunk(2, -1)
            self.found.append(tuple(each.transpose(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key)))
        return func(*args, **(kwargs or {}))


def shared_by_two(scores: Tensor) -> Tensor:
    """A key head serves two query heads."""
    return scores.unflatten(0, (-1, 2)).mean(1)


def turned_alike(scores: Tensor) -> Tensor:
    """Both halves of every head go together, in all heads, since one table turns them."""
    return scores.mean(0).unflatten(0, (2, -1)).mean(0)


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        *((name, None) for name in ("separate_qkv", "fused_qkv", "head_major_qkv", "chunked_qkv", "library_attention")),
        *((name, None) for name in ("einsum_attention", "cross_attention", "language_model")),
        ("expanded_keys", shared_by_two),
        ("rotary", turned_alike),
    ],
)
@pytest.mark.parametrize("gamma", [0.9, 2])
def test_every_way_to_write_attention_is_scored_by_its_own_queries_and_keys(
    name: str, joined: Callable[[Tensor], Tensor] | None, gamma: float
) -> None:
    case = next(case for case in CASES if case.name == name)
    found, inputs = study(case.model(), case.inputs()), case.inputs(6)
    group = next(g for g in found.groups if g.name.endswith("qk"))
    pairs = gather(found.solution).products_of(group)
    scores = found.scores(SNP(gamma), data=[inputs], options=Options(policy="sum", layer_norm="none"))[group.name][torch.as_tensor(pairs)]
    operands = Operands()
    with torch.no_grad(), operands:
        call(found.model, inputs)
    expected = pair_scores(*operands.found[0], gamma).mean(0)
    torch.testing.assert_close(scores, (joined(expected) if joined else expected).flatten(), rtol=1e-4, atol=1e-4)


def test_other_layers_are_scored_without_data() -> None:
    model = Attention("fused")
    solution, groups = solved(model, torch.randn(2, 6, 12))
    values = next(g for g in groups if g.prunable and g.kind == "channels" and g is not pairs_of(groups))
    found = SNP()(values, gather(solution, combine=PLAIN))
    torch.testing.assert_close(found, unlikeness(model.qkv.weight.detach()[24:]))
    with pytest.raises(SelectionError, match=r"SNP.*needs calibration data for .*qk"):
        SNP()(pairs_of(groups), gather(solution))


def test_unlikeness_by_hand() -> None:
    rows = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, 0.0], [1.0, 1.0]])
    half = 2**-0.5
    expected = torch.tensor([4 - 1 - half, 4 - 1 - half, 4 - half, 0, 4 - 3 * half], dtype=torch.float64)
    torch.testing.assert_close(unlikeness(rows), expected)


def test_producers_of_a_stream_are_added() -> None:
    evidence = Evidence({"layer.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])}, PLAIN)
    assert SNP()(group(), evidence).tolist() == [1, 3, 1, 1]


@pytest.mark.parametrize("gamma", [0, 0.0, 1.5, -1, True])
def test_a_gamma_without_meaning_is_refused(gamma: float) -> None:
    with pytest.raises(SelectionError, match="gamma"):
        SNP(gamma)
