"""Criteria that look at the outputs, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case, studied
from score.by_hand import solved
from secateur.score import OBS, Combine, Fisher, Scorer, Taylor, Variance, calibrate, gather, score_groups
from secateur.score.obs import RIDGE, removal_errors

PLAIN = Combine("average", "none")


class Two(nn.Module):
    """Two hidden channels and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
            self.last.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def rows(count: int = 4000) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + torch.tensor([0.0, 5.0])


def scored(criterion: Scorer, x: Tensor, model: nn.Module | None = None, name: str = "first") -> Tensor:
    solution, groups = solved((model or Two()).double(), x[:500])
    observed = calibrate(solution, groups, [criterion], x, combine=PLAIN, samples=None)
    return score_groups(criterion, groups, gather(solution, combine=PLAIN, observed=observed))[name]


def test_variance_times_the_weights_that_read() -> None:
    x = rows()
    hidden = x @ torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(scored(Variance(), x), hidden.var(0, correction=0) * torch.tensor([25.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("centred", [True, False])
def test_taylor_is_the_squared_change_of_the_outputs(centred: bool) -> None:
    x = rows()
    hidden = x @ torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    hidden = hidden - hidden.mean(0) if centred else hidden
    found = scored(Taylor(centred), x)
    expected = hidden.square().mean(0) * torch.tensor([25.0, 1.0])
    assert float(found[0] / found[1]) == pytest.approx(float(expected[0] / expected[1]), rel=0.1)


def test_fisher_weighs_the_squares_of_all_weights() -> None:
    """dL/dw of a weight that makes channel c is its column of the last layer times x, of one that reads it the hidden value."""
    x = rows()
    found = scored(Fisher(), x)
    square = x.square().mean(0)
    made = torch.stack([25 * square[0] * 1, 1 * square[1] * 4])
    read = torch.stack([square[0] * 25, 4 * square[1] * 1])
    assert float(found[0] / found[1]) == pytest.approx(float((made + read)[0] / (made + read)[1]), rel=0.35)


def test_a_channel_that_another_can_stand_for_goes_first() -> None:
    covariance = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    columns = torch.tensor([[2.0, 3.0, 1.0]], dtype=torch.float64)
    errors = removal_errors([(covariance, columns)])
    # the third costs 0.5; of the first two one goes for next to nothing, and the other then holds 5^2
    order = errors.argsort().tolist()
    assert order[0] in (0, 1)
    assert order[1] == 2
    assert float(errors[order[0]]) < 0.2
    assert float(errors[2]) == pytest.approx(0.5, rel=0.05)
    assert float(errors[order[2]]) == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize("block", [2, 64])
def test_every_removal_is_the_cheapest_after_a_refit_of_the_rest(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.score.obs.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
    weight, covariance = torch.randn(3, 6, generator=generator, dtype=torch.float64), x.T @ x / 500
    errors = removal_errors([(covariance, weight)])
    left, worst, h = list(range(6)), 0.0, covariance + RIDGE * covariance.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    expected = torch.zeros(6, dtype=torch.float64)
    while left:
        fitted = weight @ h[:, left] @ torch.linalg.inv(h[left][:, left])
        costs = fitted.square().sum(0) / torch.linalg.inv(h[left][:, left]).diagonal()
        worst = max(worst, float(costs.min()))
        expected[left.pop(int(costs.argmin()))] = worst
    torch.testing.assert_close(errors, expected)


def test_inputs_that_never_vary_cost_nothing() -> None:
    columns = torch.tensor([[2.0, 3.0, 1.0]], dtype=torch.float64)
    errors = removal_errors([(torch.zeros(3, 3, dtype=torch.float64), columns)])
    assert errors.isfinite().all()
    assert float(errors.max()) < 1e-20
    varying = torch.tensor([[0.1, 0.1, 5.0]], dtype=torch.float64)
    both = removal_errors([(torch.zeros(3, 3, dtype=torch.float64), columns), (torch.eye(3, dtype=torch.float64), varying)])
    assert both.argmax() == 2


def test_rounding_that_leaves_no_positive_matrix_makes_the_ridge_grow() -> None:
    covariance = torch.tensor([[1.0, 1.03, 0.0], [1.03, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    errors = removal_errors([(covariance, torch.tensor([[1.0, 1.0, 5.0]], dtype=torch.float64))])
    assert errors.isfinite().all()
    assert (errors >= 0).all()
    assert errors.argmax() == 2


class Scores(nn.Module):
    """Products of queries and keys, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x) @ self.k(x).mT


def test_queries_and_keys_have_the_product_of_their_energies() -> None:
    model, x = Scores().double(), rows(60).reshape(12, 5, 2)
    solution, groups = solved(model, x[:4])
    observed = calibrate(solution, groups, [Variance()], x, combine=PLAIN, samples=None)
    found = score_groups(Variance(), groups, gather(solution, combine=PLAIN, observed=observed))
    q, k = (layer(x).detach().square().mean((0, 1)) for layer in (model.q, model.k))
    torch.testing.assert_close(next(iter(found.values())), q * k)


def test_all_positions_of_a_channel_behind_a_flatten_count() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.randn(50, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hidden = model[0](x).detach().flatten(2)
    solution, groups = solved(model, x[:10])
    observed = calibrate(solution, groups, [Variance()], x, combine=PLAIN, samples=None)
    found = score_groups(Variance(), groups, gather(solution, combine=PLAIN, observed=observed))["0"]
    squares = model[2].weight.detach().square().reshape(2, 3, 4).sum((0, 2))
    torch.testing.assert_close(found, hidden.var((0, 2), correction=0) * squares)


class Branches(nn.Module):
    """Two equal branches, of which one counts for a tenth."""

    def __init__(self) -> None:
        super().__init__()
        self.loud = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 3, bias=False))
        self.quiet = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 3, bias=False))
        self.quiet.load_state_dict(self.loud.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.loud(x) + self.quiet(x) * 0.1


@pytest.mark.parametrize("criterion", [Taylor(), Fisher(), OBS()], ids=str)
def test_scores_of_different_layers_compare_by_what_the_outputs_lose(criterion: Scorer) -> None:
    model = Branches()
    loud, quiet = (scored(criterion, rows(), model, f"{name}.0") for name in ("loud", "quiet"))
    torch.testing.assert_close(quiet, loud / 100)


def test_the_scale_of_the_outputs_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    before = scored(Taylor(), rows(), model, "0")
    with torch.no_grad():
        model[1].weight *= 1e-3
    torch.testing.assert_close(scored(Taylor(), rows(), model, "0"), before)


@pytest.mark.parametrize("criterion", [Taylor(), Fisher(), Variance(), OBS()], ids=str)
@pytest.mark.parametrize("name", ["residual", "flatten", "grouped", "fused_qkv", "class_token", "mixer", "patch_merging", "language_model"])
def test_every_group_of_every_kind_of_model_is_scored(criterion: Scorer, name: str) -> None:
    case: Case = next(c for c in CASES if c.name == name)
    found = studied(case)
    data = [case.example(2) for _ in range(3)]
    scores = found.scores(criterion, data=[d if isinstance(d, tuple | dict) else (d,) for d in data])
    for group in (g for g in found.groups if g.prunable and g.kind == "channels"):
        assert scores[group.name].shape == (group.size,)
        assert scores[group.name].std() > 0 or group.size == 1
