"""Widths and ranks together for a target of latency, on clocks of our own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.decompose import SVD, ErrorCurve
from secateur.plan import Factorize, Plan
from secateur.rewrite import draft_with_factors
from secateur.study import Study, study
from secateur.study.cheaper import _fitting
from secateur.study.curves import Curve
from secateur.study.removals import Removal
from secateur.study.time_costs import Stairs as TimeStairs
from secateur.study.time_costs import Steps, TimedRanks, even, timed_weighing
from secateur.study.weighing import Choice, Weighing
from secateur.study.wish import Decompose
from target.timers import Stairs, on_own_clocks

DATA = torch.randn(512, 32, generator=torch.Generator().manual_seed(5))


class Mixed(nn.Module):
    """A layer whose channels say the same several times over, and one of low rank whose channels all differ."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.down, self.low, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        with torch.no_grad():
            self.wide.weight[16:] = self.wide.weight[:16].repeat(3, 1) * torch.linspace(0.5, 2, 48).unsqueeze(1)
            self.wide.bias.zero_()
            self.low.weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.low(torch.tanh(self.down(torch.relu(self.wide(x)))))))


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Stairs:
    """Operators take as long as they have elements, models as long as they have parameters."""
    return on_own_clocks(monkeypatch, Stairs(step=0.001))


def mixed() -> Study:
    torch.manual_seed(0)
    return study(Mixed().eval(), DATA[:2])


def test_each_layer_goes_the_way_that_loses_least_for_its_time(clocks: Stairs) -> None:
    found = mixed()
    result = sc.compress(found.model, DATA[:2], target=sc.Target(latency=0.5), decompose=sc.Cheaper(), data=DATA, latency=False)
    left = result.after.parameters / result.before.parameters
    assert 0.4 < left <= 0.5
    assert result.plan.ratios["wide"] >= 0.4
    assert [edit.layer for edit in result.plan.factorizations] == ["low"]
    assert result.proof.holds
    assert Plan.from_json(result.plan.to_json()) == result.plan


def test_the_predicted_and_the_measured_latency_are_told(clocks: Stairs) -> None:
    found = mixed()
    result = sc.apply(found, sc.Cheaper().plan(found, sc.Target(latency=0.5), DATA), data=DATA)
    told, small = result.plan.settings["latency"], study(result.model, DATA[:2]).predicted_latency()
    assert told["predicted_ms"]["dense"] == pytest.approx(found.predicted_latency().dense_ms)
    assert told["predicted_ms"]["compressed"] == pytest.approx(small.dense_ms, rel=0.05)
    left = result.after.parameters / result.before.parameters
    assert told["measured_ms"]["compressed"] / told["measured_ms"]["dense"] == pytest.approx(left, abs=2e-3)
    shown = told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"]
    assert any(f"predicted {shown:.1%} by the times of its layers, measured" in note for note in result.plan.settings["notes"])
    assert result.plan.settings["way"] == "cheaper"


def test_what_measures_too_slow_is_planned_for_again(clocks: Stairs) -> None:
    clocks.truth, clocks.truth_always = (lambda share: 0.25 + 0.75 * share), True
    told = sc.Cheaper().plan(mixed(), sc.Target(latency=0.6), DATA).settings["latency"]
    assert told["tried"] > 1
    assert told["measured_ms"]["compressed"] <= 6.0
    assert told["predicted_ms"]["compressed"] / told["predicted_ms"]["dense"] < 0.6


def test_a_latency_out_of_reach_says_what_was_measured(clocks: Stairs) -> None:
    clocks.step = 1.0
    with pytest.raises(sc.SelectionError, match=r"latency=0.3\) was not reached: the fastest of the \d models that were timed took 100.0%"):
        sc.Cheaper().plan(mixed(), sc.Target(latency=0.3), DATA)


def test_a_latency_is_of_the_dense_model(clocks: Stairs) -> None:
    found = mixed()
    with pytest.raises(sc.SelectionError, match="beside the dense model"):
        sc.Cheaper().plan(found.after(found.plan(ratio=0.2)), sc.Target(latency=0.5), DATA)


def removals(found: Study) -> dict[str, Removal]:
    return {
        group.name: Removal(group, np.arange(group.size), np.linspace(0, 1, group.size), np.arange(group.size))
        for group in found.groups
        if group.prunable
    }


class Joined(nn.Module):
    """A layer that reads two others side by side, one that adds to itself, and a depthwise one; two calls are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 16, 1), nn.Conv2d(48, 32, 1)
        self.again, self.depth, self.norm, self.head = (
            nn.Conv2d(32, 32, 1),
            nn.Conv2d(32, 32, 3, groups=32),
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.relu(self.both(torch.cat([self.left(x), self.right(x)], 1))))
        return self.head(self.norm(self.depth(x + self.again(x))))


@pytest.mark.parametrize(
    "gone", [{}, {"left": 16}, {"right": 8}, {"left": 16, "right": 8}, {"both": 16}, {"left": 8, "right": 8, "both": 24}]
)
def test_widths_cost_what_the_narrower_operators_take(gone: dict[str, int], clocks: Stairs) -> None:
    torch.manual_seed(0)
    found = study(Joined().eval(), torch.randn(1, 3, 6, 6))
    predicted = found.predicted_latency()
    weighing = timed_weighing(found.model, {}, {}, removals(found), predicted)
    names = {name: next(g.name for g in found.groups if name in (g.name, *g.aliases)) for name in gone}
    wanted = {names[key]: count for key, count in gone.items()}
    steps = {name: removal.counts.tolist().index(wanted.get(name, 0)) for name, removal in weighing.removals.items()}
    cut = found.cut_of({names[key]: range(count) for key, count in gone.items()})
    choice = weighing.told(Choice(steps, {}))
    assert choice.cost == pytest.approx(predicted.ms(cut), rel=0.02)
    assert weighing.dense.cost == pytest.approx(predicted.dense_ms)


@pytest.mark.parametrize("gone", [{"0": 32}, {"2": 16}])
def test_factors_follow_the_inputs_and_outputs_of_their_layer(gone: dict[str, int], clocks: Stairs) -> None:
    torch.manual_seed(0)
    found = study(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 2)).eval(), torch.randn(2, 8))
    points, costs = ((SVD(), (8,)), None), np.array([1, 2])
    curve = Curve(points, ErrorCurve(((8,), None), costs, np.zeros(2)), 0.0)
    rows = {"2.weight": found.decomposable["2"]}
    weighing = timed_weighing(found.model, rows, {"2.weight": curve}, removals(found), found.predicted_latency())
    steps = {name: removal.counts.tolist().index(gone.get(name, 0)) for name, removal in weighing.removals.items()}
    cut = found.cut_of({name: range(count) for name, count in gone.items()})
    small = draft_with_factors(cut, [Factorize("2", "svd", (8,))])
    taken = study(small, torch.randn(2, 8)).predicted_latency().dense_ms
    assert weighing.told(Choice(steps, {"2.weight": 0})).cost == pytest.approx(taken, rel=0.02)
    assert weighing.told(Choice(steps, {"2.weight": 1})).cost == pytest.approx(found.predicted_latency().ms(cut), rel=0.02)


def test_groups_go_in_steps_that_save_time() -> None:
    found = study(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 18), nn.ReLU(), nn.Linear(18, 2)).eval(), DATA[:2, :8])
    kept = {name: (removal.group.size - even(removal).counts).tolist() for name, removal in removals(found).items()}
    assert kept == {"0": [64, 56, 48, 40, 32, 24, 16, 8], "2": [18, 16, 12, 8, 4]}


def test_factors_and_the_layer_cost_what_is_left_of_them() -> None:
    half = Steps(np.array([0.5, 1.0]), np.array([0.8, 1.0]))
    layer = TimeStairs(10.0, {2: Steps(np.array([0.5, 1.0]), np.array([0.4, 1.0]))})
    ranks = TimedRanks(((SVD(), (4,)), None), np.zeros(2), np.array([2.0, 0]), np.array([1.0, 0]), np.array([3.0, 0]), half, half, layer)
    left = {1: 0.5, 0: 1.0, 2: 0.75}
    assert ranks.costs(left).tolist() == pytest.approx([2 * 0.8 + 1 + 3, 7.0])
    assert [float(ranks.costs(left, at)) for at in (0, 1)] == pytest.approx([5.6, 7.0])
    assert float(ranks.costs({1: 1.0, 0: 0.75, 2: 1.0}, 0)) == pytest.approx(2 + 1 + 3 * 0.9)
    many = ranks.costs({1: np.array([0.5, 1.0]), 0: 1.0, 2: np.array([0.5, 1.0])}, 1)
    assert many.tolist() == pytest.approx([4.0, 10.0])


def test_ranks_are_no_larger_than_what_is_left_of_a_layer() -> None:
    wish = Decompose(fit="inputs")
    small = nn.ModuleDict({"wide": nn.Conv2d(12, 64, 3), "narrow": nn.Conv2d(2, 2, 3)})
    edit = _fitting(small, "wide", (sc.Tucker(), (32, 16)), wish)
    assert edit is not None
    assert edit.rank == (12, 16)
    assert _fitting(small, "narrow", (sc.Tucker(), (32, 16)), wish) is None


def test_the_least_choice_takes_the_least_time(clocks: Stairs) -> None:
    found = study(Joined().eval(), torch.randn(1, 3, 6, 6))
    weighing: Weighing = timed_weighing(found.model, {}, {}, removals(found), found.predicted_latency())
    assert all(step == len(weighing.removals[name].counts) - 1 for name, step in weighing.least.steps.items())
