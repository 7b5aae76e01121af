"""How many components: evidence, calibration, rules for one layer, and budgets over layers."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from secateur.decompose import (
    CP,
    SVD,
    ByEnergy,
    ByHand,
    ByRatio,
    ByVBMF,
    ErrorCurve,
    Refusal,
    SpatialSVD,
    Tucker,
    allocate_ranks,
    break_even,
    calibrate_rank,
    choose_rank,
    decompose,
    error_curve,
    evbmf,
)
from secateur.decompose.ranks import ladder
from secateur.decompose.spec import cost, read_spec
from secateur.decompose.vbmf import _cut, _free_energies
from secateur.errors import SelectionError


def planted(rows, columns, rank, *, noise=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right, rest = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((rows, rank), (rank, columns), (rows, columns))
    )
    return left @ right + noise * rest


def convolution(kernel):
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), padding=1, dtype=kernel.dtype)
    layer.weight.data = kernel
    return layer


def tucker_kernel(outputs, inputs, rank_in, rank_out, *, noise):
    core, out, inner = planted(rank_out, rank_in * 9, 0), planted(outputs, rank_out, 0, seed=1), planted(inputs, rank_in, 0, seed=2)
    kernel = torch.einsum("abk,oa,ib->oik", core.reshape(rank_out, rank_in, 9), out, inner)
    kernel = kernel / kernel.norm() * kernel.numel() ** 0.5
    return (kernel + noise * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).reshape(
        outputs, inputs, 3, 3
    )


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 576, 10), (128, 128, 20), (64, 64, 5), (256, 2304, 40)])
def test_vbmf_finds_planted_ranks_and_the_noise(rows, columns, rank, scale):
    found = evbmf(scale * planted(rows, columns, rank))
    assert found.rank == rank
    assert found.noise_variance == pytest.approx(scale**2, rel=0.06)


def test_vbmf_does_not_mind_which_side_is_longer():
    matrix = planted(40, 90, 4)
    assert evbmf(matrix).rank == evbmf(matrix.mT).rank == 4


@pytest.mark.parametrize("shape", [(64, 576), (128, 128), (20, 20)])
def test_vbmf_sees_nothing_in_noise_or_zeros(shape):
    assert evbmf(planted(*shape, 0)).rank == 0
    assert evbmf(torch.zeros(shape)).rank == 0


def test_vbmf_sees_all_of_a_matrix_without_noise():
    assert evbmf(planted(40, 60, 7, noise=0)).rank == 7
    assert evbmf(planted(40, 60, 7, noise=1e-4)).rank == 7


def test_the_threshold_divides_the_spectrum_at_the_rank():
    matrix = planted(30, 50, 6)
    found = evbmf(matrix)
    values = torch.linalg.svdvals(matrix)
    assert values[found.rank - 1] > found.threshold > values[found.rank]


def test_the_cut_of_a_square_matrix_is_the_published_one():
    # At L = M both halves of the equation are Phi(t) = 0, whose root is 2.5129.
    assert _cut(1.0) == pytest.approx((1 + 2.51286) * (1 + 1 / 2.51286), rel=1e-5)


def test_the_free_energy_is_the_published_one_at_each_of_many_variances():
    squares, ratio, cut = [60.0, 25.0, 9.0, 1.0, 0.25], 5 / 8, _cut(5 / 8)

    def of_one(scaled):
        if scaled <= cut:
            return scaled - math.log(scaled)
        rest = scaled - 1 - ratio
        tau = (rest + math.sqrt(rest**2 - 4 * ratio)) / 2
        return scaled - tau + math.log((tau + 1) / scaled) + ratio * math.log(tau / ratio + 1)

    variances = [0.1, 0.5, 2.0]
    expected = [sum(of_one(square / (8 * variance)) for square in squares) for variance in variances]
    assert _free_energies(np.log(variances), np.array(squares), 5, 8, cut) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rank", "full", "ratio", "expected"),
    [
        (32, 64, 0.2, 38),
        (32, 64, -0.2, 26),
        (31, 64, 0.2, 37),
        (35, 64, -0.2, 30),
        (32, 64, 0, 32),
        (32, 64, 1, 64),
        (32, 64, -1, 1),
        (10, 64, -0.2, 1),
        (60, 64, 0.2, 60),
    ],
)
def test_calibration_truncates_toward_zero_and_stays_in_range(rank, full, ratio, expected):
    assert calibrate_rank(rank, full, ratio) == expected


def test_calibration_keeps_the_minimum():
    assert calibrate_rank(10, 64, -0.2, minimum=8) == 8
    assert calibrate_rank(2, 4, -1, minimum=8) == 4


def test_vbmf_chooses_the_planted_ranks_of_a_kernel():
    layer = convolution(tucker_kernel(48, 32, 6, 9, noise=0.3))
    assert choose_rank(layer, Tucker(), ByVBMF()) == (6, 9)
    assert choose_rank(layer, Tucker(), ByVBMF(calibration=0.25)) == (6 + int(0.25 * 26), 9 + int(0.25 * 39))
    assert choose_rank(layer, CP(), ByVBMF()) == (9,)
    assert choose_rank(layer, Tucker(), ByVBMF(minimum=8)) == (8, 9)


def test_vbmf_refuses_noise():
    found = choose_rank(convolution(planted(32, 32 * 9, 0).reshape(32, 32, 3, 3)), Tucker(), ByVBMF())
    assert isinstance(found, Refusal)
    assert "stands out of noise" in found.reason


def test_energy_keeps_the_least_rank_that_holds_it():
    layer = nn.Linear(4, 4, dtype=torch.float64)
    layer.weight.data = torch.diag(torch.tensor([1.0, 3.0, 2.0, 1.0], dtype=torch.float64))  # energies 9, 4, 1, 1 of 15
    for energy, rank in ((0.59, 1), (0.61, 2), (13.01 / 15, 3), (1.0, 4)):
        assert choose_rank(layer, SVD(), ByEnergy(energy), accept_dearer=True) == (rank,)
    layer.weight.data.zero_()
    assert choose_rank(layer, SVD(), ByEnergy(0.9)) == (1,)


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize(
    ("layer", "method"), [(nn.Conv2d(24, 48, 3, stride=2, padding=1), Tucker()), (nn.Linear(64, 32), SVD()), (nn.Conv2d(16, 16, 3), CP())]
)
def test_ratio_removes_what_is_asked_and_no_more_than_needed(layer, method, of):
    spec = read_spec(layer)
    dense = getattr(cost([spec]), of)
    for ratio in (0.3, 0.6):
        rank = choose_rank(layer, method, ByRatio(ratio, of=of))
        ranks = ladder(spec, method)
        left = [getattr(cost(list(method.layers(spec, r).values())), of) / dense for r in (rank, ranks[ranks.index(rank) + 1])]
        assert left[0] <= 1 - ratio < left[1]


def test_ratio_says_when_no_rank_is_small_enough():
    assert isinstance(choose_rank(nn.Linear(4, 4), SVD(), ByRatio(0.9)), Refusal)


def test_ranks_come_in_steps():
    spec = read_spec(nn.Conv2d(24, 48, 3))
    assert ladder(spec, Tucker(), round_to=16) == [(16, 16), (16, 32), (24, 48)]
    assert choose_rank(nn.Linear(64, 64), SVD(), ByRatio(0.3, round_to=8)) == (16,)


def test_rank_by_hand_is_checked():
    layer = nn.Conv2d(16, 16, 3)
    assert choose_rank(layer, Tucker(), ByHand(4)) == (4, 4)
    assert choose_rank(layer, Tucker(), ByHand((3, 5))) == (3, 5)
    assert "outside" in choose_rank(layer, Tucker(), ByHand((3, 17))).reason
    assert "dearer" in choose_rank(nn.Linear(16, 16), SVD(), ByHand(8)).reason
    assert "neither" in choose_rank(nn.ReLU(), SVD(), ByHand(8)).reason
    assert "depthwise" in choose_rank(nn.Conv2d(4, 4, 3, groups=4), CP(), ByHand(1)).reason


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ByHand(0),
        lambda: ByHand(2.5),
        lambda: ByHand(True),
        lambda: ByHand("vbmf"),
        lambda: ByHand((4, -1)),
        lambda: ByHand(()),
        lambda: ByRatio(1.0),
        lambda: ByRatio(-0.1),
        lambda: ByRatio(0.5, of="latency"),
        lambda: ByRatio(0.5, round_to=0),
        lambda: ByEnergy(0.0),
        lambda: ByEnergy(1.1),
        lambda: ByEnergy(math.nan),
        lambda: ByVBMF(1.5),
        lambda: ByVBMF(minimum=0),
    ],
)
def test_rules_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SelectionError):
        wrong()


def test_break_even_is_the_last_rank_that_gains():
    assert break_even(read_spec(nn.Linear(60, 40, bias=False)), SVD()) == (23,)  # r (60 + 40) < 2400
    assert break_even(read_spec(nn.Linear(2, 2)), SVD()) is None
    # 16 * 16 * 9 = 2304 parameters against r (16 + 16 + 3 + 3)
    assert break_even(read_spec(nn.Conv2d(16, 16, 3, bias=False)), CP(), of="params") == (60,)


def best_by_trying_all(curves, allowed):
    options = [list(zip(curve.costs, curve.errors, strict=True)) for curve in curves.values()]
    sums = [(sum(cost for cost, _ in choice), sum(error for _, error in choice)) for choice in itertools.product(*options)]
    return min(error for total, error in sums if total <= allowed)


def test_allocation_stays_within_the_budget_and_near_the_best():
    layers = {f"layer{n}": nn.Linear(12, 8 + 4 * n, dtype=torch.float64) for n in range(3)}
    curves = {name: error_curve(layer, SVD()) for name, layer in layers.items()}
    dense = sum(curve.dense_cost for curve in curves.values())
    before = float("inf")
    for part in (0.3, 0.5, 0.7, 0.9, 1.0):
        allocation = allocate_ranks(curves, int(part * dense))
        assert allocation.cost <= part * dense
        assert allocation.error <= before
        assert allocation.error <= 1.1 * best_by_trying_all(curves, part * dense) + 1e-12
        before = allocation.error
    assert set(allocation.ranks.values()) == {None}


def test_allocation_adds_up_what_the_layers_cost_and_lose():
    layers = {"a": nn.Linear(20, 20, dtype=torch.float64), "b": nn.Linear(20, 20, dtype=torch.float64)}
    allocation = allocate_ranks({name: error_curve(layer, SVD()) for name, layer in layers.items()}, 400)
    found = [decompose(layers[name], SVD(), rank) for name, rank in allocation.ranks.items() if rank is not None]
    assert len(found) == 2
    assert sum(factorized.after.macs for factorized in found) == allocation.cost <= 400
    assert sum(factorized.relative_error**2 for factorized in found) == pytest.approx(allocation.error)


def test_allocation_spares_the_sensitive_layer():
    layer = nn.Linear(20, 20, dtype=torch.float64)
    curves = {"plain": error_curve(layer, SVD()), "sensitive": error_curve(layer, SVD(), sensitivity=100)}
    ranks = allocate_ranks(curves, 500).ranks
    assert ranks["sensitive"] is None or ranks["plain"] < ranks["sensitive"]


def test_allocation_refuses_what_cannot_be_met():
    with pytest.raises(SelectionError, match="at least 30"):
        allocate_ranks({"only": ErrorCurve(((1,), None), np.array([30, 100]), np.array([0.5, 0.0]))}, 29)


@pytest.mark.parametrize("method", [Tucker(), CP(sweeps=5), SpatialSVD()], ids=lambda method: method.name)
def test_error_curves_hold_only_ranks_that_gain_and_fall(method):
    layer = convolution(tucker_kernel(16, 12, 6, 6, noise=0.5))
    curve = error_curve(layer, method, of="params", round_to=1)
    dense = cost([read_spec(layer)]).params
    assert (curve.costs[:-1] < dense).all()
    assert curve.ranks[-1] is None
    assert curve.costs[-1] == dense
    by_cost = curve.errors[np.argsort(curve.costs)]
    assert by_cost[0] > 2 * by_cost[-2] > by_cost[-1] == 0


def test_a_curve_of_canonical_errors_holds_ranks_between_those_that_were_fitted():
    torch.manual_seed(0)
    kernel = torch.randn(1, 16, 20, 3, 3, dtype=torch.float64)
    curve = CP().squared_errors(kernel)
    errors = [curve[rank,] for rank in range(1, 25)]
    assert all(after < before for before, after in itertools.pairwise(errors))
    for rank in (3, 10, 18):
        lost = kernel[0] - to_kernel_of(CP(epc=False)(kernel, (rank,)))
        assert curve[rank,] == pytest.approx(float(lost.square().sum()), rel=0.1)
    assert list(CP().squared_errors(kernel, round_to=8)) == [(8,), (16,), (24,), (144,)]


def to_kernel_of(factors):
    reduce, vertical, horizontal, expand = (factor.squeeze() for factor in factors.values())
    return torch.einsum("or,ri,ry,rx->oiyx", expand, reduce, vertical, horizontal)


def test_error_curves_respect_steps_and_refuse_what_cannot_gain():
    assert {rank for rank in error_curve(nn.Linear(64, 64), SVD(), round_to=8).ranks if rank} == {(8,), (16,), (24,)}
    assert "no rank" in error_curve(nn.Linear(2, 2), SVD()).reason
    assert "use svd" in error_curve(nn.Linear(64, 64), Tucker()).reason
    assert "neither" in error_curve(nn.ReLU(), Tucker()).reason
