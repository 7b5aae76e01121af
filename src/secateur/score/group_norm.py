"""Score a channel by the length of all weights that it has a place in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.groups.group import ChannelGroup, Member
from secateur.score.evidence import Evidence, occurrences, precise


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
                for channels, squares in _parts(member, member.flatten(precise(weight).square()).sum(1).double().cpu()):
                    total.index_add_(0, channels, squares / squares.mean().clamp_min(torch.finfo(torch.float64).tiny))
        return evidence.combine.single(total)


def _parts(member: Member, squares: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Channels with their squares; those that one weight makes twice, as a fused query and key projection does, one after the other."""
    if member.role == "writes":
        for picked in occurrences(member.channels):
            yield torch.as_tensor(member.channels[picked]), squares[torch.as_tensor(picked)]
    else:
        size = int(member.channels.max()) + 1
        channels = torch.as_tensor(member.channels)
        yield torch.arange(size), torch.zeros(size, dtype=torch.float64).index_add(0, channels, squares)
