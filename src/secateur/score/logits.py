"""Score pairs of query and key neurons by what attention scores lose, given that the queries that stay are fitted anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Part
from secateur.score.evidence import precise
from secateur.score.observer import Call
from secateur.score.products import Product, neurons_of, visible
from secateur.score.ranks import summed

RIDGE = 1e-2
"""Added to second moments, relative to their mean diagonal."""
_NOTHING = 1e-30
WIDEST = 256
"""Neurons of a head up to which pairs go one at a time; the time grows with the fourth power."""


class Logits:
    """Gathers second moments of queries and keys, for each head of one product."""

    def __init__(self, node: fx.Node, product: Product, group: ChannelGroup, solution: Solution) -> None:
        self.node = node
        self.channels = neurons_of(product, group, solution)
        """The channel of each query neuron: the shape of the queries without the tokens, of size 1 where it does not change."""
        self._product, self._size = product, group.size
        self._heads, self._head = _heads_of(self.channels)
        heads, neurons = self._heads.shape
        self._moments = torch.zeros(2, heads, neurons, neurons, dtype=torch.float64)
        self._counts = torch.zeros(2, heads, dtype=torch.float64)

    @property
    def fits(self) -> bool:
        """Whether the neurons of each head are known, and not too many."""
        return self.channels is not None and self._heads.shape[1] <= WIDEST

    def see(self, call: Call) -> None:
        """Add one batch."""
        query, key = (call.inputs[node].detach() for node in (self._product.query, self._product.key))
        sides = self._product.operands(query, key)
        lead, repeats = sides[0].shape[:-2], query.numel() * sides[1].numel() // (sides[0].numel() * key.numel())
        seen = visible(self.node, call.inputs, sides[1])
        places = self._head.expand(lead).flatten()
        for side, values in enumerate(sides):
            rows = values.expand(*lead, *values.shape[-2:]).flatten(0, -3)
            # Where as many tokens ask as answer they are taken for the same ones.
            if seen is not None and values.shape[-2] == seen.shape[-1]:
                rows = rows * seen.unsqueeze(-1)
            rows = rows[: max(1, len(rows) * call.valid // call.batch)]
            rows, head = rows if rows.dtype == torch.float64 else rows.float(), places[: len(rows)]
            self._moments[side].index_add_(0, head, precise(rows.mT @ rows).double().cpu() / rows.shape[1])
            # All queries that meet the same keys add to what is lost.
            self._counts[side].index_add_(0, head, torch.full((len(head),), 1 if side else 1 / repeats, dtype=torch.float64))

    def share(self) -> None:
        """Add the other processes' moments."""
        self._moments, self._counts = summed(self._moments), summed(self._counts)

    def parts(self) -> Sequence[Part]:
        """What each pair costs."""
        if not self._counts.any():
            return ()
        means = self._moments / self._counts.clamp_min(1)[..., None, None]
        if not means.isfinite().all():
            return [(np.arange(self._size), torch.full((self._size,), torch.nan, dtype=torch.float64))]
        problems = [(q, k, _places(channels, self._size)) for q, k, channels in zip(*means, self._heads, strict=True)]
        return [(np.arange(self._size), removal_errors(problems))]


def _heads_of(channels: Tensor | None) -> tuple[Labels, Tensor]:
    """The channels of each head's neurons, and the head at each place of the leading dimensions."""
    if channels is None:
        return np.zeros((0, 0), dtype=np.int64), torch.zeros(0, dtype=torch.int64)
    heads, head = np.unique(channels.flatten(0, -2).numpy(), axis=0, return_inverse=True)
    return heads, torch.as_tensor(head.reshape(channels.shape[:-1]))


def _places(channels: Labels, size: int) -> Labels:
    """The neurons of each channel: ``(size, most)``; where there are fewer, numbers behind the last neuron."""
    order = np.argsort(channels, kind="stable")
    within = np.arange(len(order)) - np.searchsorted(channels[order], channels[order])
    found = np.tile(len(channels) + np.arange(within.max(initial=0) + 1), (size, 1))
    there = channels[order] >= 0
    found[channels[order][there], within[there]] = order[there]
    return found


def removal_errors(problems: Sequence[tuple[Tensor, Tensor, Labels]]) -> Tensor:
    """The error of the scores at which each channel goes, the cheapest first: shape ``(channels,)``.

    For each head second moments of queries and keys, ``(d, d)`` each, and the neurons of each channel, ``(channels, most)``.
    """
    removals = [Removals(*problem) for problem in problems]
    costs = torch.stack([removal.costs for removal in removals]).sum(0)
    errors, alive, worst = torch.zeros_like(costs), torch.ones(len(costs), dtype=torch.bool), 0.0
    for _ in range(len(costs)):
        chosen = int(torch.where(alive, costs, torch.inf).argmin())
        errors[chosen] = worst = max(worst, float(costs[chosen]))
        alive[chosen] = False
        for removal in removals:
            if removal.has(chosen):
                costs -= removal.costs
                removal.remove(chosen)
                costs += removal.costs
    return errors


class Removals:
    """What the scores of one head lose as pairs of neurons go one by one, those of its queries that stay fitted anew each time.

    For independent queries and keys with second moments A and B the best q_K M k_K^T in place of q k^T loses

        <A, B> - <P_A, P_B>,        P_A = A_:K (A_KK)^-1 A_K:

    and without the neurons S, with H = (A_KK)^-1, P_A is smaller by a a^T, where a = A_:K H_:S (H_SS)^-1/2; P_B likewise.
    """

    def __init__(self, query: Tensor, key: Tensor, places: Labels) -> None:
        self._places = torch.as_tensor(places)
        self._own = (self._places < len(query)).any(1)
        self._sides = [_Side(moments, places.shape[1]) for moments in (query, key)]
        self.costs = self._told()
        """What each channel costs now; nothing where it is gone or has no neuron in this head."""

    def has(self, chosen: int) -> bool:
        """Whether the channel has a neuron here."""
        return bool(self._own[chosen])

    def remove(self, chosen: int) -> None:
        """Take a channel out."""
        self._own[chosen] = False
        for side in self._sides:
            side.remove(self._places[chosen])
        self.costs = self._told()

    def _told(self) -> Tensor:
        here = torch.nonzero(self._own).flatten()
        first, second = self._sides
        a, b = (side.losses(self._places[here]) for side in self._sides)
        lost = (a * (second.kept @ a)).sum((1, 2)) + (b * (first.kept @ b)).sum((1, 2)) - (a.mT @ b).square().sum((1, 2))
        costs: Tensor = lost.new_zeros(len(self._own)).index_copy_(0, here, lost.clamp_min(0))
        return costs


class _Side:
    """Queries or keys of one head: what the neurons that stay tell of all of them."""

    def __init__(self, moments: Tensor, spare: int) -> None:
        self._size, size = len(moments), len(moments) + spare
        scale = moments.diagonal().mean().clamp_min(_NOTHING)
        whole = torch.nn.functional.pad(moments, (0, spare, 0, spare))
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(whole + RIDGE * scale * torch.eye(size, dtype=moments.dtype)))
        self._told = whole @ self._inverse
        """Of each neuron what those that stay say of it: A_:K H."""
        self.kept = self._told @ whole

    def losses(self, places: Tensor) -> Tensor:
        """What P loses without the neurons of each channel, as columns: ``(channels, d, most)``."""
        own = self._inverse[places.unsqueeze(-1), places.unsqueeze(-2)]
        columns = self._told[:, places].movedim(0, 1)
        lost: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(own).mT, columns, upper=True, left=False)
        return lost

    def remove(self, places: Tensor) -> None:
        """Take neurons out."""
        lost = self.losses(places.unsqueeze(0))[0]
        self.kept = self.kept - lost @ lost.mT
        places = places[places < self._size]
        solved = torch.linalg.solve(self._inverse[places][:, places], self._inverse[places])
        self._told = self._told - self._told[:, places] @ solved
        self._inverse = self._inverse - self._inverse[:, places] @ solved
