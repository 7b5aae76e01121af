"""Score a channel by how much the outputs depend on its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.group import ChannelGroup, Member
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, precise
from secateur.score.observer import Call, Observer
from secateur.score.ranks import collected


@dataclass(frozen=True)
class Fisher:
    """Score a channel by the second-order change of the outputs when all its weights become zero, weight by weight.

        s_c = 1/2 sum_{w of c} E[(dL/dw)^2] w^2,     L = <v, outputs>,  v ~ N(0, 1 / variance of the outputs)

    over every weight that makes, carries or reads the channel: the diagonal of the Gauss-Newton matrix of the outputs. Needs
    data, without labels. Every batch counts as one draw.

    LeCun, Denker, Solla, NIPS 1989 (OBD); Theis et al., 2018 (Fisher).
    """

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        parts = [scores for _, scores in evidence.seen(self, group)]
        return evidence.combine.single(torch.stack(parts).sum(0)) if parts else torch.zeros(group.size, dtype=torch.float64)

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each weight that the channels have a place in."""
        capture = solution.walk.capture
        nodes: dict[str, fx.Node] = {}
        for node in capture.graph.find_nodes(op="get_attr"):
            nodes.setdefault(str(node.target), node)
        trained = [m for m in group.members if isinstance(capture.leaf(m.tensor), torch.nn.Parameter)]
        return [Squares(nodes[m.tensor], m, group.size) for m in trained if m.tensor in nodes]


@dataclass(eq=False)
class Squares:
    """Gathers the squared gradients of one weight."""

    node: fx.Node
    member: Member
    size: int
    found: list[Tensor] = field(default_factory=list)

    def see(self, call: Call) -> None:
        """Nothing is known before the gradient."""

    def see_gradient(self, call: Call, gradient: Tensor) -> None:
        """Add one batch."""
        change = precise(gradient) * precise(call.output.detach())
        self.found.append(self.member.fold(change.square(), self.size).cpu() / max(call.valid, 1))

    def share(self) -> None:
        """Add the other processes' batches."""
        self.found = [each for found in collected(self.found) for each in found]

    def parts(self) -> Sequence[Part]:
        """Half the squares, averaged over batches."""
        return [(np.arange(self.size), torch.stack(self.found).mean(0) / 2)] if self.found else ()
