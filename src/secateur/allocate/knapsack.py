"""Removal where little is lost for what it saves."""

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
"""No dimension counts as shorter than this share of its length, and no group as having less of its scores left."""

Left = Mapping[str, Mapping[int, float]]
"""The share of each dimension of each weight that stays."""


@dataclass(frozen=True)
class Knapsack:
    """Compare the channels of all groups by their scores and by the multiply-adds, parameters or bytes that go with them; the lowest go.

        s_c / (1 - share of the group's scores that went before) / saved_c^power
        saved_c = sum_{places of c} cost(W) / length of the dimension * share of the other dimensions that stays

    With power 1 and small losses this is the greedy solution of the knapsack problem of losing least within a budget, for scores that
    add up to a loss: those of :class:`~secateur.OBS`, :class:`~secateur.Taylor`, :class:`~secateur.Fisher`. But such losses are foreseen
    one layer at a time. They grow faster where little of a layer is left, which the divisor stands for; and what goes wrong in early
    layers, where a channel saves most, goes through all that follow, so savings count less. What a channel saves shrinks with the layers
    around it, so it is worked out anew for what the round before left.

    Latency falls in steps, so that some channels save nothing alone: there a group's channels are taken together from one width to
    the next that is worth it, in the order of the lower convex hull of what is lost over the milliseconds that are saved.

    Shen et al., HALP, NeurIPS 2022.
    """

    cost: Literal["macs", "parameters", "bytes", "latency"] = "macs"
    """What is to be saved. Of MACs, products of two activations are not counted."""
    power: float = 0.5
    """How much savings count: 1 compares what is lost for each unit saved, 0 what is lost alone. Latency always counts by itself."""
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
        """Scores, as they weigh once the ones before are gone, for what one channel saves on average."""
        group = ladder.pool.group
        saved = 0.0
        for member in group.members:
            others = [max(share, LEAST) for dim, share in left[member.tensor].items() if dim != member.dim]
            share = member.share / group.size
            saved += self.costs.get(member.tensor, 0.0) * share * float(np.prod(others))
        return _growing(ladder.scores) / (saved**self.power if saved else 1.0)


def _growing(scores: Scores) -> Scores:
    """Each score over the share of all of them that is left when its turn comes, ascending."""
    if not scores.size:
        return scores
    before = np.concatenate([[0.0], scores.clip(0).cumsum()])
    left = 1 - before[:-1] / max(before[-1], np.finfo(float).tiny)
    return np.asarray(np.maximum.accumulate(scores / np.maximum(left, LEAST)), dtype=np.float64)


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
