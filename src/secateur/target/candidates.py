"""The allocations among which a search for a target chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from secateur.allocate import Allocation
from secateur.rewrite import Cut

MOST = 1.0 - 1e-6
"""The largest ratio: all that may go."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Allocations by ratio, and those in between where some groups already have the larger of two ratios."""

    at: Callable[[float], Allocation]
    """The legal allocation at a ratio."""
    legal: Callable[[Allocation], Allocation]
    """The nearest legal allocation to one that need not be."""
    cut_of: Callable[[Mapping[str, Iterable[int]]], Cut]
    blocks: frozenset[str] = frozenset()
    """Groups of whole heads: what others may lose depends on them, so they are never mixed."""

    def cut(self, allocation: Allocation) -> Cut:
        """The cut that an allocation asks for."""
        return self.cut_of(allocation.remove)

    def between(self, smaller: Allocation, larger: Allocation) -> tuple[str, ...]:
        """The groups in which two allocations differ, if they can be mixed."""
        names = dict.fromkeys((*smaller.remove, *larger.remove))
        differ = tuple(name for name in names if smaller.remove.get(name) != larger.remove.get(name))
        return () if self.blocks.intersection(differ) else differ

    def holding(self, name: str, channels: tuple[int, ...]) -> Candidates:
        """The candidates in which one group loses these channels at every ratio."""

        def at(ratio: float) -> Allocation:
            found = self.at(ratio)
            remove = {**found.remove, name: channels}
            notes = tuple(note for note in found.notes if _about(note) != name)
            return self.legal(Allocation({name: some for name, some in remove.items() if some}, notes))

        return replace(self, at=at)

    def mixed(self, smaller: Allocation, larger: Allocation, count: int) -> Allocation:
        """The smaller allocation, in which the first groups that differ already lose what they lose in the larger one."""
        names = self.between(smaller, larger)
        kept = names[count:]
        remove = {**larger.remove, **{name: smaller.remove.get(name, ()) for name in kept}}
        notes = [n for n in larger.notes if _about(n) not in kept] + [n for n in smaller.notes if _about(n) in kept]
        return self.legal(Allocation({name: channels for name, channels in remove.items() if channels}, tuple(notes)))


def _about(note: str) -> str:
    """The group that a note is about."""
    return note.partition(": ")[0]
