"""The channels of a group among which may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup

Gone = Mapping[tuple[str, int], NDArray[np.bool_]]
"""Positions of each dimension of each weight that go with removed blocks."""


@dataclass(frozen=True, eq=False)
class Pool:
    """The living channels of a group by living cell: those that did not fall with a removed block."""

    group: ChannelGroup
    cells: tuple[Labels, ...]
    """Channels of each cell, in order."""
    take: tuple[int, ...]
    """Channels of each cell that go in one step."""

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def sizes(self) -> Labels:
        """Channels in each cell."""
        return np.array([cell.size for cell in self.cells], dtype=np.int64)

    @property
    def size(self) -> int:
        """Channels in all cells."""
        return int(self.sizes.sum())

    @property
    def steps(self) -> int:
        """Steps after which some cell is empty."""
        return int((self.sizes // np.array(self.take, dtype=np.int64)).min(initial=self.size))

    def most(self, minimum: int) -> int:
        """Steps that may be taken at most, so that every cell keeps something and the group at least ``minimum``."""
        take = np.array(self.take, dtype=np.int64)
        leaving_one = int(((self.sizes - 1) // take).min(initial=self.size))
        return max(0, min(leaving_one, (self.size - minimum) // max(int(take.sum()), 1)))


def living(group: ChannelGroup, gone: Gone) -> Pool:
    """The channels that are left of a group once some blocks are removed."""
    stays = ~fallen(group, gone)
    cells = [np.flatnonzero((group.cells == cell) & stays) for cell in range(group.rows)]
    alive = [(cell, take) for cell, take in zip(cells, group.take, strict=True) if cell.size]
    return Pool(group, tuple(cell for cell, _ in alive), tuple(take for _, take in alive))


def fallen(group: ChannelGroup, gone: Gone) -> NDArray[np.bool_]:
    """Which channels of a group lie in removed blocks with all of their places."""
    if not gone:
        return np.zeros(group.size, dtype=bool)
    stays = np.zeros(group.size, dtype=bool)
    for member in group.members:
        lost = gone.get((member.tensor, member.dim))
        stays[member.channels if lost is None else member.channels[~lost[member.positions]]] = True
    return ~stays


def without_blocks(gone: Gone, blocks: ChannelGroup, removed: Labels) -> Gone:
    """Add the places of some blocks to those that are gone."""
    out = dict(gone)
    for member in blocks.members:
        lost = out.get((member.tensor, member.dim), np.zeros(member.length, dtype=bool)).copy()
        lost[member.positions[np.isin(member.channels, removed)]] = True
        out[member.tensor, member.dim] = lost
    return out
