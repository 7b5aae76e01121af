"""Channels by what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from score.by_hand import group, member
from secateur.allocate import Isomorphic, Knapsack, Options, allocate, priced, settled
from secateur.study import study
from secateur.target import Target

MADE = group("made", 4, members=[member("a.weight", range(4))])
READ = group("read", 4, members=[member("b.weight", range(4)), member("c.weight", range(4), dim=1, role="reads", length=8)])
COSTS = {"a.weight": 40.0, "b.weight": 20.0, "c.weight": 100.0}


def test_scores_are_divided_by_what_goes_with_a_channel() -> None:
    # A channel of the first group takes 40 / 4 = 10 along, one of the second 20 / 4 + 100 / 8 = 17.5.
    scores = {"made": torch.tensor([1.0, 2, 3, 4]), "read": torch.tensor([1.7, 3.6, 5.3, 20])}
    order = [("read", 0), ("made", 0), ("made", 1), ("read", 1), ("made", 2), ("read", 2)]
    for count in range(1, 7):
        found = allocate([MADE, READ], scores, ratio=count / 8, allocator=Knapsack(costs=COSTS))
        assert {(name, c) for name, channels in found.remove.items() for c in channels} == set(order[:count])


def test_without_costs_scores_alone_count() -> None:
    scores = {"made": torch.tensor([1.0, 2, 3, 4]), "read": torch.tensor([2.9, 6.1, 9.1, 20])}
    found = allocate([MADE, READ], scores, ratio=0.5, allocator=Knapsack())
    assert found.remove == {"made": (0, 1, 2), "read": (0,)}


def test_a_channel_saves_less_where_the_other_side_of_its_weight_is_cut() -> None:
    # Channels of both groups have places in one weight: as the first group goes, the second saves less.
    first = group("first", 4, members=[member("w", range(4))])
    second = group("second", 4, members=[member("w", range(4), dim=1, role="reads"), member("v", range(4))])
    third = group("third", 4, members=[member("u", range(4))])
    scores = {"first": torch.tensor([0.0, 0, 0, 9e9]), "second": torch.full((4,), 1.5), "third": torch.full((4,), 1.2)}
    costs = {"w": 40.0, "v": 4.0, "u": 32.0}

    def removed(rounds: int) -> dict[str, tuple[int, ...]]:
        return dict(allocate([first, second, third], scores, ratio=5 / 12, allocator=Knapsack(rounds=rounds, costs=costs)).remove)

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
    assert priced(Isomorphic(Knapsack("parameters")), {"w": 1.0}, {"w": 2.0}).inner.costs == {"w": 2.0}  # type: ignore[attr-defined]
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16))
    found = study(nn.Sequential(*layers).eval(), torch.randn(1, 3, 18, 18))
    scores = {each.name: torch.ones(each.size) for each in found.groups}
    early = found.plan(scores=scores, ratio=0.25, allocator=Knapsack("macs"))
    late = found.plan(scores=scores, ratio=0.25, allocator=Knapsack("parameters"))
    assert list(early.ratios) == ["0"]
    assert list(late.ratios) == ["3"]


@pytest.mark.parametrize("target", [Target(macs=0.5), Target(parameters=0.5)], ids=str)
def test_a_target_is_met(target: Target) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3)).eval()
    found = study(model, torch.randn(1, 3, 12, 12))
    plan = found.plan(allocator=Knapsack("macs" if target.macs else "parameters"), target=target)
    (note,) = [n for n in plan.settings["notes"] if n.startswith("target")]
    assert 48 < float(note.rpartition(" ")[2].rstrip("%")) <= 50
