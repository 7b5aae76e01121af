"""Score channels by what the layers that read them lose, given that these are fitted anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.group import ChannelGroup, Member
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, precise
from secateur.score.logits import Logits
from secateur.score.observer import Call, Observer
from secateur.score.products import product_at
from secateur.score.ranks import summed, total
from secateur.score.reading import Reading, readings, rows

RIDGE = 1e-2
"""Added to the covariance, relative to its mean diagonal: channels that are nearly mixtures of others are no exact ones."""
_NOTHING = 1e-30
"""A variance that stands for none."""
_TRIES = 10
BLOCK = 64
"""Steps whose changes to the matrices are made at once."""


@dataclass(frozen=True)
class OBS:
    """Score channels by the error that the layers which read them have once they are gone and the rest is refitted.

        e_c = sum_readers ||W_:c||^2 / (H^-1)_cc,        H = cov(x)

    Channels go one at a time, the cheapest first; then W <- W - W_:c (H^-1)_c: / (H^-1)_cc and H^-1 is downdated, so that of
    two channels that say the same one goes for nothing and the other then costs what both are worth. The score is the largest
    error up to the step in which a channel goes. Convolutions count by the covariance of their channels, for all taps. With
    ``weighted`` each output counts by how much the model's outputs depend on it, so that scores of different layers compare.
    A pair of query and key neurons has the error of the scores Q K^T once it is gone and the queries that stay are fitted anew, head
    by head, for queries and keys that are drawn independently; pairs go one at a time as well. In heads of more than 256 neurons it
    has E[q_c^2] E[k_c^2]. Needs data; goes with :class:`~secateur.Refit`.

    Hassibi, Stork, NIPS 1992; Kurtic, Frantar, Alistarh, ZipLM, NeurIPS 2023.
    """

    weighted: bool = True

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        parts = [scores for _, scores in evidence.seen(self, group)]
        if not parts:
            return torch.zeros(group.size, dtype=torch.float64)
        energy = [p for p in parts if p.ndim == 1]
        problems = [(p[: group.size], p[group.size :]) for p in parts if p.ndim == 2]
        if not all(bool(p.isfinite().all()) for p in parts):
            return torch.full((group.size,), torch.nan, dtype=torch.float64)
        scores = removal_errors(problems) if problems else torch.zeros(group.size, dtype=torch.float64)
        return evidence.combine.single(scores + sum(energy, torch.zeros_like(scores)))

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each call that reads the channels."""
        return [self._observer(reading, group, solution) for reading in readings(group, solution)]

    def _observer(self, reading: Reading, group: ChannelGroup, solution: Solution) -> Observer:
        if reading.weight is not None:
            return (Weighted if self.weighted else Covariance)(reading, group, solution)
        product = product_at(reading.node)
        logits = None if product is None else Logits(reading.node, product, group, solution)
        return Covariance(reading, group, solution) if logits is None or not logits.fits else logits

    @staticmethod
    def memory_gib(groups: Iterable[ChannelGroup], solution: Solution) -> float:
        """What the covariances of all groups take, in GiB."""
        wanted = [g for g in groups if g.prunable and g.kind == "channels"]
        return float(sum(g.size**2 * 8 * len(list(readings(g, solution))) for g in wanted)) / 2**30


class Covariance:
    """Gathers second moments of the channels that one call reads."""

    def __init__(self, reading: Reading, group: ChannelGroup, solution: Solution) -> None:
        self.node: fx.Node = reading.node
        self._reading = reading
        self._size = group.size
        self._columns = None if reading.weight is None else _columns(reading, group, solution)
        self._total = torch.zeros(group.size, dtype=torch.float64)
        self._gram = torch.zeros(group.size, group.size, dtype=torch.float64)
        self._other = torch.zeros(group.size, dtype=torch.float64)
        self._count = 0

    def see(self, call: Call) -> None:
        """Add one batch."""
        first = rows(self._reading.source, call.inputs[self._reading.source.node].detach(), call, self._size).flatten(1)
        first = first if first.dtype == torch.float64 else first.float()
        self._total += precise(first).sum(1).cpu()
        self._gram += precise(first @ first.T).cpu()
        if self._reading.other is not None:
            other = rows(self._reading.other, call.inputs[self._reading.other.node].detach(), call, self._size)
            self._other += precise(other).square().sum((1, 2)).cpu()
        self._count += first.shape[1]

    def share(self) -> None:
        """Add the other processes' moments."""
        self._total, self._gram, self._other = summed(self._total), summed(self._gram), summed(self._other)
        self._count = total(self._count)

    def parts(self) -> Sequence[Part]:
        """The covariance with the columns below it, or the product of both energies."""
        if not self._count:
            return ()
        numbers = np.arange(self._size)
        if self._columns is None:
            return [(numbers, self._gram.diagonal() / self._count * self._other / self._count)]
        mean = self._total / self._count
        covariance = self._gram / self._count - mean.outer(mean)
        return [(numbers, torch.cat([covariance, self._scale() * self._columns]))]

    def _scale(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)


class Weighted(Covariance):
    """Gathers how much the model's outputs depend on what the call puts out, too."""

    def __init__(self, reading: Reading, group: ChannelGroup, solution: Solution) -> None:
        super().__init__(reading, group, solution)
        self._slope = 0.0
        self._samples = 0

    def see_gradient(self, call: Call, gradient: Tensor) -> None:
        """Add the squared gradients of one batch."""
        valid = max(1, len(gradient) * call.valid // call.batch)
        self._slope += float(precise(gradient[:valid]).square().sum()) / gradient[0].numel()
        self._samples += valid

    def share(self) -> None:
        """Add the other processes' moments and slopes."""
        super().share()
        self._slope, self._samples = total(self._slope), total(self._samples)

    def _scale(self) -> Tensor:
        return torch.tensor(self._slope / max(self._samples, 1), dtype=torch.float64).sqrt()


def _columns(reading: Reading, group: ChannelGroup, solution: Solution) -> Tensor:
    """The weights with which each channel is read: ``(rest, size)``; those of several places of a channel below each other."""
    assert reading.weight is not None
    weight = precise(solution.walk.capture.leaf(reading.weight).detach()).cpu()
    parts = [_scattered(m, weight, group.size) for m in group.members if m.tensor == reading.weight and m.role == "reads"]
    return torch.cat(parts)


def _scattered(member: Member, weight: Tensor, size: int) -> Tensor:
    flat = member.flatten(weight)
    order = np.argsort(member.channels, kind="stable")
    within = np.arange(len(order)) - np.searchsorted(member.channels[order], member.channels[order])
    out = flat.new_zeros(int(within.max(initial=0)) + 1, size, flat.shape[1])
    out[torch.as_tensor(within), torch.as_tensor(member.channels[order])] = flat[torch.as_tensor(order)]
    return out.movedim(1, 2).flatten(0, 1)


def removal_errors(problems: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The error at which each channel goes, the cheapest first, for covariances ``(d, d)`` and columns ``(rest, d)``: shape ``(d,)``."""
    errors, worst = torch.zeros(len(problems[0][0]), dtype=torch.float64), 0.0
    for chosen, cost in removed(problems):
        worst = max(worst, cost)
        errors[chosen] = worst
    return errors


def removed(problems: Sequence[tuple[Tensor, Tensor]], *, ridge: float = RIDGE) -> Iterator[tuple[int, float]]:
    """The channels in the order in which they go, the cheapest first, each with what it costs once those before it are gone."""
    removals = [Removals(*problem, ridge=ridge) for problem in problems]
    alive = torch.ones(len(problems[0][0]), dtype=torch.bool)
    for _ in range(len(alive)):
        costs = torch.stack([removal.costs for removal in removals]).sum(0)
        chosen = int(torch.where(alive, costs, torch.inf).argmin())
        yield chosen, float(costs[chosen])
        alive[chosen] = False
        for removal in removals:
            removal.remove(chosen)


class Removals:
    """H^-1 and W^T W of the channels that are left while they go one by one.

    Diagonals are always up to date. What a step subtracts from the matrices is put aside, rows are worked out when they are needed, and
    after ``BLOCK`` steps all of it is subtracted at once and the channels that went are dropped.
    """

    def __init__(self, covariance: Tensor, columns: Tensor, *, ridge: float) -> None:
        self._size = len(covariance)
        self._inverse = _inverse(covariance, ridge)
        self._product = columns.mT @ columns
        self._left = torch.arange(self._size)
        self._begin(torch.ones(self._size, dtype=torch.bool))

    @property
    def costs(self) -> Tensor:
        """What each channel costs now; nothing where it is gone."""
        costs = self._costs.new_zeros(self._size)
        return costs.index_copy_(0, self._left, self._costs / self._pivots.clamp_min(torch.finfo(self._pivots.dtype).tiny))

    def remove(self, chosen: int) -> None:
        """Take one channel out, and refit the others."""
        steps, rests, weights = self._steps[: self._done], self._rests[: self._done], self._weights[: self._done]
        at = int(torch.searchsorted(self._left, chosen))
        row = self._inverse[at] - (steps[:, at] * weights) @ steps
        product = self._product[at] - steps[:, at] @ rests - rests[:, at] @ steps
        step = row / row[at]
        rest = product - product[at] / 2 * step
        self._steps[self._done], self._rests[self._done], self._weights[self._done] = step, rest, row[at]
        self._pivots -= row[at] * step.square()
        self._costs -= 2 * step * rest
        self._alive[at] = False
        self._done += 1
        if self._done == BLOCK:
            self._subtract()

    def _subtract(self) -> None:
        self._inverse -= (self._steps * self._weights.unsqueeze(1)).mT @ self._steps
        both = self._steps.mT @ self._rests
        self._product -= both + both.mT
        self._begin(self._alive)

    def _begin(self, alive: Tensor) -> None:
        """Go on with the channels that live, and nothing put aside."""
        self._left = self._left[alive]
        self._inverse, self._product = (matrix[alive][:, alive] for matrix in (self._inverse, self._product))
        self._pivots, self._costs = self._inverse.diagonal().clone(), self._product.diagonal().clone()
        count = len(self._left)
        self._steps, self._rests, self._weights = (self._inverse.new_zeros(BLOCK, *n) for n in ((count,), (count,), ()))
        self._alive, self._done = torch.ones(count, dtype=torch.bool), 0


def _inverse(covariance: Tensor, ridge: float) -> Tensor:
    """The inverse behind a ridge, which grows where rounding has left no positive matrix; inputs that never vary cost nothing."""
    scale = covariance.diagonal().mean().clamp_min(_NOTHING)
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    for step in range(_TRIES):
        factor, info = torch.linalg.cholesky_ex(covariance + ridge * 10**step * scale * identity)
        if not bool(info):
            return torch.cholesky_inverse(factor)
    return identity / (ridge * scale)
