"""Score a channel by what the outputs would lose with it, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, precise
from secateur.score.observer import Call, Observer
from secateur.score.places import Place
from secateur.score.ranks import collected, total
from secateur.score.reading import made, rows


@dataclass(frozen=True)
class Taylor:
    """Score a channel by the squared change of the model's outputs when it is replaced by its mean, to first order.

        s_c = mean_n ( sum_positions (a_c - mean(a_c)) dL/da_c )^2,     L = <v, outputs>,  v ~ N(0, 1 / variance of the outputs)

    Over random v this is the squared length of the outputs' derivative by a gate on the channel, so no labels and no loss are
    needed. Activations are taken where they are read, behind norm and activation function. Needs data.

    Molchanov et al., CVPR 2019, with outputs in the place of a loss.
    """

    centred: bool = True
    """Compare with the channel's mean, which a bias can take up, and not with zero."""

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        parts = [scores for _, scores in evidence.seen(self, group)]
        return evidence.combine.single(torch.stack(parts).sum(0)) if parts else torch.zeros(group.size, dtype=torch.float64)

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each activation that carries the channels to where they are read."""
        return [Gates(place, group.size, self.centred) for place in made(group, solution)]


@dataclass(eq=False)
class Gates:
    """Gathers the derivatives of the outputs by gates on the channels of one activation."""

    place: Place
    size: int
    centred: bool
    gates: list[Tensor] = field(default_factory=list)
    """Of each batch the sums of activation times gradient: ``(size, samples)``."""
    slopes: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    count: int = 0

    @property
    def node(self) -> fx.Node:
        """The node whose outputs are gathered."""
        return self.place.node

    def see(self, call: Call) -> None:
        """Nothing is known before the gradient."""

    def see_gradient(self, call: Call, gradient: Tensor) -> None:
        """Add one batch."""
        values, slopes = (precise(rows(self.place, x.detach(), call, self.size)) for x in (call.output, gradient))
        self.gates.append((values * slopes).sum(2))
        self.slopes.append(slopes.sum(2))
        total = values.sum((1, 2))
        self.total = total if self.total is None else self.total + total
        self.count += values.shape[1] * values.shape[2]

    def share(self) -> None:
        """Add the other processes' samples."""
        if not any(collected(self.total is not None)):
            return
        self.gates = [batch for each in collected(self.gates) for batch in each]
        self.slopes = [batch for each in collected(self.slopes) for batch in each]
        self.total = torch.stack([each for each in collected(self.total) if each is not None]).sum(0)
        self.count = total(self.count)

    def parts(self) -> Sequence[Part]:
        """Squares, averaged over samples."""
        if self.total is None:
            return ()
        mean = self.total / self.count if self.centred else torch.zeros_like(self.total)
        change = torch.cat(self.gates, 1) - mean.unsqueeze(1) * torch.cat(self.slopes, 1)
        return [(np.arange(self.size), change.square().mean(1).cpu())]
