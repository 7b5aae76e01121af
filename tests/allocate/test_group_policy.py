from __future__ import annotations

import numpy as np
import pytest

from score.by_hand import group
from secateur.allocate.ladder import Ladder, ladder
from secateur.allocate.pool import living
from secateur.score import GroupPolicy

# Two heads of four channels. Sums over heads: 9, 5, 8, 6.
SCORES = np.array([1.0, 2, 3, 4, 8, 3, 5, 2])


def heads(policy: GroupPolicy) -> Ladder:
    return ladder(living(group(size=8, cells=[0] * 4 + [1] * 4), {}), SCORES, policy)


@pytest.mark.parametrize(
    ("policy", "ratio", "removed"),
    [
        ("sum", 0.5, (1, 3, 5, 7)),
        ("average", 0.5, (1, 3, 5, 7)),
        ("average", 0.74, (1, 3, 5, 7)),
        ("none", 0.5, (0, 1, 5, 7)),
        # Of the four lowest scores (1, 2, 2, 3) the first head holds three (the earlier of equals) and the second one.
        ("count", 0.5, (0, 7)),
        ("count", 0.75, (0, 1, 5, 7)),
        ("count", 0.2, ()),
        ("none", 0.2, ()),
    ],
)
def test_which_channels_go(policy: GroupPolicy, ratio: float, removed: tuple[int, ...]) -> None:
    each = heads(policy)
    assert each.removed(each.steps_for(ratio)) == removed


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("sum", [5, 6, 8, 9]), ("average", [2.5, 3, 4, 4.5]), ("none", [1.5, 2.5, 4, 6]), ("count", [2, 3, 5, 8])],
)
def test_what_each_step_costs_next_to_other_layers(policy: GroupPolicy, expected: list[float]) -> None:
    assert heads(policy).scores.tolist() == expected


def test_reshaped_heads_are_thinned_to_half() -> None:
    each = ladder(
        living(group(size=768, cells=[c for c in range(12) for _ in range(64)]), {}), np.random.default_rng(0).random(768), "none"
    )
    removed = np.array(each.removed(each.steps_for(0.5)))
    assert np.bincount(removed // 64).tolist() == [32] * 12


def test_without_heads_all_policies_agree() -> None:
    scores = np.array([3.0, 1, 2, 5])
    for policy in ("sum", "average", "none", "count"):
        each = ladder(living(group(), {}), scores, policy)
        assert each.removed(each.steps_for(0.5)) == (1, 2)
        assert each.scores.tolist() == [1, 2, 3, 5]
