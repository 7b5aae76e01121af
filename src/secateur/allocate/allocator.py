"""How a ratio for the whole model is spread over its groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from secateur.allocate.ladder import Ladder, Scores
from secateur.allocate.options import Options

Costs = Mapping[str, float]
"""Multiply-adds, elements, or bytes of each weight by its name."""
Prices = Mapping[str, Costs]
"""Such costs by what they are of: ``macs``, ``parameters``, ``bytes``."""


@dataclass(frozen=True, eq=False)
class Curve:
    """How long the calls take in which a group's channels take part, by how many of these are left."""

    parts: Scores
    """Parts of the channels, all of them first."""
    ms: Scores


Times = Callable[[Mapping[str, float]], Mapping[str, Curve]]
"""The curve of each group where of the others these parts of their channels are left (all, of those not named)."""


class Allocator(Protocol):
    """A way of spreading one ratio over groups.

    The candidates are the steps of the ladders, so that a channel counts once however many layers share it, and the
    same channel of all heads counts once too. A larger ratio never takes fewer in total. Counts need not be legal yet:
    :func:`~secateur.allocate.constraints.settle` sees to that.
    """

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        ...


def settled(allocator: Allocator, options: Options) -> tuple[Options, tuple[str, ...]]:
    """The options under which an allocator makes sense, to be settled before channels are scored, and a note on what changed."""
    settle: Callable[[Options], tuple[Options, tuple[str, ...]]] | None = getattr(allocator, "settled", None)
    return (options, ()) if settle is None else settle(options)


def priced(allocator: Allocator, costs: Prices) -> Allocator:
    """The allocator with what the weights of a model cost, where it wants to know."""
    price: Callable[[Prices], Allocator] | None = getattr(allocator, "priced", None)
    return allocator if price is None else price(costs)


def timed(allocator: Allocator, times: Times) -> Allocator:
    """The allocator with what widths cost in time, where it wants to know."""
    take: Callable[[Times], Allocator] | None = getattr(allocator, "timed", None)
    return allocator if take is None else take(times)


def smallest(ladders: Sequence[Ladder], costs: Sequence[Scores], ratio: float) -> dict[str, int]:
    """Take the cheapest candidates of all groups together, the given ratio of them.

    What a group cannot give because something of it must stay is taken from the next cheapest elsewhere.
    """
    wanted = math.floor(ratio * sum(each.scores.size for each in ladders) + 0.5 + 1e-9)
    offered = [cost[: each.most] for each, cost in zip(ladders, costs, strict=True)]
    owner = np.repeat(np.arange(len(ladders)), [offer.size for offer in offered])
    chosen = owner[np.argsort(np.concatenate([np.zeros(0), *offered]), kind="stable")[:wanted]]
    counts = np.bincount(chosen, minlength=len(ladders)).tolist()
    return {each.name: count for each, count in zip(ladders, counts, strict=False)}
