"""Scores by chance: what every criterion has to beat."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence


@dataclass(frozen=True)
class Random:
    """Draw scores evenly from [0, 1), for each group by its name and the seed, whatever the other groups are."""

    seed: int = 0

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {group.name}".encode()))
        return evidence.combine.single(torch.rand(group.size, generator=generator, dtype=torch.float64))
