"""The part of the signal that goes with a channel, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from score.by_hand import solved
from secateur.score import Combine, Signal, gather, score_groups
from secateur.study import study
from secateur.study.suited import suited
from secateur.target import Target


def scored(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    solution, groups = solved(model.double(), example.double())
    return dict(score_groups(Signal(), groups, gather(solution, combine=Combine(layer_norm="none"))))


def net(tail: nn.Module, bias: float = 0.0) -> nn.Sequential:
    """A batch norm that puts out variances 1, 4 and 9."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), tail)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2, 3]))
        model[1].bias.fill_(bias)
    return model


def test_variances_times_squared_weights_of_what_is_left() -> None:
    model = net(nn.Linear(3, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[3.0, 1, 0], [0, 0, 1]]))
    (found,) = scored(model, torch.randn(4, 2)).values()
    # Channels make 9, 4 and 9 of the variance; the second goes first, then the first of two that are alike.
    torch.testing.assert_close(found, torch.tensor([9 / 18, 4 / 22, 9 / 9], dtype=torch.float64))


@pytest.mark.parametrize(("bias", "expected"), [(True, [1 / 14, 4 / 13, 1.0]), (False, [10 / 41, 13 / 31, 1.0])])
def test_a_mean_counts_where_no_bias_takes_it_up(bias: bool, expected: list[float]) -> None:
    model = net(nn.Linear(3, 1, bias=bias), bias=3.0)
    nn.init.ones_(model[2].weight)
    (found,) = scored(model, torch.randn(4, 2)).values()
    if not bias:  # second moments 10, 13, 18 of a variance of 14
        expected = [10 / 41, 13 / 31, 1.0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_outputs_count_as_the_batch_norm_behind_leaves_them() -> None:
    model = nn.Sequential(*net(nn.Linear(3, 2, bias=False)), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 1]]))
        model[3].weight.copy_(torch.tensor([2.0, 1.0]))
    found = scored(model, torch.randn(4, 2))["0"]
    # Of the outputs' variances 4 and 1 the first channel makes 4; the others make 4/13 and 9/13 of 1.
    torch.testing.assert_close(found, torch.tensor([1.0, 4 / 65, (9 / 65) / (61 / 65)], dtype=torch.float64))


def test_readers_of_a_branch_count_by_its_part_of_the_stream() -> None:
    class Block(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
            self.inner, self.first = nn.Linear(4, 5), nn.BatchNorm1d(5)
            self.last, self.second = nn.Linear(5, 4), nn.BatchNorm1d(4)
            self.out = nn.Linear(4, 2)
            nn.init.constant_(self.second.weight, scale)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x))
            return self.out(x + self.second(self.last(torch.relu(self.first(self.inner(x))))))

    small, large = (scored(Block(scale), torch.randn(4, 3))["inner"] for scale in (0.5, 2.0))
    torch.testing.assert_close(small / (0.25 / 1.25), large / (4 / 5))


def test_a_channel_that_nothing_comes_through_goes_for_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].bias[1], model[1].weight[1] = -20.0, 0.5
    (found,) = scored(model, torch.randn(4, 2)).values()
    assert found[1] == 0
    assert (found[[0, 2]] > 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_group_of_every_model_has_scores_that_tell_channels_apart(case: Case) -> None:
    found = study(case.model(), case.inputs())
    for name, values in found.scores(Signal()).items():
        assert torch.isfinite(values).all()
        size = len(values)
        kind = next(g.kind for g in found.groups if g.name == name)
        assert kind == "blocks" or values.unique().numel() >= size // 2


def test_no_layer_is_emptied_for_others() -> None:
    """Scores of channels that are all alike: what would go for a ranking of plain parts of the variance is one whole layer."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 128, 1), nn.BatchNorm2d(128), nn.ReLU())
    model = nn.Sequential(*wide, nn.Conv2d(128, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    found = study(model, torch.randn(1, 3, 4, 4))
    plan = suited(found, target=Target(macs=0.5)).plan(found, target=Target(macs=0.5))
    assert max(plan.ratios.values()) < 0.7


def test_half_of_a_normal_value_behind_relu() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1))
    nn.init.ones_(model[3].weight)
    with torch.no_grad():
        model[1].bias[1] = 50.0  # never below zero
    (found,) = scored(model, torch.randn(4, 2)).values()
    half = 0.5 - 1 / (2 * math.pi)
    torch.testing.assert_close(found, torch.tensor([half / (1 + half), 1.0], dtype=torch.float64), atol=1e-4, rtol=0)
