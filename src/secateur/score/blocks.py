"""Whole heads and groups of a convolution: which channels lie inside them, and what these say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from secateur.groups.distinct import distinct_pairs
from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup
from secateur.score.combine import GroupPolicy


def inside(blocks: ChannelGroup, group: ChannelGroup) -> tuple[Labels, Labels]:
    """Pairs (channel, block) of the channels of a group that have a place in a block."""
    if blocks.places.keys().isdisjoint(group.places):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    pairs = []
    for member in group.members:
        holder = blocks.places.get((member.tensor, member.dim))
        if holder is not None:
            block_at = np.full(holder.length, -1, dtype=np.int64)
            block_at[holder.positions] = holder.channels
            found = block_at[member.positions]
            pairs.append(np.stack([member.channels, found])[:, found >= 0])
    if not pairs:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    channels, numbers = np.concatenate(pairs, axis=1)
    return distinct_pairs(channels, numbers)


def block_scores(blocks: ChannelGroup, groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], group_policy: GroupPolicy) -> Tensor:
    """Score of each block: the sum (for ``sum``) or else the mean of what its channels got, over all groups with channels in it."""
    total = torch.zeros(blocks.size, dtype=torch.float64)
    held = 0
    for group in groups:
        channels, numbers = inside(blocks, group)
        if channels.size:
            index = torch.as_tensor(numbers)
            found = scores[group.name].detach().to("cpu", torch.float64)[torch.as_tensor(channels)]
            sums = torch.zeros(blocks.size, dtype=torch.float64).index_add_(0, index, found)
            counts = torch.bincount(index, minlength=blocks.size).clamp(min=1)
            total += sums if group_policy == "sum" else sums / counts
            held += 1
    return total if group_policy == "sum" else total / max(held, 1)
