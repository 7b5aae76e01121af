"""Score a channel by how much it varies where it is read, times how strongly it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, precise
from secateur.score.observer import Call, Observer
from secateur.score.ranks import summed, total
from secateur.score.reading import Reading, readings, rows


@dataclass(frozen=True)
class Variance:
    """Score a channel by the variance that its readers' outputs lose with it, its mean being taken up by a bias.

        s_c = sum_readers var(x_c) ||W_:c||^2

    A query and key neuron, which no weight reads, has E[q_c^2] E[k_c^2], its part in the squared scores. Needs data. It goes
    with recovery that folds means: :class:`~secateur.Refit`, or :class:`~secateur.FoldMeans`.

    An et al., FLAP, AAAI 2024; Berisha et al., VBP, ICCV 2025.
    """

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        parts = [scores for _, scores in evidence.seen(self, group)]
        return evidence.combine.single(torch.stack(parts).sum(0)) if parts else torch.zeros(group.size, dtype=torch.float64)

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each call that reads the channels."""
        return [Spread(reading, group, _strength(reading, group, solution)) for reading in readings(group, solution)]


class Spread:
    """Gathers means and squares of what one call reads."""

    def __init__(self, reading: Reading, group: ChannelGroup, strength: Tensor | None) -> None:
        self.node: fx.Node = reading.node
        self._reading = reading
        self._strength = strength
        self._size = group.size
        self._sums = torch.zeros(3, group.size, dtype=torch.float64)
        self._count = 0

    def see(self, call: Call) -> None:
        """Add one batch."""
        first = precise(rows(self._reading.source, call.inputs[self._reading.source.node], call, self._size)).flatten(1)
        self._sums[0] += first.sum(1).cpu()
        self._sums[1] += first.square().sum(1).cpu()
        if self._reading.other is not None:
            other = precise(rows(self._reading.other, call.inputs[self._reading.other.node], call, self._size)).flatten(1)
            self._sums[2] += other.square().sum(1).cpu()
        self._count += first.shape[1]

    def share(self) -> None:
        """Add the other processes' sums."""
        self._sums, self._count = summed(self._sums), total(self._count)

    def parts(self) -> Sequence[Part]:
        """The variance times the strength, or the product of both energies."""
        if not self._count:
            return ()
        mean, square, other = self._sums / self._count
        scores = square * other if self._strength is None else (square - mean.square()).clamp(min=0) * self._strength
        return [(np.arange(self._size), scores)]


def _strength(reading: Reading, group: ChannelGroup, solution: Solution) -> Tensor | None:
    """Squares of all weights with which each channel is read."""
    if reading.weight is None:
        return None
    weight = precise(solution.walk.capture.leaf(reading.weight).detach()).square().cpu()
    return torch.stack([m.fold(weight, group.size) for m in group.members if m.tensor == reading.weight and m.role == "reads"]).sum(0)
