from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from score.by_hand import group
from secateur.allocate import Options, even_step
from secateur.allocate.constraints import settle
from secateur.allocate.ladder import Ladder, ladder
from secateur.allocate.options import StepOp
from secateur.allocate.pool import living
from secateur.groups import ChannelGroup


def ladder_of(each: ChannelGroup, minimum: int = 1) -> Ladder:
    return ladder(living(each, {}), np.arange(each.size, dtype=np.float64), "none", minimum=minimum)


def kept(size: int, ratio: float, options: Options, cells: int = 1) -> int:
    """Channels that stay of each cell."""
    each = ladder_of(group(size=size * cells, cells=[c for c in range(cells) for _ in range(size)]), options.minimum)
    steps, _ = settle(each, each.steps_for(ratio), options)
    return size - steps


def by_formula(size: int, ratio: float, step: int, op: str) -> int:
    left = size - math.floor(size * ratio + 1e-9)
    rounded = {
        "round": step * math.floor(left / step + 0.5),
        "round_up": step * math.ceil(left / step),
        "round_down": step * math.floor(left / step),
        "none": left,
    }[op]
    low = 1 if op == "none" else min(step, size)
    return min(max(rounded, low), size)


@pytest.mark.parametrize("op", get_args(StepOp))
@pytest.mark.parametrize("step", [1, 2, 3, 8, 16])
def test_counts_follow_the_formula(step: int, op: StepOp) -> None:
    options = Options(step_size=step, step_op=op)
    for size in range(1, 41):
        for tenths in range(1, 10):
            ratio = tenths / 10
            for cells in (1, 3):
                assert kept(size, ratio, options, cells) == by_formula(size, ratio, step, op), (size, ratio, cells)


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [(64, 0.7, 20), (64, 0.6, 26), (64, 0.4, 39), (64, 0.2, 52), (192, 0.203, 154), (384, 0.2005, 308), (768, 0.3, 538), (3072, 0.3, 2151)],
)
def test_the_number_removed_is_rounded_down(size: int, ratio: float, expected: int) -> None:
    assert kept(size, ratio, Options()) == expected


@pytest.mark.parametrize(("size", "ratio", "removed"), [(100, 0.29, 29), (10, 0.7, 7), (50, 0.58, 29), (3, 1 / 3, 1)])
def test_rounding_of_products_does_not_lose_a_channel(size: int, ratio: float, removed: int) -> None:
    assert ladder_of(group(size=size)).steps_for(ratio) == removed


def test_halves_are_rounded_up_not_to_even() -> None:
    assert kept(20, 0.5, Options(step_size=4)) == 12
    assert kept(12, 0.5, Options(step_size=4)) == 8


def test_a_layer_smaller_than_the_step_stays_whole_and_says_so() -> None:
    each = ladder_of(group("small", 6))
    steps, notes = settle(each, 3, Options(step_size=8))
    assert steps == 0
    assert notes == ("small: removes 0 of 6, not 3: what stays is rounded to multiples of 8 (round)",)


def test_the_minimum_holds_and_says_so() -> None:
    each = ladder_of(group("thin", 12), minimum=8)
    assert settle(each, 10, Options(minimum=8)) == (4, ("thin: removes 4 of 12, not 10: at least 8 must stay",))
    assert settle(each, 4, Options(minimum=8)) == (4, ())


def test_the_minimum_counts_all_heads_and_meets_the_step() -> None:
    each = ladder_of(group(size=24, cells=[0] * 12 + [1] * 12), minimum=9)
    steps, _ = settle(each, 11, Options(minimum=9, step_size=4))
    assert 12 - steps == 8
    assert each.most == 7


def test_cells_that_no_multiple_fits_stay_whole() -> None:
    each = ladder_of(group("odd", 7, cells=[0, 0, 0, 1, 1, 1, 1]))
    assert settle(each, 1, Options(step_size=2)) == (0, ("odd: removes 0 of 7, not 2: what stays is rounded to multiples of 2 (round)",))


def test_cells_of_unlike_sizes_lose_in_proportion() -> None:
    each = ladder_of(group(size=9, cells=[0] * 3 + [1] * 6, take=(1, 2)))
    assert each.most == 2
    assert each.steps_for(0.4) == 1
    assert each.removed(2) == (0, 1, 3, 4, 5, 6)


@pytest.mark.parametrize(("width", "step"), [(1, 1), (7, 1), (8, 2), (15, 2), (16, 4), (24, 4), (32, 4), (63, 4), (64, 8), (1000, 8)])
def test_without_a_step_widths_are_multiples_that_suit_the_layer(width: int, step: int) -> None:
    assert even_step(width) == step
    for cells in (1, 3):
        assert {kept(width, tenths / 10, Options(step_size=None), cells) % step for tenths in range(1, 10)} <= {0, width % step}
        assert kept(width, 0.4, Options(step_size=None), cells) == kept(width, 0.4, Options(step_size=step), cells)
