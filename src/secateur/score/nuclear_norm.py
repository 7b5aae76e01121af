"""Score a channel by the nuclear norm of its feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, occurrences, precise
from secateur.score.observer import Call, Observer
from secateur.score.places import Place, batch_dim, numbers, place_of, places
from secateur.score.ranks import collected, total

_ELEMENTS = 1 << 23
"""Elements of feature maps that are brought to double precision at once."""
_EXACT = 1e-7
"""How far the squares may be off, relative to the norm, before singular values are computed."""


@dataclass(frozen=True)
class NuclearNorm:
    """Score a channel by the singular values of what it puts out over all samples.

        s_c = ||A_c||_* / N        A_c: (N samples, positions)

    Exact for all samples together, through the smaller of the two Gram matrices, or by the singular values themselves where
    some are so small beside the largest that squares would lose them. Needs data, without labels. With the
    policy ``backward`` the sums of coupled producers are looked at, after the activation that follows, in place of the
    producers. Feature maps of all samples are held where there are more positions than samples, so memory grows with
    the samples. Yeom, Shim, Hwang, arXiv 2103.10858.
    """

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        combine = replace(evidence.combine, policy="average") if evidence.combine.policy == "backward" else evidence.combine
        return combine(group.size, evidence.seen(self, group))

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each layer that makes channels of the group, or for each sum with the policy ``backward``."""
        sums = list(_sums(group, solution)) if combine.policy == "backward" else []
        return [FeatureMaps(place) for place in sums or places(group, solution, "writes")]


@dataclass(eq=False)
class FeatureMaps:
    """Gathers the feature maps of one node: as they are, or as triangles with the same singular values once there are many samples."""

    place: Place
    channels: Labels = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    samples: int = 0
    stored: list[Tensor] = field(default_factory=list)

    @property
    def node(self) -> fx.Node:
        """The node whose outputs are gathered."""
        return self.place.node

    def see(self, call: Call) -> None:
        """Add the feature maps of one batch."""
        self.channels, maps = self._maps(call)
        self.samples += maps.shape[1]
        self.stored.append(maps)
        if sum(each.shape[1] for each in self.stored) >= 2 * maps.shape[2]:
            self.stored = [torch.cat([torch.linalg.qr(rows, mode="r").R for rows in self._tables()])]

    def share(self) -> None:
        """Add the other processes' samples."""
        self.samples = total(self.samples)
        self.stored = [maps for found in collected(self.stored) for maps in found]

    def parts(self) -> Sequence[Part]:
        """Nuclear norms divided by the number of samples."""
        if not self.samples:
            return ()
        norms = torch.cat([nuclear_norms(maps) for maps in self._tables()]) / self.samples
        return [(self.channels[picked], norms[torch.as_tensor(picked, device=norms.device)]) for picked in occurrences(self.channels)]

    def _tables(self) -> Iterator[Tensor]:
        """What is stored, in double precision, a few channels at a time: ``(channels, rows, positions)``."""
        elements = sum(each[0].numel() for each in self.stored)
        for low in range(0, len(self.channels), block := max(1, _ELEMENTS // max(1, elements))):
            yield torch.cat([precise(each[low : low + block]) for each in self.stored], dim=1)

    def _maps(self, call: Call) -> tuple[Labels, Tensor]:
        """Channels, and their maps: ``(channels, samples, positions)``."""
        output, dims = call.output, self.place.dims
        dim = batch_dim(tuple(output.shape), dims, call.batch)
        if dim is None:
            output, dim = output.unsqueeze(-1), output.ndim
        kept = output.narrow(dim, 0, max(1, output.shape[dim] * call.valid // call.batch))
        channels, rows = self.place.rows(kept)
        place = 1 + dim - sum(d < dim for d in dims)
        return channels, rows.movedim(place, 1).reshape(rows.shape[0], kept.shape[dim], -1)


def nuclear_norms(tables: Tensor) -> Tensor:
    """Sums of the singular values of matrices ``(matrices, rows, columns)`` in double precision; NaN where one is not finite."""
    finite = tables.isfinite().all(-1).all(-1)
    tables = torch.where(finite[:, None, None], tables, 0)
    flat = tables if tables.shape[1] <= tables.shape[2] else tables.mT
    squares = torch.linalg.eigvalsh(flat @ flat.mT)
    norms = squares.clamp(min=0).sqrt().sum(-1)
    for blurred in torch.nonzero(_blur(squares, flat.shape[2]) > _EXACT * norms).flatten().tolist():
        norms[blurred] = torch.linalg.svdvals(flat[blurred]).sum()
    return torch.where(finite, norms, torch.nan)


def _blur(squares: Tensor, longest: int) -> Tensor:
    """How far rounding may move the sum of the roots of eigenvalues: by little, unless some are small beside the largest."""
    rounding = squares[..., -1:].clamp(min=0) * torch.finfo(squares.dtype).eps * longest
    return torch.minimum(rounding.sqrt(), rounding / (2 * squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt())).sum(-1)


def _sums(group: ChannelGroup, solution: Solution) -> Iterator[Place]:
    """The additions in which producers of a group meet, or the activations right behind them."""
    for place in places(group, solution, "joined"):
        users = list(place.node.users)
        after = users[0] if len(users) == 1 and str(users[0].target).startswith("aten.relu") else None
        yield (after and place_of(after, numbers(group, solution), solution)) or place
