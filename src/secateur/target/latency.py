"""A target of latency: models that a search proposes are built and timed, in turns with the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from secateur.allocate import Allocation
from secateur.errors import SelectionError
from secateur.measure import Latency, compare_latency
from secateur.rewrite import Cut, draft
from secateur.score.ranks import of_first
from secateur.target.candidates import Candidates
from secateur.target.target import Target

HALVINGS = 7
"""Widths move in steps of 1 to 2 percent, and latency in coarser ones."""

Compare = Callable[..., Mapping[str, Latency]]
"""Times models by name on the same inputs, as :func:`~secateur.measure.compare_latency` does."""


@dataclass(frozen=True)
class Timed:
    """Latencies of the dense and a smaller model, from one run."""

    dense: Latency
    compressed: Latency

    @property
    def share(self) -> float:
        """The part of the dense model's median that remains."""
        return self.compressed.median_ms / self.dense.median_ms

    def __str__(self) -> str:
        return f"{self.share:.1%}: {self.compressed}; dense {self.dense.median_ms:.3g} ms"


@dataclass(frozen=True)
class Stopwatch:
    """Times the smaller model of a cut and the dense one in turns, in a short and a longer run."""

    repeats: int = 15
    budget_s: float = 5.0
    longer: int = 3
    """How many times as long a run is that confirms another."""
    compare: Compare = compare_latency

    def __call__(self, cut: Cut, *, confirm: bool = False) -> Timed:
        """The latencies of the dense model and of the smaller one; of several processes those that the first has measured."""
        times = self.longer if confirm else 1
        source = cut.solution.walk.capture
        models: dict[str, Any] = {"dense": source.model, "compressed": draft(cut)}
        timed = self.compare(models, source.args, source.kwargs, warmup=5, repeats=self.repeats * times, budget_s=self.budget_s * times)
        return of_first(Timed(timed["dense"], timed["compressed"]))


def reach_latency(target: Target, candidates: Candidates, stopwatch: Stopwatch) -> Allocation:
    """The allocation at the smallest ratio that measures within the target, in a short run and again in a longer one.

    Latency falls in steps and is noisy, so the ratio is a good one and not the best. Raises
    :class:`~secateur.errors.SelectionError` where nothing that was tried measures within the target.
    """
    low, high = 0.0, 1.0
    best: tuple[Allocation, Timed] | None = None
    fastest: Timed | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        allocation = candidates.at(middle)
        cut = candidates.cut(allocation)
        timed = stopwatch(cut)
        if timed.share <= target.fraction:
            timed = stopwatch(cut, confirm=True)
        fastest = timed if fastest is None or timed.share < fastest.share else fastest
        if timed.share <= target.fraction:
            high, best = middle, (allocation, timed)
        else:
            low = middle
    if best is None:
        raise SelectionError(f"{target} was not reached: the fastest of the {HALVINGS} models that were timed took {fastest}.")
    note = f"target {target.fraction:.1%} of the dense model's latency, measured {best[1]}"
    return replace(best[0], notes=(*best[0].notes, note))
