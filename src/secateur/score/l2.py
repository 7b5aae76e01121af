"""Score a channel by the length of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence, Producer, lengths


@dataclass(frozen=True)
class L2:
    """Score a channel by the Euclidean norm of the weights that make it.

        s_c = ||w_c||_2

    Without data. He et al., IJCAI 2018; Li et al., ICLR 2017, with the sum of magnitudes.
    """

    fold_bn: bool = False
    """Multiply each filter first by the factor of the batch norm behind it, gamma / sqrt(variance + eps)."""

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        return evidence.combine(group.size, ((p.channels, self._norms(p, evidence)) for p in evidence.producers(group)))

    def _norms(self, producer: Producer, evidence: Evidence) -> Tensor:
        norms: Tensor = lengths(producer.rows)
        if self.fold_bn and producer.tensor in evidence.scales:
            scale = evidence.scales[producer.tensor].abs()
            norms = norms * scale[torch.as_tensor(producer.positions, device=scale.device)]
        return norms
