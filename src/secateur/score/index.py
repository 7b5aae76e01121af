"""Scores by a list of channels that are to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence


@dataclass(frozen=True)
class Index:
    """Score the listed channels 0 and all others 1."""

    remove: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    """Channels to remove by the name of the group."""

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        scores = torch.ones(group.size, dtype=torch.float64)
        scores[list(self.remove.get(group.name, ()))] = 0
        return scores
