"""How good the fits are: errors against spectra, monotone iterations, corrections and degenerate kernels."""

import itertools

import pytest
import torch
from torch import nn

from secateur.decompose import CP, SVD, SpatialSVD, Tucker, decompose
from secateur.decompose.als import Fit, LeastSquares, Target, improve, random_start, subspace_start, tap_start, term_energy
from secateur.decompose.epc import error_preserving_correction
from secateur.decompose.hooi import Unfolded, alternate, hooi
from secateur.decompose.linalg import leading_left, ridge_solve, symmetric_root


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def recompose(factors):
    """Sum the rank-one terms, the slow way."""
    return torch.einsum("gor,gir,gyr,gxr->goiyx", *factors)


def convolution(kernel):
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), dtype=torch.float64)
    layer.weight.data = kernel
    return layer


@pytest.mark.parametrize("shape", [(20, 30), (30, 20)])
def test_the_error_of_a_truncated_svd_is_the_tail_of_the_spectrum(shape):
    layer = nn.Linear(shape[1], shape[0], dtype=torch.float64)
    layer.weight.data = normal(*shape)
    values = torch.linalg.svdvals(layer.weight.detach())
    for rank in (1, 5, 19):
        found = decompose(layer, SVD(), rank, accept_dearer=True)
        tail = float(values[rank:].norm())
        assert found.relative_error == pytest.approx(tail / float(values.norm()), rel=1e-9)
        assert SVD().squared_errors(layer.weight.detach()[None])[rank,] == pytest.approx(tail**2, rel=1e-9)


def test_the_error_of_a_spatial_svd_is_the_tail_of_its_unfolding():
    kernel = normal(6, 5, 3, 4)
    values = torch.linalg.svdvals(kernel.permute(0, 3, 1, 2).reshape(24, 15))
    found = decompose(convolution(kernel), SpatialSVD(), 4)
    assert found.relative_error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-9)
    assert SpatialSVD().squared_errors(kernel[None])[4,] == pytest.approx(float(values[4:].square().sum()), rel=1e-9)


def test_balanced_factors_share_the_norm_of_each_component():
    layer = nn.Linear(12, 10, dtype=torch.float64)
    balanced, plain = (decompose(layer, SVD(balance=balance), 4).module for balance in (True, False))
    torch.testing.assert_close(balanced.reduce.weight.norm(dim=1), balanced.expand.weight.norm(dim=0))
    torch.testing.assert_close(plain.expand.weight.norm(dim=0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(balanced.expand.weight @ balanced.reduce.weight, plain.expand.weight @ plain.reduce.weight)


def captured(kernel, factors):
    return float(torch.einsum("goi...,gir,gos->gsr...", kernel, *factors).square().sum())


def test_no_iteration_of_hooi_raises_the_error():
    kernel = normal(2, 12, 10, 3, 3)
    start = leading_left(kernel.flatten(2), 4)
    fits = [alternate(Unfolded.of(kernel), start, (3, 4), tolerance=-1, iterations=n) for n in range(1, 20)]
    energies = [captured(kernel, factors) for factors, _ in fits]
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(energies))
    assert energies[-1] > energies[0] + 1e-3
    for energy, (_, lost) in zip(energies, fits, strict=True):
        assert lost == pytest.approx(1 - energy / float(kernel.square().sum()))


def test_hooi_converges_to_factors_that_no_single_update_improves():
    kernel = normal(1, 12, 10, 3, 3)
    factor_in, factor_out, core = hooi(kernel, (3, 4), tolerance=0, iterations=200)
    best_out = leading_left(torch.einsum("goi...,gir->gor...", kernel, factor_in).flatten(2), 4)
    assert captured(kernel, (factor_in, best_out)) == pytest.approx(captured(kernel, (factor_in, factor_out)), rel=1e-6)
    assert float(core.square().sum()) == pytest.approx(captured(kernel, (factor_in, factor_out)), rel=1e-12)
    for factor in (factor_in, factor_out):
        torch.testing.assert_close(factor.mT @ factor, torch.eye(factor.shape[2], dtype=torch.float64)[None])


@pytest.mark.parametrize("shape", [(24, 20, 3, 3), (40, 4, 3, 3), (4, 40, 3), (30, 30, 2, 2)])
@pytest.mark.parametrize("decay", [0.1, 1.0, 3.0])
def test_hooi_loses_as_little_where_nearly_nothing_is_lost_as_in_double_precision(shape, decay):
    rank = (3, 4)
    sides = [torch.linalg.qr(normal(size, size, seed=seed)).Q for seed, size in enumerate(shape[:2])]
    sizes = [torch.arange(1, size + 1, dtype=torch.float64) ** (-2 * decay) for size in shape[:2]]
    kernel = torch.einsum("ab...,oa,ib,a,b->oi...", normal(*shape, seed=2), *sides, *sizes)[None]
    kernel = kernel / kernel.norm()
    factor_in, factor_out, core = hooi(kernel, rank, tolerance=1e-4, iterations=100)
    lost = float((kernel - torch.einsum("gsr...,gir,gos->goi...", core, factor_in, factor_out)).norm())
    start = leading_left(kernel.flatten(2), 4)
    factors, _ = alternate(Unfolded.of(kernel), start, rank, tolerance=1e-6, iterations=500)
    projected = torch.einsum("goi...,gir,gjr,gos,gps->gpj...", kernel, factors[0], factors[0], factors[1], factors[1])
    assert lost <= 1.001 * float((kernel - projected).norm()) + 1e-12


def test_tucker_errors_on_the_grid_bound_those_of_the_fit():
    kernel = normal(12, 8, 3, 3)
    bounds = Tucker().squared_errors(kernel[None])
    assert set(bounds) == {(i, o) for i in range(1, 9) for o in range(1, 13)}
    for rank in ((2, 3), (8, 5), (6, 12)):
        error = decompose(convolution(kernel), Tucker(), rank, accept_dearer=True).relative_error ** 2 * float(kernel.square().sum())
        assert 0.8 * bounds[rank] < error <= bounds[rank] * (1 + 1e-12)


def test_tucker_recovers_a_planted_kernel():
    kernel = torch.einsum("abyx,oa,ib->oiyx", normal(3, 2, 3, 3), normal(14, 3, seed=1), normal(10, 2, seed=2))
    assert decompose(convolution(kernel), Tucker(), (2, 3)).relative_error < 1e-12


@pytest.mark.parametrize("separable", [True, False])
def test_cp_recovers_a_planted_kernel(separable):
    kernel = torch.einsum("or,ir,yr,xr->oiyx", normal(14, 4), normal(12, 4, seed=1), normal(3, 4, seed=2), normal(3, 4, seed=3))
    assert decompose(convolution(kernel), CP(separable=separable, tolerance=1e-12), 4).relative_error < 1e-5


def test_sweeps_never_raise_the_error_and_report_it_truly():
    target = Target.of(normal(2, 8, 9, 3, 2))
    start = tuple(torch.stack(pair) for pair in zip(random_start(target.kernel, 5, generator()), tap_start(target.kernel, 5), strict=True))
    fits = [improve(target, start, sweeps=sweeps, tolerance=0) for sweeps in range(1, 25)]
    for before, after in itertools.pairwise(fits):
        assert (after.error <= before.error + 1e-12).all()
    assert (fits[-1].error < 0.99 * fits[0].error).all()
    for start_at in range(2):
        residual = target.kernel - recompose(tuple(factor[start_at] for factor in fits[-1].factors))
        torch.testing.assert_close(fits[-1].error[start_at], residual.flatten(1).square().sum(1))


def test_a_price_on_terms_is_paid_and_weighs_against_the_error():
    target = Target.of(normal(2, 8, 9, 3, 2))
    start = tuple(factor[None] for factor in random_start(target.kernel, 12, generator()))
    for price in (1e-2, 1.0):
        goal = LeastSquares(price)
        fits = [improve(target, start, sweeps=sweeps, tolerance=0, goal=goal) for sweeps in (5, 10, 200)]
        costs = [fit.error + price * term_energy(fit.factors) for fit in fits]
        assert (costs[0] > costs[1]).all()
        assert (costs[1] > costs[2]).all()
        plain = improve(target, start, sweeps=200, tolerance=0)
        assert (goal.cost(fits[2]) < plain.error + price * term_energy(plain.factors)).all()
        assert (term_energy(fits[2].factors) < term_energy(plain.factors)).all()


def terms_that_cancel(seed):
    """A kernel of border rank six and a little noise: the terms of its fits grow and cancel each other."""
    sides = [(normal(size, 3, seed=100 * seed + size), normal(size, 3, seed=100 * seed + size + 50)) for size in (10, 8, 9)]
    kernel = sum(torch.einsum("or,ir,xr->oix", *(pair[int(place == tangent)] for place, pair in enumerate(sides))) for tangent in range(3))
    noise = normal(10, 8, 9, seed=seed + 7)
    kernel = kernel / kernel.norm() + 0.1 * noise / noise.norm()
    return kernel / kernel.norm()


def test_a_price_that_falls_to_nothing_finds_smaller_terms_at_the_same_error():
    energies = []
    for seed in range(4):
        kernel = terms_that_cancel(seed)
        target = Target.of(kernel[None])
        start = tuple(factor[None] for factor in subspace_start(target.kernel, 6, generator()))
        plain = improve(target, start, sweeps=300, tolerance=1e-6)
        factors = CP(epc=False)._fit(kernel[None], 6)
        error = float((kernel - torch.einsum("or,ir,xr->oix", *(factor[0] for factor in factors))).norm())
        assert error < 1.01 * float(plain.error.sqrt())
        energies.append((float(term_energy(tuple(factor[None] for factor in factors))), float(term_energy(plain.factors))))
    ours, theirs = (sum(column) for column in zip(*energies, strict=True))
    assert ours < 0.5 * theirs


def test_one_start_for_each_group_is_kept():
    target = Target.of(normal(2, 6, 6, 2, 2))
    starts = [random_start(target.kernel, 3, generator(seed)) for seed in range(4)]
    fit = improve(target, tuple(torch.stack(factor) for factor in zip(*starts, strict=True)), sweeps=5, tolerance=0)
    best = fit.best(1)
    torch.testing.assert_close(best.error[0], fit.error.amin(0))
    residual = target.kernel - recompose(tuple(factor[0] for factor in best.factors))
    torch.testing.assert_close(best.error[0], residual.flatten(1).square().sum(1))


def test_starts_from_subspaces_and_taps_have_the_asked_rank():
    kernel = normal(2, 4, 5, 2, 2)
    for rank in (2, 7, 20):
        for start in (subspace_start(kernel, rank, generator()), tap_start(kernel, rank)):
            assert [tuple(factor.shape) for factor in start] == [(2, 4, rank), (2, 5, rank), (2, 2, rank), (2, 2, rank)]
    torch.testing.assert_close(recompose(tap_start(kernel, 16)), kernel)


def test_the_start_from_taps_takes_their_largest_components():
    kernel = normal(1, 4, 5, 2, 2)
    values = torch.linalg.svdvals(kernel[0].flatten(2).permute(2, 0, 1)).flatten().sort(descending=True).values
    lost = kernel - recompose(tap_start(kernel, 7))
    torch.testing.assert_close(lost.norm(), values[7:].norm())


@pytest.mark.parametrize("slack", [1.0, 1.01])
def test_correction_keeps_the_error_and_shrinks_the_terms(slack):
    target = Target.of(normal(2, 6, 5, 3, 3))
    fit = improve(target, tuple(factor[None] for factor in random_start(target.kernel, 20, generator())), sweeps=30, tolerance=0)
    corrected = error_preserving_correction(target, fit, slack=slack, tolerance=0)
    residual = target.kernel - recompose(tuple(factor[0] for factor in corrected.factors))
    error = residual.flatten(1).norm(dim=1)
    assert (error <= slack * fit.error[0].sqrt() * (1 + 1e-9)).all()
    assert (term_energy(corrected.factors) < 0.8 * term_energy(fit.factors)).all()


def test_corrected_layers_have_smaller_terms_at_the_same_error():
    layer = convolution(normal(6, 6, 3, 3))
    plain, corrected = (decompose(layer, CP(epc=epc, slack=1.0, tolerance=1e-4), 14) for epc in (False, True))
    assert corrected.relative_error <= plain.relative_error * (1 + 1e-9)

    def energy(module):
        reduce, *depthwise, expand = [part.weight.detach() for part in module]
        norms = [weight.flatten(1).norm(dim=1) for weight in (reduce, *depthwise, expand.transpose(0, 1))]
        return float(torch.stack(norms).prod(0).square().sum())

    assert energy(corrected.module) < 0.99 * energy(plain.module)


@pytest.mark.parametrize("method", [CP(), CP(separable=False), Tucker(), SpatialSVD()], ids=repr)
@pytest.mark.parametrize("kernel", ["zero", "zero group", "one rank", "repeated", "tiny", "huge"])
def test_degenerate_kernels_have_finite_factors(method, kernel):
    one = torch.einsum("o,i,y,x->oiyx", normal(12), normal(6, seed=1), normal(3, seed=2), normal(3, seed=3))
    kernels = {
        "zero": torch.zeros(12, 6, 3, 3, dtype=torch.float64),
        "zero group": torch.cat([torch.zeros(6, 6, 3, 3, dtype=torch.float64), one[:6]]),
        "one rank": one,
        "repeated": normal(1, 6, 3, 3).expand(12, -1, -1, -1).clone(),
        "tiny": one * 1e-30,
        "huge": one * 1e30,
    }
    layer = nn.Conv2d(12, 12, 3, groups=2, dtype=torch.float64)
    layer.weight.data = kernels[kernel]
    found = decompose(layer, method, 3)
    assert all(bool(parameter.isfinite().all()) for parameter in found.module.parameters())
    assert found.relative_error < (0.75 if kernel == "repeated" else 1e-5)


@pytest.mark.parametrize("separable", [True, False])
def test_correction_drops_terms_that_have_all_but_vanished(separable):
    kernel = torch.zeros(1, 8, 6, 3, 3, dtype=torch.float64)
    kernel[0, 3, 4, 1, 1] = 1
    target = Target.of(kernel if separable else kernel.flatten(3))
    # A product of what is left of the other factors that is no zero, and whose square is one.
    vanishing = torch.tensor([1, 1e-70, 1e-105], dtype=torch.float64)
    factors = tuple(torch.cat([factor, torch.ones_like(factor).expand(-1, -1, 2)], 2) * vanishing for factor in tap_start(target.kernel, 1))
    fit = Fit(tuple(factor[None] for factor in factors), target.energy[None] * 1000)
    corrected = error_preserving_correction(target, fit, slack=1.001)
    assert all(bool(factor.isfinite().all()) for factor in corrected.factors)


def test_zero_matrices_have_finite_factors():
    layer = nn.Linear(8, 8, dtype=torch.float64)
    layer.weight.data.zero_()
    found = decompose(layer, SVD(), 2)
    torch.testing.assert_close(found.weight, layer.weight.detach(), rtol=0, atol=0)
    assert found.relative_error == 0


def test_fits_are_reproducible():
    layer = convolution(normal(8, 8, 3, 3))
    first, again, other = (decompose(layer, CP(seed=seed, sweeps=20), 9).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
@pytest.mark.parametrize("rank", [2, 5, 8])
def test_leading_subspaces_agree_with_the_svd(shape, rank):
    matrix = normal(3, *shape)
    if rank > shape[0]:
        return
    basis = leading_left(matrix, rank)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(rank, dtype=torch.float64).expand(3, -1, -1))
    u = torch.linalg.svd(matrix).U[..., :rank]
    captured, best = ((b.mT @ matrix).norm(dim=(1, 2)) for b in (basis, u))
    torch.testing.assert_close(captured, best)


def test_singular_systems_have_finite_solutions():
    gram = torch.ones(4, 4, dtype=torch.float64)
    solution = ridge_solve(torch.ones(2, 4, dtype=torch.float64), gram)
    torch.testing.assert_close(solution @ gram, torch.ones(2, 4, dtype=torch.float64))
    assert bool(ridge_solve(torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)).isfinite().all())


def test_roots_square_to_the_covariance_and_invert():
    covariance = normal(1, 6, 4)
    covariance = covariance.mT @ covariance
    root, inverse = symmetric_root(covariance)
    torch.testing.assert_close(root @ root.mT, covariance)
    torch.testing.assert_close(root @ inverse, torch.eye(4, dtype=torch.float64)[None])
    assert all(bool(part.isfinite().all()) for part in symmetric_root(torch.zeros(1, 3, 3, dtype=torch.float64)))
