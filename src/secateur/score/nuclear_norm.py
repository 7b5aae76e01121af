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
from secateur.score.ranks import collected, summed, total

_ELEMENTS = 1 << 23
"""Elements of feature maps that are brought to double precision at once."""


@dataclass(frozen=True)
class NuclearNorm:
    """Score a channel by the singular values of what it puts out over all samples.

        s_c = ||A_c||_* / N        A_c: (N samples, positions)

    Exact for all samples together, through the smaller of the two Gram matrices. Needs data, without labels. With the
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
    """Gathers the feature maps of one node: as they are, or as Gram matrices once there are more samples than positions."""

    place: Place
    channels: Labels = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    samples: int = 0
    stored: list[Tensor] = field(default_factory=list)
    gram: Tensor | None = None

    @property
    def node(self) -> fx.Node:
        """The node whose outputs are gathered."""
        return self.place.node

    def see(self, call: Call) -> None:
        """Add the feature maps of one batch."""
        self.channels, maps = self._maps(call)
        self.samples += maps.shape[1]
        self.stored.append(maps)
        self._fold(maps.shape[2])

    def share(self) -> None:
        """Add the other processes' samples."""
        self.samples = total(self.samples)
        positions = self.stored[0].shape[2] if self.gram is None else self.gram.shape[-1]
        self._fold(positions)
        if self.gram is not None:
            self.gram = summed(self.gram)
        else:
            self.stored = [maps for found in collected(self.stored) for maps in found]

    def parts(self) -> Sequence[Part]:
        """Nuclear norms divided by the number of samples."""
        if not self.samples:
            return ()
        norms = torch.cat(list(self._norms())) / self.samples
        return [(self.channels[picked], norms[torch.as_tensor(picked, device=norms.device)]) for picked in occurrences(self.channels)]

    def _fold(self, positions: int) -> None:
        """Turn feature maps into their Gram matrices once there are more samples than positions."""
        if self.samples > positions and self.stored:
            grams = [_gram(each.mT) for each in self.stored]
            self.gram = sum(grams, torch.zeros_like(grams[0]) if self.gram is None else self.gram)
            self.stored.clear()

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

    def _norms(self) -> Iterator[Tensor]:
        if self.gram is not None:
            yield _root_sum(self.gram, max(self.samples, self.gram.shape[-1]))
            return
        positions = self.stored[0].shape[2]
        block = max(1, _ELEMENTS // max(1, self.samples * positions))
        for low in range(0, len(self.channels), block):
            maps = torch.cat([each[low : low + block] for each in self.stored], dim=1)
            yield _root_sum(_gram(maps), positions)


def _gram(maps: Tensor) -> Tensor:
    """Products of all rows of each matrix, a few matrices at a time."""
    block = max(1, _ELEMENTS // max(1, maps.shape[1] * maps.shape[2]))
    return torch.cat([precise(part) @ precise(part).mT for part in torch.split(maps, block)])


def _root_sum(gram: Tensor, longest: int) -> Tensor:
    """Sum of the roots of the eigenvalues; what is mere rounding of a zero counts as zero. NaN where a matrix is not finite."""
    finite = gram.isfinite().all(-1).all(-1)
    values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], gram, 0))
    smallest = values[..., -1:].clamp(min=0) * torch.finfo(values.dtype).eps * longest
    return torch.where(finite, torch.where(values > smallest, values, 0).sqrt().sum(-1), torch.nan)


def _sums(group: ChannelGroup, solution: Solution) -> Iterator[Place]:
    """The additions in which producers of a group meet, or the activations right behind them."""
    for place in places(group, solution, "joined"):
        users = list(place.node.users)
        after = users[0] if len(users) == 1 and str(users[0].target).startswith("aten.relu") else None
        yield (after and place_of(after, numbers(group, solution), solution)) or place
