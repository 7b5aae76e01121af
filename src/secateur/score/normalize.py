"""Make the scores of one layer comparable with those of another; none of these changes the order within the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

LayerNorm = Literal["standard_score", "tss_norm", "linear_scaling", "softmax_norm", "none"]


def normalize(scores: Tensor, how: LayerNorm) -> Tensor:
    """Scale the scores of one layer.

    * ``standard_score``: ``(s - mean) / std`` with the population's deviation; zeros where all are equal;
    * ``tss_norm``: ``s / sum(s)``; ``1 / n`` where the sum is zero;
    * ``linear_scaling``: ``(s - min) / (max - min)``; zeros where all are equal;
    * ``softmax_norm``: ``exp(s) / sum(exp(s))``;
    * ``none``: as they are.
    """
    return _NORMS[how](scores) if scores.numel() else scores


def _standard_score(scores: Tensor) -> Tensor:
    spread = scores.max() - scores.min()
    return torch.zeros_like(scores) if spread == 0 else (scores - scores.mean()) / scores.std(correction=0)


def _share_of_sum(scores: Tensor) -> Tensor:
    total = scores.sum()
    return torch.full_like(scores, 1 / scores.numel()) if total == 0 else scores / total


def _linear_scaling(scores: Tensor) -> Tensor:
    spread = scores.max() - scores.min()
    return torch.zeros_like(scores) if spread == 0 else (scores - scores.min()) / spread


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(0)


def _as_is(scores: Tensor) -> Tensor:
    return scores


_NORMS: dict[LayerNorm, Callable[[Tensor], Tensor]] = {
    "standard_score": _standard_score,
    "tss_norm": _share_of_sum,
    "linear_scaling": _linear_scaling,
    "softmax_norm": _softmax,
    "none": _as_is,
}
