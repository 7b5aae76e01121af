"""What a criterion is, and the scores of many groups by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.groups.group import ChannelGroup
from secateur.score.blocks import block_scores
from secateur.score.combine import GroupPolicy
from secateur.score.evidence import Evidence


class Scorer(Protocol):
    """A criterion: how much each channel of a group matters; higher means keep."""

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels: shape ``(size,)``, in single precision or better."""
        ...

    def __hash__(self) -> int:
        """Criteria with the same settings are the same criterion."""
        ...


def score_groups(
    scorer: Scorer, groups: Iterable[ChannelGroup], evidence: Evidence, *, group_policy: GroupPolicy = "none"
) -> Mapping[str, Tensor]:
    """Score every prunable group; whole blocks get what the channels inside them got.

    Raises :class:`~secateur.errors.ModelError` where weights or activations that are not finite leave no score.
    """
    wanted = [g for g in groups if g.prunable]
    scores = {g.name: _finite(scorer(g, evidence), g) for g in wanted if g.kind == "channels"}
    inside = [g for g in wanted if g.kind == "channels"]
    return scores | {g.name: block_scores(g, inside, scores, group_policy) for g in wanted if g.kind == "blocks"}


def _finite(scores: Tensor, group: ChannelGroup) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        where = ", ".join(dict.fromkeys(m.tensor for m in group.writers[:3])) or group.name
        raise ModelError(f"The scores of {group.name!r} are not finite. Look for NaN or infinity in its weights ({where}) or activations.")
    return scores
