"""What a person calls a layer's channels: the channels that share their weights, and everything that goes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from secateur.groups.fields import Labels
from secateur.groups.ledger import Role

Kind = Literal["channels", "blocks"]


@dataclass(frozen=True, eq=False)
class Member:
    """The place of a group's channels in one dimension of one tensor."""

    tensor: str
    dim: int
    role: Role
    positions: Labels
    """Positions along the dimension that belong to the group (of a grouped weight: along all groups' inputs, one after the other)."""
    channels: Labels
    """The channel at each of these positions."""
    length: int
    """Length of the dimension."""
    rows: int = 1
    """Groups of a grouped convolution whose dimension 1 this is, else 1."""

    @cached_property
    def share(self) -> float:
        """The part of the dimension that belongs to the group; a position of several channels counts once."""
        return float(np.unique(self.positions).size / self.length)

    def fold(self, values: Tensor, size: int) -> Tensor:
        """Add up a tensor of the weight's shape over all but the channels: shape ``(size,)``."""
        flat = self.flatten(values).sum(1)
        out = torch.zeros(size, dtype=flat.dtype, device=flat.device)
        return out.index_add(0, torch.as_tensor(self.channels, device=flat.device), flat)

    def flatten(self, values: Tensor) -> Tensor:
        """One row for each position: shape ``(positions, rest)``; nothing but these is copied."""
        at = torch.as_tensor(self.positions, device=values.device)
        if self.rows > 1:
            shaped = values.reshape(self.rows, values.shape[0] // self.rows, *values.shape[1:]).transpose(1, 2)
            found = shaped[at // shaped.shape[1], at % shaped.shape[1]]
        else:
            found = values.movedim(self.dim, 0).index_select(0, at)
        return found.reshape(at.numel(), -1)


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are chosen among each other, each with all the places where it lives.

    ``kind`` is ``"channels"`` for single channels and ``"blocks"`` for whole heads or groups of a grouped convolution.
    Channels are numbered by their first place. Channels lie in ``cells`` (heads, groups); a legal removal takes
    ``take[c]`` channels of every living cell ``c`` for each step, at most ``steps`` times.
    """

    name: str
    kind: Kind
    classes: Labels
    """The class of each channel."""
    cells: Labels
    """The cell of each channel."""
    take: tuple[int, ...]
    """Channels of each cell that go in one step."""
    members: tuple[Member, ...]
    aliases: tuple[str, ...] = ()
    """Names of modules and weights that also stand for this group."""
    reason: str | None = None
    """Why nothing of it may go; ``None`` where it is prunable."""
    signature: str = ""
    """What kinds of places its channels have, and how many of each: equal for groups of equal topology."""

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.classes)

    @property
    def prunable(self) -> bool:
        """Whether channels may go."""
        return self.reason is None

    @property
    def rows(self) -> int:
        """Number of cells: heads or groups that keep equal counts."""
        return len(self.take)

    @property
    def layout(self) -> str:
        """How the channels lie: ``64``, or ``12 x 64`` for heads."""
        counts = set(np.bincount(self.cells, minlength=self.rows).tolist())
        return f"{self.rows} x {counts.pop()}" if self.rows > 1 and len(counts) == 1 else str(self.size)

    @cached_property
    def places(self) -> Mapping[tuple[str, int], Member]:
        """Its members by tensor and dimension."""
        return {(m.tensor, m.dim): m for m in self.members}

    @property
    def writers(self) -> tuple[Member, ...]:
        """Members that make the channels."""
        return tuple(m for m in self.members if m.role == "writes")

    def __repr__(self) -> str:
        return (
            f"ChannelGroup({self.name!r}, {self.layout} {self.kind}, {len(self.members)} members{'' if self.prunable else ', kept whole'})"
        )
