"""Ranking among groups of equal topology only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secateur.allocate.allocator import Allocator, Prices, Times, priced, settled, timed
from secateur.allocate.global_rank import GlobalRank
from secateur.allocate.ladder import Ladder
from secateur.allocate.options import Options


@dataclass(frozen=True)
class Isomorphic:
    """Use another allocator within each set of groups of equal topology, with the same ratio in each.

    Scores of unlike groups, such as a residual stream and the inside of a block, are never compared. Fang et al., ECCV 2024.
    """

    inner: Allocator = field(default_factory=GlobalRank)

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        alike: dict[str, list[Ladder]] = defaultdict(list)
        for each in ladders:
            alike[each.pool.group.signature].append(each)
        return {name: steps for some in alike.values() for name, steps in self.inner(some, ratio).items()}

    def settled(self, options: Options) -> tuple[Options, tuple[str, ...]]:
        """The options under which the inner allocator makes sense, and a note if that changes them."""
        return settled(self.inner, options)

    def priced(self, costs: Prices) -> Isomorphic:
        """The same with the costs of a model."""
        return Isomorphic(priced(self.inner, costs))

    def timed(self, times: Times) -> Isomorphic:
        """The same with the times of a model."""
        return Isomorphic(timed(self.inner, times))
