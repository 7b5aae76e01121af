"""The same ratio for every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateur.allocate.ladder import Ladder


@dataclass(frozen=True)
class Uniform:
    """Remove the same ratio of every group, rounded down."""

    def __call__(self, ladders: Sequence[Ladder], ratio: float) -> Mapping[str, int]:
        """Steps to take of each group, by name."""
        return {each.name: each.steps_for(ratio) for each in ladders}
