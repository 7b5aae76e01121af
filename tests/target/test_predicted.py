"""What the times of operators say of a cut, and of the widths of each group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cases import CASES, Case, studied
from secateur.measure import LayerTimes
from secateur.study import Study, study
from secateur.target import PredictedLatency
from target.timers import Elements


def predicted(found: Study, timer: Elements | None = None) -> PredictedLatency:
    groups = [group for group in found.groups if group.prunable and group.kind == "channels"]
    return PredictedLatency(groups, found.cut_of, LayerTimes(timer or Elements(), folder=None))


def plain(*layers: nn.Module, size: int = 8) -> Study:
    torch.manual_seed(0)
    return study(nn.Sequential(*layers).eval(), torch.randn(1, 3, size, size))


@pytest.fixture
def two() -> Study:
    """A group of 64 channels between two convolutions."""
    return plain(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 1))


def counted(width: int) -> float:
    """Thousands of elements of the fixture's operators at a width: inputs, weights and biases."""
    return 1e-3 * ((3 * 64 + 3 * width + width) + 64 * width + (64 * width + 16 * width + 16))


@pytest.mark.parametrize("width", [64, 48, 8])
def test_a_cut_takes_the_sum_of_what_is_left(two: Study, width: int) -> None:
    found = predicted(two)
    cut = two.cut_of({"0": range(64 - width)})
    assert found.ms(cut) == pytest.approx(counted(width))
    assert found.share(cut) == pytest.approx(counted(width) / counted(64))
    assert found.dense_ms == pytest.approx(counted(64))


def test_between_the_widths_that_are_timed_time_follows_the_sizes(two: Study) -> None:
    timer = Elements()
    found = predicted(two, timer)
    assert found.ms(two.cut_of({"0": range(13)})) == pytest.approx(counted(51))
    assert found.times.measured == 3 * 2  # three operators at widths of 48 and 56


def test_a_curve_holds_what_a_group_takes_part_in(two: Study) -> None:
    curve = predicted(two)({})["0"]
    assert curve.parts.tolist() == [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert curve.ms == pytest.approx([counted(round(64 * part)) for part in curve.parts])


def test_a_curve_falls_less_where_the_other_side_is_cut() -> None:
    found = plain(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 16, 1))
    curves = predicted(found)
    whole, half = (curves({"1": left})["0"].ms for left in (1.0, 0.5))
    weight = 1e-3 * 64 * 32  # of the second weight half is gone already, and with it half of its bias
    assert whole[0] - half[0] == pytest.approx(weight + 32e-3)
    assert whole[4] - half[4] == pytest.approx(weight / 2 + 32e-3)


def test_calls_that_are_alike_count_each() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read, self.act = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.read(self.act(self.act(self.make(x))))

    found = predicted(study(Twice().eval(), torch.randn(1, 3, 8, 8)))
    assert found({})["make"].ms[0] == pytest.approx(found.dense_ms)
    assert found.times.measured > 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whatever_is_timed_runs_by_itself_and_less_of_a_group_takes_less(case: Case) -> None:
    timer = Elements(runs=True)
    latency = predicted(studied(case), timer)
    assert latency.dense_ms > 0
    assert timer.failed == []
    curves = latency({})
    assert set(curves) == {group.name for group in latency.groups}
    for curve in curves.values():
        assert (np.diff(curve.ms) < 0).all()
