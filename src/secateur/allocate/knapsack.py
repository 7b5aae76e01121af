"""Removal where the least is lost for what it saves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from secateur.allocate.allocator import Costs, Curve, Prices, Times, smallest
from secateur.allocate.ladder import Ladder, Scores
from secateur.allocate.options import Options

LEAST = 0.02
"""No dimension counts as shorter than this share of its length, so that no channel ever comes for nothing."""

Left = Mapping[str, Mapping[int, float]]
"""The share of each dimension of each weight that stays."""


@dataclass(frozen=True)
class Knapsack:
    """Compare the channels of all groups by their score for each multiply-add, parameter or byte that goes with them; the lowest go.

        s_c / sum_{places of c} cost(W) / length of the dimension * share of the other dimensions that stays

    This is the greedy solution of the knapsack problem of losing least within a budget, for scores that add up to a loss: those of
    :class:`~secateur.OBS`, :class:`~secateur.Taylor`, :class:`~secateur.Fisher`. What a channel saves shrinks with the layers
    around it, so costs are worked out anew for what the round before left.

    Latency falls in steps, so that some channels save nothing alone: there a group's channels are taken together from one width to
    the next that is worth it, in the order of the lower convex hull of what is lost over the milliseconds that are saved.

    Shen et al., HALP, NeurIPS 2022.
    """

    cost: Literal["macs", "parameters", "bytes", "latency"] = "macs"
    """What is to be saved. Of MACs, products of two activations are not counted."""
    rounds: int = 3
    """Times that the costs are worked out anew."""
    costs: Costs = field(default_factory=dict, repr=False, compare=False)
    """The cost of each weight in the dense model, which a plan fills in; where it is not known, channels are compared by score alone."""
    times: Times | None = field(default=None, repr=False, compare=False)
    """The time that a width takes, which a plan for a target of latency fills in."""

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        taken: Mapping[str, float] = dict.fromkeys((each.name for each in ladders), 0.0)
        for number in range(self.rounds):
            found = self._greedy(ladders, ratio, taken)
            taken = {name: (taken[name] + count) / 2 if number else float(count) for name, count in found.items()}
        return self._greedy(ladders, ratio, taken)

    def priced(self, costs: Prices) -> Knapsack:
        """The same with the costs of a model; those of MACs where it is to save time."""
        return replace(self, costs=costs["macs" if self.cost == "latency" else self.cost])

    def timed(self, times: Times) -> Knapsack:
        """The same with the times of a model, if they are what it is to save."""
        return replace(self, times=times) if self.cost == "latency" else self

    @staticmethod
    def settled(options: Options) -> tuple[Options, tuple[str, ...]]:
        """The options under which scores are losses, and a note where others were set."""
        if options.layer_norm == "none":
            return options, ()
        chosen = options.layer_norm != Options().layer_norm
        note = f"knapsack divides scores by costs, so layer_norm {options.layer_norm!r} is replaced by 'none'"
        return replace(options, layer_norm="none"), (note,) if chosen else ()

    def _greedy(self, ladders: Sequence[Ladder], ratio: float, taken: Mapping[str, float]) -> dict[str, int]:
        if self.times is not None:
            curves = self.times({name: 1 - taken[each.name] * _part(each) for each in ladders for name in _names(each)})
            return smallest(ladders, [_by_time(each, [curves[n] for n in _names(each) if n in curves]) for each in ladders], ratio)
        left = _left(ladders, taken)
        return smallest(ladders, [self._by_cost(each, left) for each in ladders], ratio)

    def _by_cost(self, ladder: Ladder, left: Left) -> Scores:
        """Scores for each unit that one channel saves on average."""
        group = ladder.pool.group
        saved = 0.0
        for member in group.members:
            others = [max(share, LEAST) for dim, share in left[member.tensor].items() if dim != member.dim]
            share = member.share / group.size
            saved += self.costs.get(member.tensor, 0.0) * share * float(np.prod(others))
        return ladder.scores / saved if saved else ladder.scores


def _part(ladder: Ladder) -> float:
    """The part of a group's channels that goes in one step."""
    return sum(ladder.pool.take) / max(ladder.pool.group.size, 1)


def _names(ladder: Ladder) -> tuple[str, ...]:
    """The group's own name, and where it stands for several groups theirs, too."""
    return tuple(dict.fromkeys((ladder.name, *ladder.pool.group.aliases)))


def _by_time(ladder: Ladder, curves: Sequence[Curve]) -> Scores:
    """What each step loses for a millisecond: the slopes of the lower convex hull, infinite where nothing more is saved."""
    slopes = np.full(ladder.scores.size, np.inf)
    if not curves:
        return slopes
    parts = curves[0].parts
    saved = np.sum([each.ms[0] - np.interp(parts, each.parts[::-1], each.ms[::-1]) for each in curves], axis=0)
    steps = np.round((1 - parts) / _part(ladder)).astype(np.int64)
    steps, saved = steps[steps <= slopes.size], saved[steps <= slopes.size]
    lost = np.concatenate([[0.0], ladder.scores.cumsum() * sum(ladder.pool.take)])[steps]
    at = 0
    while (ahead := np.flatnonzero((saved > saved[at]) & (steps > steps[at]))).size:
        slope = (lost[ahead] - lost[at]) / (saved[ahead] - saved[at])
        best = int(ahead[::-1][slope[::-1].argmin()])
        slopes[steps[at] : steps[best]] = slope.min()
        at = best
    return slopes


def _left(ladders: Sequence[Ladder], taken: Mapping[str, float]) -> Left:
    left: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(lambda: 1.0))
    for each in ladders:
        gone = taken[each.name] * sum(each.pool.take) / max(each.pool.group.size, 1)
        for member in each.pool.group.members:
            left[member.tensor][member.dim] -= gone * member.share
    return left
