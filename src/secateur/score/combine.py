"""One score for a channel that several layers make together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.errors import SelectionError
from secateur.groups.fields import Labels
from secateur.score.normalize import LayerNorm, normalize

Policy = Literal["sum", "average", "backward"]
GroupPolicy = Literal["sum", "average", "count", "none"]

Part = tuple[Labels, Tensor]
"""Channels, each once, and the score that one producer gives to each of them."""


@dataclass(frozen=True)
class Combine:
    """How the scores of the producers of one group become one: each is normalised by itself, then added or averaged.

    A channel that only some producers make is added or averaged over these. ``backward`` means that the sum of all
    producers is scored, not each by itself, which only a criterion on activations can do.
    """

    policy: Policy = "average"
    layer_norm: LayerNorm = "standard_score"

    def __call__(self, size: int, parts: Iterable[Part]) -> Tensor:
        """Combine the scores of several producers: shape ``(size,)``."""
        if self.policy == "backward":
            raise SelectionError(
                "The policy 'backward' scores feature maps after an addition; a criterion on weights takes 'sum' or 'average'."
            )
        total: Tensor | None = None
        count: Tensor | None = None
        for channels, scores in parts:
            index = torch.as_tensor(channels, device=scores.device)
            total = scores.new_zeros(size) if total is None else total
            count = scores.new_zeros(size) if count is None else count
            total.index_add_(0, index, normalize(scores, self.layer_norm))
            count.index_add_(0, index, torch.ones_like(scores))
        if total is None or count is None:
            return torch.zeros(size, dtype=torch.float64)
        return total / count.clamp(min=1) if self.policy == "average" else total

    def single(self, scores: Tensor) -> Tensor:
        """Scores that speak for all producers at once: only normalised."""
        return normalize(scores, self.layer_norm)
