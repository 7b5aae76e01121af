"""The ratio at which a target is reached, found by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from secateur.allocate import Allocation, Options
from secateur.errors import SelectionError
from secateur.measure.macs import MacCount
from secateur.target.candidates import MOST, Candidates
from secateur.target.latency import Forecast, LatencySearch, Stopwatch
from secateur.target.predicted import PredictedLatency
from secateur.target.sizes import remaining
from secateur.target.target import Target

HALVINGS = 14
FAR = 0.01
"""A target that is missed by more is searched for again, without the step that leads past it."""
HELD = 4
"""Steps that are given up at most."""
COARSE = 9
"""Halvings where what is left is predicted, and measured afterwards."""
NEAR = 0.001
"""A target that is missed by less is met: there is no search group by group."""


@dataclass(frozen=True, eq=False)
class Reached:
    """The allocation for a target, and for one of latency what was predicted and measured."""

    allocation: Allocation
    forecast: Forecast | None = None
    missed: float = 0.0
    """By how much a counted target is missed: what it allows beyond what is left."""

    @property
    def told(self) -> dict[str, Any]:
        """What a plan says of it beside its notes."""
        return {} if self.forecast is None else {"latency": self.forecast.to_json()}


def reach(
    target: Target,
    candidates: Candidates,
    macs: MacCount,
    *,
    ratio: float | None = None,
    predicted: PredictedLatency | None = None,
    stopwatch: Stopwatch | None = None,
) -> Reached:
    """The allocation that leaves most while it stays within the target; for one of latency it takes what is ``predicted``.

    Raises :class:`~secateur.errors.SelectionError` where even all that may go leaves more than the target allows.
    """
    if ratio is not None:
        raise SelectionError("Give a ratio or a target, not both: the target finds the ratio.")
    if target.quantity == "latency":
        assert predicted is not None
        return _reach_latency(target, candidates, predicted, stopwatch or Stopwatch.of(target.runtime))
    found = _Search(target.fraction, candidates, lambda each: remaining(target, candidates.cut(each), macs), HALVINGS, HELD).run()
    if isinstance(found, float):
        raise SelectionError(f"{target} cannot be reached: with all that may go, {found:.1%} remain.")
    note = f"target {target.fraction:.1%}, predicted {found.left:.1%}"
    return Reached(replace(found.allocation, notes=(*found.allocation.notes, note)), missed=target.fraction - found.left)


def closest(decided: Callable[[Options], Reached], options: Options) -> tuple[Reached, Options]:
    """What is decided with these options, which it also gives; with widths that need be no multiples where a target is missed otherwise."""
    finer = replace(options, step_size=1)
    try:
        reached = decided(options)
    except SelectionError:
        if options.step_size is not None:
            raise
        return decided(finer), finer
    if options.step_size is not None or reached.missed <= FAR:
        return reached, options
    other = decided(finer)
    note = f"widths are no multiples of 8 or 4, since with such ones the target is missed by {reached.missed:.1%}"
    return replace(other, allocation=replace(other.allocation, notes=(*other.allocation.notes, note))), finer


def _reach_latency(target: Target, candidates: Candidates, predicted: PredictedLatency, stopwatch: Stopwatch) -> Reached:
    candidates = replace(candidates, at=cache(candidates.at))
    shares: dict[tuple[Any, ...], float] = {}

    def share(allocation: Allocation) -> float:
        gone = tuple(allocation.remove.items())
        if gone not in shares:
            shares[gone] = predicted.share(candidates.cut(allocation))
        return shares[gone]

    def within(part: float) -> Allocation | None:
        found = _Search(part, candidates, share, COARSE, held=0).run()
        return None if isinstance(found, float) else found.allocation

    allocation, forecast = LatencySearch(
        target,
        within,
        least=lambda: candidates.at(MOST),
        stopwatch=lambda each, **how: stopwatch(candidates.cut(each), **how),
        dense_ms=predicted.dense_ms,
        predicted_ms=lambda each: predicted.ms(candidates.cut(each)),
    ).run()
    note = f"target {target.fraction:.1%} of the dense model's latency, {forecast}"
    return Reached(replace(allocation, notes=(*allocation.notes, *predicted.times.notes, note)), forecast)


@dataclass(frozen=True, eq=False)
class _Found:
    """The best allocation of a search."""

    left: float
    allocation: Allocation
    last: tuple[str, tuple[int, ...]] | None = None
    """The group whose next step leads from beyond the target to within it, and what it loses before that step."""


@dataclass(eq=False)
class _Search:
    """Bisection on the ratio for all groups, then on how many groups have the larger of the last two ratios.

    Where that stays far from the target, one step of one group is to blame: the search is repeated without that step.
    """

    fraction: float
    """What may be left."""
    candidates: Candidates
    left: Callable[[Allocation], float]
    halvings: int
    held: int

    def run(self) -> _Found | float:
        """The best allocation, or what is left with all that may go if that is too much."""
        best = found = self._search()
        for _ in range(self.held):
            if isinstance(found, float) or self.fraction - found.left <= FAR or found.last is None:
                break
            self.candidates = self.candidates.holding(*found.last)
            found = self._search()
            if isinstance(found, _Found) and isinstance(best, _Found):
                best = max(best, found, key=lambda each: each.left)
        return best

    def _search(self) -> _Found | float:
        low, high, over = 0.0, MOST, Allocation({})
        best: tuple[float, Allocation] | None = None
        for _ in range(self.halvings):
            middle = (low + high) / 2
            allocation = self.candidates.at(middle)
            left = self.left(allocation)
            if left <= self.fraction:
                high = middle
                best = max(best or (left, allocation), (left, allocation), key=lambda found: found[0])
            else:
                low, over = middle, allocation
        return left if best is None else self._by_group(*best, over)

    def _by_group(self, left: float, within: Allocation, over: Allocation) -> _Found:
        """Leave groups at the smaller ratio, as many as the target allows."""
        best = left, within
        names = self.candidates.between(over, within) if self.fraction - left > NEAR else ()
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            allocation = self.candidates.mixed(over, within, middle)
            share = self.left(allocation)
            if share <= self.fraction:
                high, best = middle, max(best, (share, allocation), key=lambda found: found[0])
            else:
                low = middle
        last = names[high - 1] if names else None
        return _Found(*best, None if last is None else (last, over.remove.get(last, ())))
