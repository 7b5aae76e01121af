"""The ratio at which a target is reached, found by bisection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from secateur.allocate import Allocation
from secateur.errors import SelectionError
from secateur.measure.macs import MacCount
from secateur.target.candidates import Candidates
from secateur.target.latency import Stopwatch, reach_latency
from secateur.target.sizes import remaining
from secateur.target.target import Target

MOST = 1.0 - 1e-6
"""The largest ratio: all that may go."""
HALVINGS = 14
FAR = 0.01
"""A target that is missed by more is searched for again, without the step that leads past it."""
HELD = 4
"""Steps that are given up at most."""
NEAR = 0.001
"""A target that is missed by less is met: there is no search group by group."""


def reach(
    target: Target, candidates: Candidates, macs: MacCount, *, ratio: float | None = None, stopwatch: Stopwatch | None = None
) -> Allocation:
    """The allocation that leaves most while it stays within the target.

    Raises :class:`~secateur.errors.SelectionError` where even all that may go leaves more than the target allows.
    """
    if ratio is not None:
        raise SelectionError("Give a ratio or a target, not both: the target finds the ratio.")
    if target.quantity == "latency":
        return reach_latency(target, candidates, stopwatch or Stopwatch())
    return _Search(target, candidates, macs).run()


@dataclass(frozen=True, eq=False)
class _Found:
    """The best allocation of a search."""

    left: float
    allocation: Allocation
    last: tuple[str, tuple[int, ...]] | None = None
    """The group whose next step leads from beyond the target to within it, and what it loses before that step."""


class _Search:
    """Bisection on the ratio for all groups, then on how many groups have the larger of the last two ratios.

    Where that stays far from the target, one step of one group is to blame: the search is repeated without that step.
    """

    def __init__(self, target: Target, candidates: Candidates, macs: MacCount) -> None:
        self.target, self.candidates, self.macs = target, candidates, macs

    def run(self) -> Allocation:
        best = found = self._search()
        for _ in range(HELD):
            if self.target.fraction - best.left <= FAR or found.last is None:
                break
            self.candidates = self.candidates.holding(*found.last)
            try:
                found = self._search()
            except SelectionError:
                break
            best = max(best, found, key=lambda each: each.left)
        note = f"target {self.target.fraction:.1%}, predicted {best.left:.1%}"
        return replace(best.allocation, notes=(*best.allocation.notes, note))

    def _search(self) -> _Found:
        (left, within), over = self._by_ratio()
        return self._by_group(left, within, over)

    def _left(self, allocation: Allocation) -> float:
        return remaining(self.target, self.candidates.cut(allocation), self.macs)

    def _by_ratio(self) -> tuple[tuple[float, Allocation], Allocation]:
        """The best allocation within the target, and the one beyond it at the next smaller ratio."""
        low, high, over = 0.0, MOST, Allocation({})
        best: tuple[float, Allocation] | None = None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            allocation = self.candidates.at(middle)
            left = self._left(allocation)
            if left <= self.target.fraction:
                high = middle
                best = max(best or (left, allocation), (left, allocation), key=lambda found: found[0])
            else:
                low, over = middle, allocation
        if best is None:
            raise SelectionError(f"{self.target} cannot be reached: with all that may go, {left:.1%} remain.")
        return best, over

    def _by_group(self, left: float, within: Allocation, over: Allocation) -> _Found:
        """Leave groups at the smaller ratio, as many as the target allows."""
        best = left, within
        names = self.candidates.between(over, within) if self.target.fraction - left > NEAR else ()
        low, high = 0, len(names)
        while high - low > 1:
            middle = (low + high) // 2
            allocation = self.candidates.mixed(over, within, middle)
            share = self._left(allocation)
            if share <= self.target.fraction:
                high, best = middle, max(best, (share, allocation), key=lambda found: found[0])
            else:
                low = middle
        last = names[high - 1] if names else None
        return _Found(*best, None if last is None else (last, over.remove.get(last, ())))
