"""Score a channel by the length of all weights that it has a place in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence, precise


@dataclass(frozen=True)
class GroupNorm:
    """Score a channel by the squared length of the weights that make it and of those that read it, each relative to its mean.

        s_c = sum_{W that make or read c} ||W_c||^2 / mean_c' ||W_c'||^2

    A weight counts by how unevenly its channels share it, not by its scale, so that the scores of all groups compare; channels of a
    residual stream, in which many weights have a place, score higher. Vectors such as biases don't count. Without data.

    Fang et al., DepGraph, CVPR 2023, for one channel in all its layers.
    """

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        total = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            weight = evidence.weights[member.tensor].detach()
            if weight.ndim > 1:
                squares = member.fold(precise(weight).square(), group.size).double().cpu()
                total += squares / squares.mean().clamp_min(torch.finfo(torch.float64).tiny)
        return evidence.combine.single(total)
