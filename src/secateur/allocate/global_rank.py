"""One ranking for all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.allocate.allocator import smallest
from secateur.allocate.ladder import Ladder


@dataclass(frozen=True)
class GlobalRank:
    """Compare the scores of all groups directly, and remove the lowest.

    Which layers suffer is decided by how scores were normalised: shares of a layer's sum make wide layers cheap,
    standard scores treat all layers nearly alike.
    """

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        return smallest(ladders, [each.scores for each in ladders], ratio)
