"""Score a channel by how far its weights lie from those of the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.errors import SelectionError
from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence, Producer, lengths, precise
from secateur.score.tiles import distances, pair_sums


@dataclass(frozen=True)
class GeometricMedian:
    """Score a channel by the sum of the distances between its weights and those of all others of its layer.

        s_c = sum_j ||w_c - w_j||_2

    The channels nearest to the geometric median of all are the ones that the others can stand for. In a grouped
    convolution distances are taken within each group. Without data. He et al., CVPR 2019.
    """

    mix: float = 0.0
    """The fraction with the smallest norms goes first, and distances are taken among the rest."""

    def __post_init__(self) -> None:
        if not 0 <= self.mix < 1:
            raise SelectionError(f"mix is {self.mix!r}; it is the fraction that goes by norm, from 0 up to but not including 1.")

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        return evidence.combine(group.size, ((p.channels, self._scores(p)) for p in evidence.producers(group)))

    def _scores(self, producer: Producer) -> Tensor:
        out = precise(producer.rows.new_zeros(producer.rows.shape[0]))
        parts = np.unique(producer.parts).tolist()
        if len(parts) == 1:
            return self._of_rows(producer.rows)
        for part in parts:
            index = torch.as_tensor(np.flatnonzero(producer.parts == part), device=out.device)
            out[index] = self._of_rows(producer.rows[index])
        return out

    def _of_rows(self, rows: Tensor) -> Tensor:
        first = math.floor(self.mix * rows.shape[0] + 1e-9)
        if not first:
            return pair_sums(rows, distances, of_equals=0)
        order = lengths(rows).argsort(stable=True)
        rest = pair_sums(rows, distances, of_equals=0, among=order[first:])
        below = torch.arange(first, dtype=rest.dtype, device=rest.device) / first * rest.min()
        return torch.cat([below, rest])[order.argsort()]
