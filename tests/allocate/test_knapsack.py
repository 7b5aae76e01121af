"""Channels by what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import nn

from score.by_hand import group, member
from secateur.allocate import Curve, Isomorphic, Knapsack, Options, Ties, Times, Uniform, allocate, priced, settled, timed
from secateur.study import study
from secateur.target import Target

MADE = group("made", 4, members=[member("a.weight", range(4))])
READ = group("read", 4, members=[member("b.weight", range(4)), member("c.weight", range(4), dim=1, role="reads", length=8)])
COSTS = {"a.weight": 40.0, "b.weight": 20.0, "c.weight": 100.0}


LINEAR = [("read", 0), ("made", 0), ("read", 1), ("made", 1), ("read", 2), ("made", 2)]
ROOT = [("made", 0), ("read", 0), ("made", 1), ("read", 1), ("made", 2), ("read", 2)]


@pytest.mark.parametrize(("power", "order"), [(1.0, LINEAR), (0.5, ROOT)])
def test_scores_are_divided_by_what_goes_with_a_channel(power: float, order: list[tuple[str, int]]) -> None:
    # A channel of the first group takes 40 / 4 = 10 along, one of the second 20 / 4 + 100 / 8 = 17.5.
    # By what is left of them the scores grow to 1, 2.22, 4.29 and to 1.7, 3.81, 6.41.
    scores = {"made": torch.tensor([1.0, 2, 3, 4]), "read": torch.tensor([1.7, 3.6, 5.3, 20])}
    for count in range(1, 7):
        found = allocate([MADE, READ], scores, ratio=count / 8, allocator=Knapsack(power=power, costs=COSTS))
        assert {(name, c) for name, channels in found.remove.items() for c in channels} == set(order[:count])


def test_a_score_weighs_more_where_less_of_its_group_is_left() -> None:
    # 1, 1 / 0.75, 1 / 0.5 in the first group; in the second hardly more than 1.5 each.
    scores = {"made": torch.tensor([1.0, 1, 1, 1]), "read": torch.tensor([1.5, 1.5, 1.5, 100])}
    found = allocate([MADE, READ], scores, ratio=5 / 8, allocator=Knapsack())
    assert {name: len(channels) for name, channels in found.remove.items()} == {"made": 2, "read": 3}


def test_channels_without_a_score_go_first() -> None:
    scores = {"made": torch.zeros(4), "read": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    found = allocate([MADE, READ], scores, ratio=0.5, allocator=Knapsack(costs=COSTS))
    assert {name: len(channels) for name, channels in found.remove.items()} == {"made": 3, "read": 1}


def test_without_costs_scores_alone_count() -> None:
    scores = {"made": torch.tensor([1.0, 2, 3, 4]), "read": torch.tensor([2.9, 6.1, 9.1, 20])}
    found = allocate([MADE, READ], scores, ratio=0.5, allocator=Knapsack())
    assert found.remove == {"made": (0, 1, 2), "read": (0,)}


def test_a_channel_saves_less_where_the_other_side_of_its_weight_is_cut() -> None:
    # Channels of both groups have places in one weight: as the first group goes, the second saves less.
    first = group("first", 4, members=[member("w", range(4))])
    second = group("second", 4, members=[member("w", range(4), dim=1, role="reads"), member("v", range(4))])
    third = group("third", 4, members=[member("u", range(4))])
    scores = {"first": torch.tensor([0.0, 0, 0, 9e9]), "second": torch.full((4,), 1.5), "third": torch.full((4,), 1.6)}
    costs = {"w": 40.0, "v": 4.0, "u": 32.0}

    def removed(rounds: int) -> dict[str, tuple[int, ...]]:
        return dict(allocate([first, second, third], scores, ratio=5 / 12, allocator=Knapsack(power=1, rounds=rounds, costs=costs)).remove)

    assert removed(0) == {"first": (0, 1, 2), "second": (0, 1)}
    assert removed(3) == {"first": (0, 1, 2), "third": (0, 1)}


def test_heads_of_several_channels_are_compared_by_the_mean_of_a_channel() -> None:
    heads = group("heads", 8, cells=[0] * 4 + [1] * 4, members=[member("a.weight", range(8))])
    plain = group("plain", 8, members=[member("b.weight", range(8))])
    scores = {"heads": torch.arange(8.0) % 4, "plain": torch.arange(8.0) / 2 + 0.25}
    found = allocate([heads, plain], scores, ratio=0.5, allocator=Knapsack(costs={"a.weight": 8.0, "b.weight": 8.0}))
    assert found.remove == {"heads": (0, 1, 4, 5), "plain": (0, 1, 2, 3)}


def test_normalised_scores_are_refused_by_settling_the_options() -> None:
    assert settled(Knapsack(), Options()) == (Options(layer_norm="none"), ())
    options, notes = settled(Isomorphic(Knapsack()), Options(layer_norm="tss_norm"))
    assert options == Options(layer_norm="none")
    assert "tss_norm" in notes[0]


def test_a_plan_tells_what_the_weights_cost() -> None:
    assert priced(Isomorphic(Knapsack("parameters")), {"macs": {"w": 1.0}, "parameters": {"w": 2.0}}).inner.costs == {"w": 2.0}  # type: ignore[attr-defined]
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))
    found = study(nn.Sequential(*layers).eval(), torch.randn(1, 3, 18, 18))
    scores = {each.name: torch.ones(each.size) for each in found.groups}
    early = found.plan(scores=scores, ratio=0.25, allocator=Knapsack("macs"))
    late = found.plan(scores=scores, ratio=0.25, allocator=Knapsack("parameters"))
    assert early.ratios["0"] > early.ratios.get("3", 0)
    assert late.ratios["3"] > late.ratios.get("0", 0)


@pytest.mark.parametrize("target", [Target(macs=0.5), Target(parameters=0.5)], ids=str)
def test_a_target_is_met(target: Target) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    found = study(model, torch.randn(1, 3, 12, 12))
    plan = found.plan(allocator=Knapsack("macs" if target.macs else "parameters"), target=target)
    (note,) = [n for n in plan.settings["notes"] if n.startswith("target")]
    assert 48 < float(note.rpartition(" ")[2].rstrip("%")) <= 50


def stairs(*ms: float) -> Times:
    """The time of a group of as many channels, from all of them down to one, the other group taking none."""

    def times(left: Mapping[str, float]) -> Mapping[str, Curve]:
        return {"made": Curve(1 - np.arange(len(ms)) / len(ms), np.array(ms)), "read": Curve(np.array([1.0]), np.array([0.0]))}

    return times


def by_time(ms: Sequence[float], scores: Sequence[float], count: int, *, first: float = 3.9) -> int:
    """How many of the first group's four channels go, of so many in all; the other group loses so much with its first."""
    given = {"made": torch.tensor(scores), "read": torch.tensor([first, 5.9, 8.9, 99.0])}
    flat = Curve(np.array([1.0, 0.75, 0.5, 0.25]), np.array([4.0, 3.0, 2.0, 1.0]))
    knapsack = Knapsack("latency", times=lambda left: {**stairs(*ms)(left), "read": flat})
    return len(allocate([MADE, READ], given, ratio=count / 8, allocator=knapsack).remove.get("made", ()))


def test_channels_go_by_what_they_lose_for_a_millisecond() -> None:
    # The first group loses 2, 4 and 6 a millisecond, the second 3.9, 5.9 and 8.9.
    assert [by_time([8.0, 7.0, 6.0, 5.0], [2.0, 4.0, 6.0, 9.0], count) for count in range(7)] == [0, 1, 1, 2, 2, 3, 3]


def test_channels_that_save_nothing_alone_go_together_with_those_that_do() -> None:
    # A first channel saves nothing, two save 2 ms for 2 + 4 (slope 3), and three 3 ms for 12 (slope 6).
    assert [by_time([8.0, 8.0, 6.0, 5.0], [2.0, 4.0, 6.0, 9.0], count) for count in range(7)] == [0, 1, 2, 2, 2, 3, 3]


def test_a_step_that_is_worth_it_takes_those_before_it_along() -> None:
    # Three channels save 6 ms for 12 (slope 2), which is better than the first alone (slope 2.5).
    assert [by_time([8.0, 7.2, 7.0, 2.0], [2.0, 4.0, 6.0, 9.0], count) for count in range(5)] == [0, 1, 2, 3, 3]
    assert [by_time([8.0, 7.2, 7.0, 2.0], [2.0, 4.0, 6.0, 9.0], count, first=1.95) for count in range(5)] == [0, 0, 1, 2, 3]


def test_what_saves_no_time_goes_last() -> None:
    assert [by_time([8.0, 8.0, 8.0, 8.0], [0.0, 0.0, 0.0, 0.0], count) for count in (3, 4, 6)] == [0, 1, 3]


def test_groups_that_keep_alike_save_the_times_of_each() -> None:
    other = group("other", 4, members=[member("d.weight", range(4))])
    scores = {name: torch.tensor([2.0, 4.0, 6.0, 9.0]) for name in ("made", "read", "other")}
    curve = stairs(8.0, 7.0, 6.0, 5.0)({})["made"]
    alone = Curve(curve.parts, 8 - 0.75 * np.arange(4))  # loses more for its time than both together, and less than one alone
    knapsack = Knapsack("latency", times=lambda left: {"made": curve, "read": curve, "other": alone})
    tied = allocate([MADE, READ, other], scores, ratio=2 / 12, allocator=knapsack, ties=Ties((("made", "read"),)))
    assert tied.remove == {"made": (0,), "read": (0,)}


def test_times_are_taken_where_latency_is_the_cost() -> None:
    times = stairs(1.0)
    assert timed(Isomorphic(Knapsack("latency")), times).inner.times is times  # type: ignore[attr-defined]
    assert timed(Knapsack("macs"), times) == Knapsack("macs")
    assert timed(Knapsack("macs"), times).times is None  # type: ignore[attr-defined]
    assert timed(Uniform(), times) == Uniform()
