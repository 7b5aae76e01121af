"""What holds for every allocator; a new one joins by a row."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from score.by_hand import group
from secateur.allocate import Allocation, Allocator, GlobalRank, Isomorphic, Knapsack, Options, Slamp, Uniform, allocate, settled
from secateur.allocate.constraints import check_removal
from secateur.allocate.pool import living
from secateur.errors import SelectionError
from secateur.groups import ChannelGroup
from secateur.score import Combine, GroupPolicy

ALLOCATORS: list[Allocator] = [Uniform(), GlobalRank(), Slamp(), Isomorphic(), Isomorphic(Slamp()), Isomorphic(Uniform()), Knapsack()]
GROUPS = [
    group("plain", 12, signature="a"),
    group("wide", 40, signature="a"),
    group("heads", 24, cells=[c for c in range(3) for _ in range(8)], signature="b"),
    group("unlike", 9, cells=[0] * 3 + [1] * 6, take=(1, 2), signature="b"),
    group("one", 1, signature="a"),
    group("whole", 7, reason="reaches the model's output"),
]


def scores(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in GROUPS}


def total(found: Allocation) -> int:
    return sum(map(len, found.remove.values()))


@pytest.mark.parametrize("policy", get_args(GroupPolicy))
@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_what_goes_is_legal_at_every_ratio(allocator: Allocator, policy: GroupPolicy) -> None:
    before = -1
    for ratio in np.linspace(0.05, 0.95, 10).tolist():
        found = allocate(GROUPS, scores(), ratio=ratio, allocator=allocator, options=Options(group_policy=policy))
        for each in GROUPS:
            removed = found.remove.get(each.name, ())
            check_removal(each, removed, living(each, {}))
            assert len(removed) < each.size
        assert "whole" not in found.remove
        assert total(found) >= before
        before = total(found)
    assert before > 40


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_steps_and_the_minimum_hold_for_every_allocator(allocator: Allocator) -> None:
    options = Options(step_size=4, minimum=8)
    found = allocate(GROUPS, scores(), ratio=0.6, allocator=allocator, options=options)
    for each in GROUPS:
        removed = np.array(found.remove.get(each.name, ()), dtype=np.int64)
        if removed.size:
            left = np.bincount(each.cells) - np.bincount(each.cells[removed], minlength=each.rows)
            assert (left % 4 == 0).all()
            assert left.sum() >= 8
    assert total(found) > 10


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_the_lowest_scores_of_each_layer_go(allocator: Allocator) -> None:
    found = allocate(GROUPS, scores(), ratio=0.5, allocator=allocator)
    for name in ("plain", "wide"):
        removed = set(found.remove[name])
        values = scores()[name]
        assert max(values[c] for c in removed) <= min(values[c] for c in range(len(values)) if c not in removed)


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_reverse_removes_the_highest_scores(allocator: Allocator) -> None:
    found = allocate(GROUPS, scores(), ratio=0.5, allocator=allocator, options=Options(reverse=True))
    values = scores()["wide"]
    removed = set(found.remove["wide"])
    assert min(values[c] for c in removed) >= max(values[c] for c in range(40) if c not in removed)


X, F, G = (torch.tensor(v, dtype=torch.float64) for v in ([11, 19, 38, 25, 46], [20, 12, 18, 16, 39], [13, 22, 16, 29, 17]))
ADD = [(np.arange(5), s) for s in (X, F)]
SUMS = torch.tensor([25.0, 22, 64, 43, 58], dtype=torch.float64)


@pytest.mark.parametrize(
    ("policy", "add", "other"),
    [("average", (0, 1, 3), (0, 2)), ("sum", (1,), (0, 1, 2, 4)), ("backward", (0, 1), (0, 2, 4))],
)
def test_half_of_a_sum_and_a_plain_layer(policy: str, add: tuple[int, ...], other: tuple[int, ...]) -> None:
    combine = Combine(policy, "tss_norm")  # type: ignore[arg-type]
    joined = combine.single(SUMS) if policy == "backward" else combine(5, ADD)
    found = allocate([group("add", 5), group("g", 5)], {"add": joined, "g": combine.single(G)}, ratio=0.5, allocator=GlobalRank())
    assert found.remove == {"add": add, "g": other}


def test_a_ratio_for_the_sum_alone() -> None:
    joined = Combine("average", "tss_norm")(5, ADD)
    found = allocate([group("add", 5), group("g", 5)], {"add": joined}, ratios={"add": 0.4})
    assert found.remove == {"add": (0, 1)}


def test_what_must_stay_is_made_up_for_elsewhere() -> None:
    groups = [group("low", 4), group("high", 8)]
    values = {"low": torch.arange(4.0), "high": 10 + torch.arange(8.0)}
    found = allocate(groups, values, ratio=0.5, allocator=GlobalRank())
    assert found.remove == {"low": (0, 1, 2), "high": (0, 1, 2)}
    found = allocate(groups, values, ratio=0.5, allocator=GlobalRank(), options=Options(minimum=3))
    assert found.remove == {"low": (0,), "high": (0, 1, 2, 3, 4)}


def test_slamp_by_hand() -> None:
    # Squares of a are 1, 4, 9, 16 and of b 25, 36, 49, 64, so shares of what is left are
    # 1/30, 4/29, 9/25, 1 and 25/174, 36/149, 49/113, 1.
    groups = [group("a", 4), group("b", 4)]
    values = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.tensor([5.0, 6, 7, 8])}
    order = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("b", 2)]
    for count in range(1, 7):
        found = allocate(groups, values, ratio=count / 8, allocator=Slamp())
        assert {(n, c) for n, cs in found.remove.items() for c in cs} == set(order[:count])


def test_slamp_does_not_see_the_scale_of_a_layer() -> None:
    groups = [group("a", 20), group("b", 20)]
    values = {"a": torch.rand(20), "b": torch.rand(20)}
    scaled = {"a": 1000 * values["a"], "b": values["b"]}
    first, second = (allocate(groups, v, ratio=0.4, allocator=Slamp()).remove for v in (values, scaled))
    assert first == second


def test_slamp_refuses_negative_scores_and_settles_options() -> None:
    with pytest.raises(SelectionError, match="negative"):
        allocate([group()], {"layer": torch.tensor([-1.0, 1, 2, 3])}, ratio=0.5, allocator=Slamp())
    options, notes = settled(Slamp(), Options(layer_norm="standard_score"))
    assert options.layer_norm == "tss_norm"
    assert "standard_score" in notes[0]
    assert settled(Isomorphic(Slamp()), Options(layer_norm="softmax_norm")) == (
        Options(layer_norm="tss_norm"),
        (notes[0].replace("standard_score", "softmax_norm"),),
    )
    for allocator, fine in ((Slamp(), Options(layer_norm="none")), (GlobalRank(), Options()), (Isomorphic(), Options())):
        assert settled(allocator, fine) == (fine, ())


def test_slamp_of_layers_without_any_weight() -> None:
    values = {"a": torch.zeros(4), "b": torch.rand(4)}
    found = allocate([group("a", 4), group("b", 4)], values, ratio=0.25, allocator=Slamp())
    assert found.remove == {"a": (0, 1)}


def test_isomorphic_ranking_never_compares_unlike_groups() -> None:
    groups = [group("a1", 4, signature="a"), group("a2", 4, signature="a"), group("b", 8, signature="b")]
    values = {"a1": torch.arange(4.0), "a2": 10 + torch.arange(4.0), "b": 100 + torch.arange(8.0)}
    found = allocate(groups, values, ratio=0.25, allocator=Isomorphic())
    assert found.remove == {"a1": (0, 1), "b": (0, 1)}
    assert allocate(groups, values, ratio=0.25, allocator=GlobalRank()).remove == {"a1": (0, 1, 2), "a2": (0,)}


def test_heads_count_once_however_many_there_are() -> None:
    groups = [group("heads", 16, cells=[c for c in range(4) for _ in range(4)]), group("plain", 4)]
    values = {"heads": torch.arange(16.0) + 100, "plain": torch.arange(4.0)}
    found = allocate(groups, values, ratio=0.5, allocator=GlobalRank())
    assert {n: len(c) for n, c in found.remove.items()} == {"heads": 4, "plain": 3}


def test_equal_scores_fall_by_number() -> None:
    values = {g.name: torch.ones(g.size) for g in GROUPS}
    for first, second in itertools.pairwise(
        allocate(GROUPS, values, ratio=0.5, allocator=a).remove["plain"] for a in (Uniform(), Uniform())
    ):
        assert first == second == (0, 1, 2, 3, 4, 5)


def chosen(groups: list[ChannelGroup], values: dict[str, Tensor], **wishes: object) -> dict[str, tuple[int, ...]]:
    return dict(allocate(groups, values, **wishes).remove)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [1.0, 1, 1.5, -0.1, float("nan"), True, "0.5"])
def test_a_ratio_outside_zero_to_one_is_refused(ratio: object) -> None:
    for wish in ({"ratio": ratio}, {"ratios": {"plain": ratio}}, {"heads": {"b.heads": ratio}}):
        groups = [*GROUPS, group("b.heads", 2, kind="blocks")]
        with pytest.raises(SelectionError, match="ratio"):
            chosen(groups, scores(), **wish)


@pytest.mark.parametrize("values", [torch.tensor([1.0, float("nan"), 2, 3]), torch.ones(3), torch.ones(4, 1)])
def test_scores_that_cannot_be_ranked_are_refused(values: Tensor) -> None:
    with pytest.raises(SelectionError, match="scores of 'layer'"):
        chosen([group()], {"layer": values}, ratio=0.5)


def test_nothing_asked_and_nothing_to_prune_are_errors() -> None:
    with pytest.raises(SelectionError, match="Nothing says"):
        chosen(GROUPS, scores())
    with pytest.raises(SelectionError, match="No layer of this model can be pruned: reaches the model's output"):
        chosen([GROUPS[-1]], {}, ratio=0.5)
    with pytest.raises(SelectionError, match="no scores"):
        chosen(GROUPS, {}, ratio=0.5)


def test_a_selection_that_removes_nothing_says_so() -> None:
    found = allocate(GROUPS, scores(), ratios={"plain": 0.05})
    assert found.remove == {}
    assert found.notes == ("plain: removes nothing: 0.05 of 12 channels is less than one", "Nothing is removed.")


def test_a_ratio_below_one_channel_is_rounded_to_the_step_too() -> None:
    names = {g.name for g in GROUPS if g.prunable and g.kind == "channels"}
    for wish in ({"ratio": 0.01}, {"ratios": {"plain": 0.01}}):
        found = allocate(GROUPS, scores(), **wish, options=Options(step_size=8, step_op="round_down"))
        assert len(found.remove["plain"]) == 4
        assert names >= set(found.remove)
    ranked = allocate(GROUPS, scores(), ratio=0.001, allocator=GlobalRank(), options=Options(step_size=8, step_op="round_down"))
    assert ranked.remove == {}


@pytest.mark.parametrize(
    "settings",
    [{"policy": "max"}, {"layer_norm": "l1"}, {"group_policy": "min"}, {"step_op": "floor"}, {"reshape_channel_axis": 2}]
    + [{name: value} for name in ("step_size", "minimum") for value in (0, -1, 1.5, True)],
)
def test_options_without_meaning_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SelectionError, match=next(iter(settings))):
        Options(**settings)  # type: ignore[arg-type]
