"""A budget: what may remain of the dense model, and the ratio that reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from secateur.allocate import Allocation
from secateur.errors import SelectionError
from secateur.measure import count_macs
from secateur.measure.macs import MacCount
from secateur.rewrite import Cut, planned_graph
from secateur.rewrite.slices import Slices


@dataclass(frozen=True)
class Target:
    """What may remain, as a fraction of the dense model: of its MACs or of its parameters.

    Example:
        >>> Target(macs=0.5)
        Target(macs=0.5, parameters=None)
    """

    macs: float | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.macs, self.parameters) if v is not None]
        if len(given) != 1 or not 0 < given[0] < 1:
            raise SelectionError(f"A target names one of macs and parameters, as a fraction between 0 and 1 that may remain, not {self!r}.")

    @property
    def fraction(self) -> float:
        """The fraction that may remain."""
        return float(self.macs if self.macs is not None else self.parameters or 0)


def remaining(target: Target, cut: Cut, macs: MacCount) -> float:
    """The fraction of the target's measure that a cut leaves."""
    if target.macs is not None:
        return count_macs(planned_graph(cut).graph).total / max(macs.total, 1)
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    sizes = {str(n.target): capture.leaf(str(n.target)) for n in capture.graph.find_nodes(op="get_attr")}
    own = {name: t for name, t in sizes.items() if isinstance(t, nn.Parameter)}
    left = sum(slices.apply(name, t.detach().to("meta")).numel() if name in slices else t.numel() for name, t in own.items())
    return left / max(sum(t.numel() for t in own.values()), 1)


def reach(
    target: Target,
    choose: Callable[[float | None], Allocation],
    cut_of: Callable[[Mapping[str, Iterable[int]]], Cut],
    macs: MacCount,
    ratio: float | None,
) -> Allocation:
    """The allocation that leaves most while it stays within the target, by bisection on the ratio."""
    if ratio is not None:
        raise SelectionError("Give a ratio or a target, not both: the target finds the ratio.")
    low, high = 0.0, 1.0 - 1e-6
    best: tuple[float, Allocation] | None = None
    for _ in range(14):
        middle = (low + high) / 2
        allocation = choose(middle)
        left = remaining(target, cut_of(allocation.remove), macs)
        if left <= target.fraction:
            high = middle
            if best is None or left > best[0]:
                best = left, allocation
        else:
            low = middle
    if best is None:
        raise SelectionError(f"{target} cannot be reached: with all that may go, {left:.1%} remain.")
    note = f"target {target.fraction:.1%}, predicted {best[0]:.1%}"
    return replace(best[1], notes=(*best[1].notes, note))
