"""Least squares from sums, against rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.recover.regression import PLENTY, RIDGES, Moments, Rows, Sums, fit


def rows(count: int = 200, inputs: int = 5, outputs: int = 3, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, count, inputs, generator=generator, dtype=torch.float64) + 2
    weight = torch.randn(1, outputs, inputs, generator=generator, dtype=torch.float64)
    error = noise * torch.randn(1, count, outputs, generator=generator, dtype=torch.float64)
    return x, x @ weight.mT + 0.5 + error


def sums(x: Tensor, y: Tensor) -> Sums:
    found = Sums.zeros(1, x.shape[2], y.shape[2])
    found.add(x, y)
    return found


def test_without_a_ridge_it_is_ordinary_least_squares() -> None:
    x, y = rows()
    found = fit([sums(x, y)], torch.zeros(1, 3, 5), torch.zeros(1, 3), ridge=0)
    solution = torch.linalg.lstsq(torch.cat([x[0], torch.ones(200, 1, dtype=torch.float64)], 1), y[0]).solution
    torch.testing.assert_close(found.matrix[0], solution[:-1].T)
    torch.testing.assert_close(found.shift[0], solution[-1])


def test_one_input_by_hand() -> None:
    x, y = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [7.0]]])
    found = fit([sums(x, y)], torch.ones(1, 1, 1), torch.zeros(1, 1), ridge=1)
    # variance 1, covariance 3, prior 1: 1 + (3 - 1) / (1 + 1) = 2; shift 4 - 2
    assert found.matrix.item() == pytest.approx(2)
    assert found.shift.item() == pytest.approx(2)
    # the prior leaves (1, 5) of (1, 7): 13 of a variance of 9; the fit leaves -1 and 1
    assert found.before == pytest.approx(13 / 9)
    assert found.after == pytest.approx(1 / 9)


def test_an_infinite_ridge_keeps_the_prior_and_moves_the_shift() -> None:
    x, y = rows()
    prior = torch.ones(1, 3, 5, dtype=torch.float64)
    found = fit([sums(x, y)], prior, torch.zeros(1, 3), ridge=math.inf)
    assert torch.equal(found.matrix, prior)
    torch.testing.assert_close(found.shift[0], (y - x @ prior.mT).mean(1)[0])


def test_without_a_shift_moments_are_about_zero() -> None:
    x, y = rows()
    found = fit([sums(x, y)], torch.zeros(1, 3, 5), None, ridge=0)
    torch.testing.assert_close(found.matrix[0], torch.linalg.lstsq(x[0], y[0]).solution.T)
    assert not found.shift.any()


def test_the_ridge_is_weak_with_much_evidence_and_strong_with_none() -> None:
    x, y = rows(4000, noise=0.01)
    much = fit([sums(x[:, ::2], y[:, ::2]), sums(x[:, 1::2], y[:, 1::2])], torch.zeros(1, 3, 5), torch.zeros(1, 3))
    assert much.ridge == 1e-4
    noise = torch.randn(1, 12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    few = fit([sums(noise[:, ::2, :8], noise[:, ::2, 8:]), sums(noise[:, 1::2, :8], noise[:, 1::2, 8:])], torch.zeros(1, 2, 8), None)
    assert few.ridge == math.inf
    assert not few.matrix.any()


@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0, 3.0, 10.0, 100.0])
def test_the_ridge_is_the_best_of_all(noise: float) -> None:
    x, y = rows(40, inputs=16, noise=noise)
    folds, prior = [sums(x[:, ::2], y[:, ::2]), sums(x[:, 1::2], y[:, 1::2])], torch.zeros(1, 3, 16, dtype=torch.float64)
    moments = [Moments.of(fold, centred=True) for fold in folds]
    pairs = (moments, moments[::-1])
    errors = {r: sum(test.error(prior + other.step(other.rest(prior), r)) for test, other in pairs) for r in (*RIDGES, math.inf)}
    best = min(errors, key=lambda ridge: errors[ridge])
    assert [fit(folds, prior, torch.zeros(1, 3), first=first).ridge for first in RIDGES] == [best] * len(RIDGES)


@pytest.mark.parametrize(("count", "ways"), [(2 * 5 * PLENTY, 1), (2 * 5 * PLENTY - 2, 2)])
def test_much_evidence_needs_no_second_way_round(count: int, ways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(1) or cholesky(matrix))
    x, y = rows(count, noise=0.01)
    found = fit([sums(x[:, ::2], y[:, ::2]), sums(x[:, 1::2], y[:, 1::2])], torch.zeros(1, 3, 5), torch.zeros(1, 3), first=1e-4)
    assert found.ridge == 1e-4
    assert len(calls) == 2 * ways + 1  # the first ridge and the next, and the fit to all


def test_sums_of_parts_add_up_to_the_sums_of_all() -> None:
    x, y = rows()
    whole, parts = sums(x, y), sums(x[:, :70], y[:, :70]) + sums(x[:, 70:], y[:, 70:])
    assert parts.count == whole.count == 200
    for name in ("x", "y", "xx", "yx", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_products_taken_in_strips_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recover.regression._STRIP", 2)
    x, y = rows()
    torch.testing.assert_close(sums(x, y).xx, x.mT @ x)


@pytest.mark.parametrize("waiting", [1, 100, 10**9])
def test_rows_that_wait_count_all_the_same(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.recover.regression.WAITING", waiting)
    x, y = rows()
    gathered = Rows(Sums.zeros(1, 5, 3))
    for part in torch.arange(200).split(7):
        gathered.add(x[:, part], y[:, part])
    for name, value in vars(gathered.sums()).items():
        torch.testing.assert_close(value, getattr(sums(x, y), name))


def test_error_is_the_mean_squared_distance() -> None:
    x, y = rows()
    matrix = torch.ones(1, 3, 5, dtype=torch.float64)
    rest = y - x @ matrix.mT
    moments = Moments.of(sums(x, y), centred=True)
    assert moments.error(matrix) == pytest.approx(float((rest - rest.mean(1)).square().sum() / 200))


def test_a_singular_covariance_is_no_obstacle() -> None:
    x, y = rows()
    x = torch.cat([x, x], 2)
    found = fit([sums(x, y)], torch.zeros(1, 3, 10), torch.zeros(1, 3), ridge=0)
    assert torch.isfinite(found.matrix).all()
    assert found.after < 0.01


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e6])
def test_inputs_that_never_vary_leave_the_prior_at_once(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: calls.append(1) or cholesky(matrix))
    x = torch.full((1, 3, 5), mean) * torch.tensor([1.0, 0.3, -1 / 3, 0.7, 1.1])
    prior = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fit([sums(x, torch.randn(1, 3, 2))], prior, torch.zeros(1, 2), ridge=1e-4)
    torch.testing.assert_close(found.matrix, prior, rtol=0.05, atol=0.05)
    assert len(calls) <= 4


def test_what_cannot_be_solved_keeps_the_prior() -> None:
    x, y = rows()
    prior = torch.ones(1, 3, 5, dtype=torch.float64)
    moments = Moments.of(sums(x * float("nan"), y), centred=True)
    assert not moments.step(moments.rest(prior), 1e-2).any()
