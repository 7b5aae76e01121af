from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from score.by_hand import group, solved
from secateur.errors import SelectionError
from secateur.score import L2, SNP, Combine, Evidence, GeometricMedian, NuclearNorm, Scorer, calibrate, gather
from secateur.score.nuclear_norm import FeatureMaps
from secateur.score.observer import Call

PLAIN = Combine("sum", "none")


class Residual(nn.Module):
    """Two convolutions that meet in a sum, with an activation behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.out(torch.relu(self.second(y) + y))


def direct(maps: Tensor) -> Tensor:
    """Nuclear norm of each channel's (samples, positions) over the number of samples; channels along dimension 1."""
    table = maps.detach().double().movedim(1, 0).reshape(maps.shape[1], maps.shape[0], -1)
    return torch.stack([torch.linalg.matrix_norm(each, "nuc") for each in table]) / maps.shape[0]


def scored(model: nn.Module, example: Tensor, data: Tensor | Sequence[Tensor], combine: Combine = PLAIN) -> Tensor:
    solution, groups = solved(model, example)
    observed = calibrate(solution, groups, [NuclearNorm()], data, combine=combine, samples=None)
    return NuclearNorm()(groups[0], gather(solution, combine=combine, observed=observed))


@pytest.mark.parametrize("samples", [3, 8, 40])
def test_equals_singular_values_with_few_and_with_many_samples(samples: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    data = torch.randn(samples, 3, 6, 6)
    found = scored(model, torch.randn(4, 3, 6, 6), data)
    torch.testing.assert_close(found, direct(model[0](data)), rtol=1e-6, atol=1e-8)


def test_batches_of_any_size_give_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1))
    data = torch.randn(11, 3, 6, 6)
    example = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(scored(model, example, data), scored(model, example, data.split(3)))


@pytest.mark.parametrize("shape", [(9, 3), (9, 7, 3)])
def test_linear_layers_on_vectors_and_on_tokens(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    data = torch.randn(shape)
    found = scored(model, data[:2], data)
    torch.testing.assert_close(found, direct(model[0](data).movedim(-1, 1)), rtol=1e-6, atol=1e-8)


def test_a_map_of_rank_one_is_exact_too() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.Conv1d(2, 2, 1)).double()
    line = torch.randn(1, 1, 50, dtype=torch.float64)
    data = line * torch.arange(1.0, 65).view(-1, 1, 1)
    torch.testing.assert_close(scored(model, data[:4], data), direct(model[0](data)), rtol=1e-10, atol=0)


def test_no_more_than_the_smaller_table_is_held() -> None:
    model = nn.Sequential(nn.Conv1d(3, 2, 1), nn.Conv1d(2, 2, 1))
    solution, groups = solved(model, torch.randn(4, 3, 6))
    (maps,) = NuclearNorm().observers(groups[0], solution, PLAIN)
    assert isinstance(maps, FeatureMaps)
    for _ in range(5):
        maps.see(Call({}, torch.randn(4, 2, 6), 4, 4))
        assert sum(each.shape[1] for each in maps.stored) < 12


@pytest.mark.parametrize("samples", [20, 60])
@pytest.mark.parametrize("spread", [1e-3, 1e-5, 1e-7])
def test_maps_that_hardly_change_are_exact_too(samples: int, spread: float) -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1)).double()
    data = 5 + spread * torch.randn(samples, 1, 25, dtype=torch.float64)
    torch.testing.assert_close(scored(model, data[:4], data), direct(model[0](data)), rtol=1e-9, atol=0)


def test_a_dead_channel_scores_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0
    found = scored(model, torch.randn(2, 3, 4, 4), torch.randn(6, 3, 4, 4))
    assert found[2] == 0
    assert int(found.argmin()) == 2


def test_producers_of_a_sum_are_scored_each_by_itself() -> None:
    model, data = Residual(), torch.randn(6, 3, 5, 5)
    first = model.first(data)
    expected = direct(first) + direct(model.second(first))
    torch.testing.assert_close(scored(model, data[:2], data), expected, rtol=1e-6, atol=1e-8)


def test_backward_scores_the_activation_behind_the_sum() -> None:
    model, data = Residual(), torch.randn(6, 3, 5, 5)
    first = model.first(data)
    expected = direct(torch.relu(model.second(first) + first))
    combine = Combine("backward", "tss_norm")
    torch.testing.assert_close(scored(model, data[:2], data, combine), expected / expected.sum(), rtol=1e-6, atol=1e-8)


class Stream(Residual):
    """Two sums in one stream, the second without an activation, and a layer of its own behind."""

    def __init__(self) -> None:
        super().__init__()
        self.third, self.inner = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.out = nn.Conv2d(5, 2, 1)

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(x)
        second = torch.relu(self.second(first) + first)
        return second, self.third(second) + second

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.inner(self.sums(x)[1])))


def test_backward_averages_over_the_sums_of_a_stream_and_scores_other_layers_by_what_they_put_out() -> None:
    model, data = Stream(), torch.randn(6, 3, 5, 5)
    solution, groups = solved(model, data[:2])
    combine = Combine("backward", "tss_norm")
    evidence = gather(solution, combine=combine, observed=calibrate(solution, groups, [NuclearNorm()], data, combine=combine))
    shares = [norms / norms.sum() for norms in map(direct, (*model.sums(data), model.inner(model.sums(data)[1])))]
    stream, inner = (NuclearNorm()(group, evidence) for group in groups[:2])
    torch.testing.assert_close(stream, (shares[0] + shares[1]) / 2, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(inner, shares[2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("criterion", [L2(), GeometricMedian(), SNP()], ids=str)
def test_backward_is_refused_by_criteria_that_look_at_one_producer_at_a_time(criterion: Scorer) -> None:
    solution, groups = solved(Residual(), torch.randn(2, 3, 5, 5))
    with pytest.raises(SelectionError, match="'backward' scores feature maps after an addition"):
        criterion(groups[0], gather(solution, combine=Combine("backward")))


def test_backward_of_the_worked_example() -> None:
    maps = torch.tensor([25.0, 22, 64, 43, 58], dtype=torch.float64)
    evidence = Evidence({}, Combine("backward", "tss_norm"), observed={(NuclearNorm(), "layer"): ((np.arange(5), maps),)})
    expected = torch.tensor([0.118, 0.104, 0.302, 0.203, 0.274], dtype=torch.float64)
    torch.testing.assert_close(NuclearNorm()(group(size=5), evidence), expected, atol=1e-3, rtol=0)


def test_without_data_it_says_that_it_needs_some() -> None:
    with pytest.raises(SelectionError, match="data"):
        NuclearNorm()(group(), Evidence({}))
