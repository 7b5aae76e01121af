"""What attention scores lose with pairs of neurons, by hand and by brute force."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from score.by_hand import solved
from secateur.score import OBS, Combine, calibrate, gather, score_groups
from secateur.score.logits import RIDGE, Logits, removal_errors

PLAIN = Combine("average", "none")


def moments(size: int, seed: int) -> Tensor:
    x = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x @ torch.randn(size, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return x.T @ x / len(x)


def each(size: int) -> np.ndarray:
    return np.arange(size).reshape(-1, 1)


def left_over(query: Tensor, key: Tensor, kept: Sequence[int]) -> float:
    """The least mean square of q . k - q_K M k_K for independent q and k, by the normal equations of all of M at once."""
    picked = list(kept)
    if not picked:
        return float((query * key).sum())
    gram = torch.kron(query[picked][:, picked].contiguous(), key[picked][:, picked].contiguous())
    wanted = (query[picked] @ key[:, picked]).flatten()
    return float((query * key).sum() - wanted @ torch.linalg.solve(gram, wanted))


def by_force(problems: Sequence[tuple[Tensor, Tensor, np.ndarray]]) -> Tensor:
    """Remove what leaves the least error, again and again, each time with a new fit of everything."""
    ridged = [[m + RIDGE * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype) for m in problem[:2]] for problem in problems]
    alive, errors, now, worst = set(range(len(problems[0][2]))), torch.zeros(len(problems[0][2]), dtype=torch.float64), 0.0, 0.0

    def total(channels: set[int]) -> float:
        kept = [sorted(n for c in channels for n in places[c] if n < len(q)) for q, _, places in problems]
        return sum(left_over(q, k, own) for (q, k), own in zip(ridged, kept, strict=True))

    while alive:
        found = {c: total(alive - {c}) for c in alive}
        chosen = min(found, key=lambda c: found[c])
        worst = max(worst, found[chosen] - now)
        errors[chosen], now = worst, found[chosen]
        alive.remove(chosen)
    return errors


@pytest.mark.parametrize(
    "places",
    [[each(6)], [each(6), each(6)], [np.array([[0, 3], [1, 4], [2, 5]])], [np.array([[0, 1], [2, 6], [3, 6], [4, 5]])]],
    ids=["one head", "two heads", "turned pairs", "some of one neuron"],
)
def test_every_removal_is_the_cheapest_after_a_fit_of_the_rest(places: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.score.logits.RIDGE", 1e-9)
    monkeypatch.setitem(globals(), "RIDGE", 1e-9)
    problems = [(moments(6, 10 * n), moments(6, 10 * n + 5), p) for n, p in enumerate(places)]
    torch.testing.assert_close(removal_errors(problems), by_force(problems), rtol=1e-4, atol=1e-6)


def test_a_pair_that_another_says_again_goes_for_nothing() -> None:
    twin = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    errors = removal_errors([(twin, twin, each(3))])
    # the third has 0.5 * 0.5; of the first two one goes for next to nothing, and the other then holds (q_1 k_1 + q_2 k_2)^2 = 4
    order = errors.argsort().tolist()
    assert order[1] == 2
    assert float(errors[order[0]]) < 0.2
    assert float(errors[2]) == pytest.approx(0.25, rel=0.1)
    assert float(errors[order[2]]) == pytest.approx(4, rel=0.1)


def test_neurons_that_are_never_active_cost_nothing() -> None:
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    errors = removal_errors([(nothing, moments(3, 1), each(3))])
    assert errors.isfinite().all()
    assert float(errors.max()) < 1e-15


class Heads(nn.Module):
    """Queries and keys of two heads, of which queries may share keys, and a mask that hides the tokens from the third on."""

    def __init__(self, shared: int = 1) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 2 * 3 * shared), nn.Linear(4, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6 * shared, 2)
        self.register_buffer("mask", (torch.arange(5) < 3).expand(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])
        return self.out(y.transpose(1, 2).flatten(2))


def samples() -> Tensor:
    return torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def scored(model: nn.Module, x: Tensor) -> Tensor:
    solution, groups = solved(model, x[:4])
    group = next(g for g in groups if any(m.tensor == "k.weight" for m in g.members))
    observed = calibrate(solution, groups, [OBS()], x, combine=PLAIN, samples=None)
    return score_groups(OBS(), groups, gather(solution, combine=PLAIN, observed=observed))[group.name]


@pytest.mark.parametrize("shared", [1, 2])
def test_only_tokens_that_the_mask_lets_be_seen_count(shared: int) -> None:
    torch.manual_seed(1)
    model, x = Heads(shared).double(), samples()
    found = scored(model, x)
    q, k = (layer(x[:, :3]).detach().unflatten(-1, (-1, 3)).permute(2, 0, 1, 3) for layer in (model.q, model.k))
    q = q.unflatten(0, (2, shared)).flatten(1, 2)
    # A mean over all five tokens of each sample, which is all that differs from one over three.
    grams = [(each.mT @ each).sum(1) / 8 / 5 for each in (q, k)]
    places = [np.array([[0], [1], [2], [3], [3], [3]]), np.array([[3], [3], [3], [0], [1], [2]])]
    expected = removal_errors([(a, b, p) for a, b, p in zip(*grams, places, strict=True)])
    torch.testing.assert_close(found, expected)


def test_neurons_of_wide_heads_have_the_product_of_their_energies(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model, x = Heads().double(), samples()
    monkeypatch.setattr("secateur.score.logits.WIDEST", 2)
    q, k = (layer(x).detach().flatten(0, 1).square().mean(0) for layer in (model.q, model.k))
    torch.testing.assert_close(scored(model, x), q * k)


def test_moments_that_are_not_finite_give_scores_that_say_so() -> None:
    torch.manual_seed(1)
    model, x = Heads().double(), samples()
    solution, groups = solved(model, x[:4])
    group = next(g for g in groups if any(m.tensor == "k.weight" for m in g.members))
    (seen,) = OBS().observers(group, solution, PLAIN)
    assert isinstance(seen, Logits)
    seen._moments += torch.inf
    seen._counts += 1
    ((_, scores),) = seen.parts()
    assert scores.isnan().all()
