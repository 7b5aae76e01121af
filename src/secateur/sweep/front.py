"""The Pareto front."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(costs: Sequence[float], gains: Sequence[float]) -> tuple[bool, ...]:
    """Whether each point is on the front: none costs no more and gains no less, and is better in one of them.

    Equal points are on it together; a gain that is no number never is.

    >>> pareto([1, 2, 3], [0.5, 0.4, 0.9])
    (True, False, True)
    """
    points = list(zip(costs, gains, strict=True))
    return tuple(gain == gain and not any(_beats(other, (cost, gain)) for other in points) for cost, gain in points)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other
