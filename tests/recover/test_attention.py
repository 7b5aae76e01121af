"""The best basis for thinner heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, call, studied
from networks import attention as at
from secateur.errors import SelectionError
from secateur.pipeline import apply
from secateur.recover import Attention, Refit
from secateur.recover.attention import best_factors, best_pair, fitted_pair, turned_pair
from secateur.recover.spread import Spread
from secateur.result import Result
from secateur.rewrite import Cut
from secateur.score.batches import batches as read
from secateur.study import Study, study

BY_NAME = {case.name: case for case in CASES}
FOLLOWED = (
    *("separate_qkv", "fused_qkv", "chunked_qkv", "library_attention", "cross_attention", "class_token", "talking_heads"),
    "expanded_keys",
)


def thinner(case: Case, kinds: tuple[str, ...], ratio: float = 0.5) -> tuple[Study, Cut, Result]:
    found = studied(case)
    names = [layer.name for layer in found.layers if layer.prunable and layer.name.split(".")[-1] in kinds]
    plan = found.plan(ratios=dict.fromkeys(names, ratio))
    return found, found.cut(plan), apply(found, plan)


def batches(case: Case, count: int = 8) -> list[Any]:
    torch.manual_seed(5)
    examples = [case.example(2) for _ in range(count)]
    return [e if isinstance(e, tuple | dict) else (e,) for e in examples]


def distance(found: Study, model: nn.Module, data: list[Any]) -> float:
    with torch.no_grad():
        return sum(float((call(found.model, x) - call(model, x)).square().sum()) for x in data)


@pytest.mark.parametrize(("name", "kind"), [*((name, kind) for kind in ("qk", "v") for name in FOLLOWED), ("einsum_attention", "qk")])
def test_scores_and_values_come_nearer_and_no_shape_changes(name: str, kind: str) -> None:
    _, cut, result = thinner(BY_NAME[name], (kind,))
    shapes = {key: tensor.shape for key, tensor in result.model.state_dict().items()}
    recovered = Attention()(result.model, cut, batches(BY_NAME[name]))
    assert recovered.changes
    assert not recovered.skipped
    assert all(change.after < change.before for change in recovered.changes.values())
    assert {key: tensor.shape for key, tensor in result.model.state_dict().items()} == shapes
    assert call(result.model, BY_NAME[name].inputs()).isfinite().all()


class LowRank(at.Separate):
    """Queries, keys and values of every head lie in a plane, so that two neurons are enough if they are the right mixtures."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.q, self.k, self.v):
            mixing = torch.block_diag(*(torch.randn(at.DEPTH, 2) @ torch.randn(2, at.DEPTH) for _ in range(at.HEADS)))
            with torch.no_grad():
                layer.weight.copy_(mixing @ layer.weight)
                layer.bias.copy_(mixing @ layer.bias)


def test_heads_of_low_rank_are_made_up_for_exactly() -> None:
    torch.manual_seed(3)
    model, data = LowRank().double().eval(), [(torch.randn(2, 6, 10, dtype=torch.float64),) for _ in range(8)]
    found = study(model, data[0])
    names = [layer.name for layer in found.layers if layer.name in ("qk", "v.v")]
    plan = found.plan(ratios=dict.fromkeys(names, 0.5))
    result = apply(found, plan)
    assert distance(found, result.model, data) > 1e-2
    Attention()(result.model, found.cut(plan), data)
    assert distance(found, result.model, data) < 1e-9


def test_the_best_basis_beats_every_choice() -> None:
    found, cut, _ = thinner(BY_NAME["separate_qkv"], ("qk",))
    errors = {}
    for basis in ("kept", "best"):
        bases = Attention(basis).bases(cut, _read(found, BY_NAME["separate_qkv"]))
        errors[basis] = bases.changes["qk"].after
        assert errors[basis] < bases.changes["qk"].before
    assert errors["best"] < errors["kept"]


def _read(found: Study, case: Case) -> list[Any]:
    return list(read(batches(case), found.capture, samples=None))


def test_queries_and_keys_of_rank_k_by_hand() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    query, key = query / 50**0.5, key / 50**0.5
    a, b = best_pair(query.mT @ query, key.mT @ key, np.array([0, 2]))
    u, s, vh = torch.linalg.svd(query @ key.mT)
    torch.testing.assert_close(query @ a @ (key @ b).mT, u[:, :2] * s[:2] @ vh[:2])
    a, b = fitted_pair(query.mT @ query, key.mT @ key, np.array([0, 2]))
    fitted = (
        query[:, [0, 2]] @ torch.linalg.pinv(query[:, [0, 2]]) @ query @ key.mT @ torch.linalg.pinv(key[:, [0, 2]]).mT @ key[:, [0, 2]].mT
    )
    torch.testing.assert_close(query @ a @ (key @ b).mT, fitted, atol=1e-5, rtol=1e-5)


def test_factors_of_what_reads_values_by_hand() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    columns = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    forward, back = best_factors(columns, values.mT @ values, 2)
    u, s, vh = torch.linalg.svd(values @ columns.mT, full_matrices=False)
    torch.testing.assert_close(values @ (back @ forward).mT, u[:, :2] * s[:2] @ vh[:2])


def test_what_is_not_free_stays_with_a_reason() -> None:
    _, cut, result = thinner(BY_NAME["einsum_attention"], ("v",))
    before = {key: tensor.clone() for key, tensor in result.model.state_dict().items()}
    recovered = Attention()(result.model, cut, batches(BY_NAME["einsum_attention"]))
    assert "aten.einsum is not followed" in recovered.skipped["v"]
    assert not recovered.changes
    assert all(torch.equal(tensor, before[key]) for key, tensor in result.model.state_dict().items())


def test_a_refit_goes_on_from_the_new_basis() -> None:
    case = BY_NAME["separate_qkv"]
    found, cut, _ = thinner(case, ("qk", "v"))
    data = batches(case, 24)
    errors = []
    for how in (Attention(), Refit(basis="as cut"), Refit()):
        model = thinner(case, ("qk", "v"))[2].model
        how(model, cut, data)
        errors.append(distance(found, model, data))
    assert errors[2] < min(errors[:2])


def test_projections_are_fitted_to_what_the_new_basis_wants_of_them() -> None:
    case = BY_NAME["separate_qkv"]
    found = studied(case)
    plan = found.plan(ratio=0.3)
    changes = Refit()(apply(found, plan).model, found.cut(plan), batches(case, 24)).changes
    assert {"qk", "v", "q", "k"} <= set(changes)
    assert all(changes[name].before < 1 for name in ("q", "k", "v"))


class Padded(nn.Module):
    """Attention in which a mask hides the last tokens from all queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


def test_tokens_that_nobody_sees_do_not_count() -> None:
    torch.manual_seed(1)
    model, mask = Padded().double().eval(), (torch.arange(6) < 4).expand(3, 2, 6, 6)
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    states = []
    for padding in (0.0, 100.0):
        padded = torch.where((torch.arange(6) < 4)[:, None], x, padding)
        found = study(model, (padded, mask))
        plan = found.plan(ratios={"qk": 0.5})
        result = apply(found, plan)
        Attention()(result.model, found.cut(plan), [(padded, mask)])
        states.append(result.model.state_dict()["q.weight"])
    torch.testing.assert_close(*states)


def test_batches_are_left_out_where_there_are_tokens_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    own = Spread.take
    monkeypatch.setattr(Spread, "take", lambda self, batch: taken.append(batch) or own(self, batch))
    monkeypatch.setattr("secateur.recover.attention.FEWEST", 1)
    _, cut, result = thinner(BY_NAME["fused_qkv"], ("qk", "v"))
    seen = []
    for evidence in (None, 1, 10**6):
        taken.clear()
        Attention(evidence=evidence)(result.model, cut, batches(BY_NAME["fused_qkv"], 12))
        seen.append(len(taken))
    assert seen[0] == seen[2] == 12
    assert 0 < seen[1] < 12


def test_it_asks_for_data() -> None:
    _, cut, result = thinner(BY_NAME["separate_qkv"], ("qk",))
    with pytest.raises(SelectionError, match="needs calibration data"):
        Attention()(result.model, cut)
    with pytest.raises(SelectionError, match="hold no samples"):
        Attention()(result.model, cut, iter([]))


class Shared(nn.Module):
    """Two query heads to each key and value head, repeated by the operator itself or before it."""

    def __init__(self, repeat: str, *, low_rank: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)
        self.repeat = repeat
        for layer in (self.k, self.v) if low_rank else ():
            mixing = torch.block_diag(*(torch.randn(4, 2) @ torch.randn(2, 4) for _ in range(2)))
            with torch.no_grad():
                layer.weight.copy_(mixing @ layer.weight)
                layer.bias.copy_(mixing @ layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.repeat == "expand":
            k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
        elif self.repeat == "interleave":
            k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        elif self.repeat == "choose":
            k, v = (t[:, [1, 0]][:, [1, 1, 0, 0]] for t in (k, v))
        elif self.repeat == "broadcast":
            k, v = (torch.broadcast_to(t[:, :, None], (len(t), 2, 2, *t.shape[2:])).flatten(1, 2) for t in (k, v))
        if self.repeat == "operator":
            y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = (q @ k.mT / 2).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("repeat", ["operator", "expand", "interleave", "choose", "broadcast"])
def test_heads_that_share_keys_and_values_share_their_basis(repeat: str) -> None:
    torch.manual_seed(4)
    model = Shared(repeat, low_rank=True).double().eval()
    data = [(torch.randn(3, 6, 8, dtype=torch.float64),) for _ in range(8)]
    found = study(model, data[0])
    plan = found.plan(ratios={"*qk": 0.5, "*v": 0.5})
    assert len(plan.edits) == 2
    result = apply(found, plan)
    assert distance(found, result.model, data) > 1e-3
    recovered = Attention()(result.model, found.cut(plan), data)
    assert set(recovered.changes) == {"qk", "v"}
    assert distance(found, result.model, data) < 1e-9


def test_of_heads_that_share_keys_each_gets_the_queries_that_fit_the_kept_neurons() -> None:
    torch.manual_seed(4)
    model, data = Shared("operator").eval(), [(torch.randn(3, 6, 8),) for _ in range(8)]
    found = study(model, data[0])
    plan = found.plan(ratios={"*qk": 0.5})
    changes = {basis: Attention(basis)(apply(found, plan).model, found.cut(plan), data).changes["qk"] for basis in ("kept", "best")}
    assert changes["best"].after < changes["kept"].after < changes["kept"].before


def test_heads_of_queries_that_are_gone_do_not_count() -> None:
    torch.manual_seed(4)
    model, data = Shared("operator", low_rank=True).double().eval(), [(torch.randn(3, 6, 8, dtype=torch.float64),) for _ in range(8)]
    found = study(model, data[0])
    plan = found.plan(ratios={"*qk": 0.5, "*v": 0.5}, heads=0.5)
    result = apply(found, plan)
    recovered = Attention()(result.model, found.cut(plan), data)
    assert all(change.after < 1e-9 < change.before for change in recovered.changes.values())
    assert set(recovered.changes) == {"qk", "v"}


class Rotary(nn.Module):
    """Queries and keys turned in pairs, in one of several ways to write it."""

    def __init__(self, way: str, rates: tuple[float, float] = (1.0, 0.3)) -> None:
        super().__init__()
        self.way, self.depth = way, 8 if way == "part" else 4
        self.q, self.k, self.v = (nn.Linear(8, heads * self.depth) for heads in (2, 1, 1))
        self.out = nn.Linear(2 * self.depth, 8)
        self.register_buffer("rate", torch.tensor(rates))
        self.register_buffer("uneven", torch.tensor([1.0, 1.0, 1.0, 2.0]))

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2])[:, None] * self.rate
        if self.way == "interleaved":
            one, two = x[..., ::2], x[..., 1::2]
            return torch.stack([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1).flatten(-2)
        half = x.shape[-1] // 2
        one, two = x[..., :half], x[..., half:]
        if self.way == "squared":
            double = torch.cat([angle, angle], -1)
            return x * double.cos() + x * x * double.sin()
        if self.way == "part":
            first, a, b = x.split([4, 2, 2], -1)
            return torch.cat([first, a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        double = torch.cat([angle, angle], -1)
        scale = self.uneven if self.way == "uneven" else 1
        return x * (double.cos() * scale) + torch.cat([-two, one], -1) * double.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.depth)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def turned_model(way: str, rates: tuple[float, float] = (1.0, 0.3)) -> tuple[nn.Module, Study, Any, list[Any]]:
    torch.manual_seed(6)
    model = Rotary(way, rates).double().eval()
    data = [(torch.randn(3, 6, 8, dtype=torch.float64),) for _ in range(8)]
    found = study(model, data[0])
    return model, found, found.plan(ratios={"*qk": 0.5}), data


@pytest.mark.parametrize("way", ["halves", "interleaved"])
def test_pairs_behind_rotary_positions_are_turned_to_fit(way: str) -> None:
    _, found, plan, data = turned_model(way)
    result = apply(found, plan)
    recovered = Attention()(result.model, found.cut(plan), data)
    assert not recovered.skipped
    assert recovered.changes["qk"].after < recovered.changes["qk"].before
    assert recovered.changes["qk"].detail == "kept pairs, turned"


@pytest.mark.parametrize("way", ["halves", "interleaved"])
def test_a_pair_that_is_a_turn_of_a_kept_one_at_the_same_rate_is_made_up_for_exactly(way: str) -> None:
    model, *_ = turned_model(way, (0.7, 0.7))
    one, two = ((0, 2), (1, 3)) if way == "halves" else ((0, 1), (2, 3))
    turns = {"q": torch.tensor([[0.6, -0.8], [0.8, 0.6]]) * 1.5, "k": torch.tensor([[0.0, -1.0], [1.0, 0.0]])}
    with torch.no_grad():
        for name, turn in turns.items():
            for tensor in model.get_submodule(name).parameters():
                for head in range(0, len(tensor), 4):
                    tensor[[head + n for n in two]] = turn.to(tensor) @ tensor[[head + n for n in one]].reshape(2, -1).view_as(
                        tensor[[head + n for n in one]]
                    )
    data = [(torch.randn(3, 6, 8, dtype=torch.float64),) for _ in range(8)]
    found = study(model, data[0])
    plan = found.plan(ratios={"*qk": 0.5})
    result = apply(found, plan)
    assert distance(found, result.model, data) > 1e-3
    Attention()(result.model, found.cut(plan), data)
    assert distance(found, result.model, data) < 1e-8


@pytest.mark.parametrize("way", ["uneven", "squared"])
def test_neurons_that_are_not_just_turned_alike_stay(way: str) -> None:
    _, found, plan, data = turned_model(way)
    recovered = Attention()(apply(found, plan).model, found.cut(plan), data)
    assert "stands between a projection and the product" in recovered.skipped["qk"]


def test_heads_that_are_turned_in_part_are_followed() -> None:
    _, found, plan, data = turned_model("part")
    recovered = Attention()(apply(found, plan).model, found.cut(plan), data)
    assert any(change.after < change.before for change in recovered.changes.values())


def test_turns_of_pairs_by_hand() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(40, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    quarter = torch.zeros(4, 4, dtype=torch.float64)
    quarter[0, 2], quarter[2, 0], quarter[1, 3], quarter[3, 1] = -1, 1, -1, 1
    a, b = turned_pair(query.mT @ query / 40, key.mT @ key / 40, np.array([0, 2]), quarter)
    q, k = query[:, None].expand(40, 40, 4).reshape(-1, 4), key.expand(40, 40, 4).reshape(-1, 4)
    wanted = (q * k).sum(1)
    parts = torch.stack([(q * k)[:, [0, 2]].sum(1), ((q @ quarter.mT) * k)[:, [0, 2]].sum(1)], 1)
    scale, turn = torch.linalg.lstsq(parts, wanted[:, None]).solution.flatten()
    fitted = parts @ torch.stack([scale, turn])
    torch.testing.assert_close(((q @ a) * (k @ b)).sum(1), fitted, atol=1e-4, rtol=1e-4)
    same, kept = turned_pair(query.mT @ query, key.mT @ key, np.array([0, 1]), quarter)
    assert torch.equal(same, kept)
