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
from secateur.recover.attention import best_factors, best_pair, fitted_pair
from secateur.recover.spread import Spread
from secateur.result import Result
from secateur.rewrite import Cut
from secateur.score.batches import batches as read
from secateur.study import Study, study

BY_NAME = {case.name: case for case in CASES}
FOLLOWED = ("separate_qkv", "fused_qkv", "chunked_qkv", "library_attention", "cross_attention", "class_token", "talking_heads")


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


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("kind", ["qk", "v"])
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


@pytest.mark.parametrize(
    ("name", "skipped", "why"),
    [
        ("rotary", "qk", "aten.add stands between"),
        ("expanded_keys", "v", "aten.expand stands between"),
        ("einsum_attention", "qk", "no product of two activations"),
    ],
)
def test_what_is_not_free_stays_with_a_reason(name: str, skipped: str, why: str) -> None:
    _, cut, result = thinner(BY_NAME[name], ("qk", "v"))
    before = {key: tensor.clone() for key, tensor in result.model.state_dict().items()}
    recovered = Attention()(result.model, cut, batches(BY_NAME[name]))
    assert why in recovered.skipped[skipped]
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
    """Two query heads to each key and value head, repeated by the operator itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))


def test_heads_that_share_keys_and_values_stay() -> None:
    x = torch.randn(3, 6, 8)
    found = study(Shared().eval(), x)
    plan = found.plan(ratios={"*qk": 0.5, "*v": 0.5})
    assert len(plan.edits) == 2
    recovered = Attention()(apply(found, plan).model, found.cut(plan), x)
    assert recovered.skipped == {"qk": "several query heads share one key head", "v": "several query heads share one value head"}
