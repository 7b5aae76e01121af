"""Which points are worth having."""

from __future__ import annotations

import math

import pytest

from secateur.sweep import pareto


@pytest.mark.parametrize(
    ("points", "on_it"),
    [
        ([(10, 0.9), (5, 0.8), (2, 0.3)], (True, True, True)),
        ([(10, 0.7), (5, 0.8), (2, 0.3)], (False, True, True)),
        ([(5, 0.8), (5, 0.7), (4, 0.8)], (False, False, True)),
        ([(5, 0.8), (5, 0.8)], (True, True)),
        ([(5, math.nan), (9, 0.1)], (False, True)),
    ],
)
def test_a_point_is_on_the_front_unless_another_one_beats_it(points: list[tuple[float, float]], on_it: tuple[bool, ...]) -> None:
    costs, gains = zip(*points, strict=True)
    assert pareto(costs, gains) == on_it
