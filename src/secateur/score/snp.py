"""Score neurons by what attention scores lose with them, or by how much others resemble them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from secateur.errors import SelectionError
from secateur.groups.fields import Labels
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.combine import Combine, Part
from secateur.score.evidence import Evidence, precise
from secateur.score.observer import Call, Observer
from secateur.score.places import product_nodes
from secateur.score.products import Product, neurons_of, product_at
from secateur.score.ranks import summed
from secateur.score.tiles import cosines, pair_sums


@dataclass(frozen=True)
class SNP:
    """Score pairs of query and key neurons by their part in the attention scores, and other neurons by how unlike they are.

    Queries and keys, each head by itself, averaged over samples, with the singular value decomposition Q K^T = U S V^T:

        s_i = sum_{j <= gamma} |u_j . q_i| |v_j . k_i| / (||q_i|| ||k_i||)

    which is the sum of the cosines between the leading terms of Q K^T and the term that the pair i adds; it needs data.
    All others, over the weights of a layer, without data, and pairs whose product is none of two matrices:

        s_i = sum_j (1 - |cos(w_i, w_j)|)

    Shim, Yun, Choi, ECCV 2024.
    """

    gamma: int | float = 0.9
    """How many leading terms count; a fraction means as many as hold that share of the squared singular values."""

    def __post_init__(self) -> None:
        share = isinstance(self.gamma, float)
        if isinstance(self.gamma, bool) or not (0 < self.gamma <= 1 if share else self.gamma >= 1):
            raise SelectionError(f"gamma is {self.gamma!r}; it is a number of terms from 1 up, or a share in (0, 1].")

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        pairs = evidence.products_of(group)
        parts = evidence.seen(self, group) if pairs.size else ()
        if not parts:
            return evidence.combine(group.size, ((p.channels, unlikeness(p.rows)) for p in evidence.producers(group)))
        terms = Combine("average", "none")(group.size, parts)
        if pairs.size == group.size:
            return evidence.combine.single(terms)
        return _joined(group, evidence, pairs, terms)

    def observers(self, group: ChannelGroup, solution: Solution, combine: Combine) -> Sequence[Observer]:
        """One observer for each product of queries and keys with channels of the group."""
        products = [(node, product_at(node)) for node in product_nodes(group, solution)]
        terms = [ScoreTerms(node, product, group, solution, self.gamma) for node, product in products if product is not None]
        return [each for each in terms if each.channels is not None]


def _joined(group: ChannelGroup, evidence: Evidence, pairs: Labels, terms: Tensor) -> Tensor:
    """Scores of a group that holds values beside pairs of queries and keys, as a projection with heads outermost makes it."""
    others = np.setdiff1d(np.arange(group.size), pairs)
    found = [(p, np.flatnonzero(np.isin(p.channels, others))) for p in evidence.producers(group)]
    rows = ((p.channels[picked], unlikeness(p.rows[torch.as_tensor(picked)])) for p, picked in found if picked.size)
    scores = evidence.combine(group.size, rows).to(terms)
    scores[torch.as_tensor(pairs)] = evidence.combine.single(terms[torch.as_tensor(pairs)])
    return scores


class ScoreTerms:
    """Gathers the scores of query and key pairs over the calls of one product."""

    def __init__(self, node: fx.Node, product: Product, group: ChannelGroup, solution: Solution, gamma: int | float) -> None:
        self.node = node
        self.channels = neurons_of(product, group, solution)
        """The channel of each query neuron: the shape of the queries without the tokens, of size 1 where it does not change."""
        self._product = product
        self._gamma = gamma
        self._total = torch.zeros(group.size, dtype=torch.float64)
        self._count = torch.zeros(group.size, dtype=torch.float64)

    def see(self, call: Call) -> None:
        """Add the scores of one batch."""
        assert self.channels is not None
        scores = pair_scores(*self._product.operands(call.inputs[self._product.query], call.inputs[self._product.key]), self._gamma)
        rows = scores.reshape(-1, scores.shape[-1]).to(self._total)
        channels = self.channels.expand(scores.shape).reshape(rows.shape)
        valid = max(1, rows.shape[0] * call.valid // call.batch)
        there = channels[:valid] >= 0
        self._total.index_add_(0, channels[:valid][there], rows[:valid][there])
        self._count.index_add_(0, channels[:valid][there], torch.ones_like(rows[:valid][there]))

    def share(self) -> None:
        """Add the other processes' samples."""
        self._total, self._count = summed(self._total), summed(self._count)

    def parts(self) -> Sequence[Part]:
        """Scores averaged over samples, and over heads where these share a channel."""
        seen = torch.nonzero(self._count).flatten()
        return [(seen.numpy(), self._total[seen] / self._count[seen])] if seen.numel() else []


def pair_scores(query: Tensor, key: Tensor, gamma: int | float) -> Tensor:
    """Cosines between the leading terms of Q K^T and the terms of single neurons, summed: ``(..., tokens, d)`` to ``(..., d)``."""
    r_query = torch.linalg.qr(precise(query), mode="r").R
    r_key = torch.linalg.qr(precise(key), mode="r").R
    u, s, vt = torch.linalg.svd(r_query @ r_key.mT, full_matrices=False)
    parts = (u.mT @ _unit_columns(r_query)).abs() * (vt @ _unit_columns(r_key)).abs()
    scores: Tensor = (parts * _leading(s, gamma).unsqueeze(-1)).sum(-2)
    return scores


def unlikeness(rows: Tensor) -> Tensor:
    """How unlike all others each row is: the sum of ``1 - |cosine|``; nothing for rows of zeros."""
    alive = (rows != 0).any(1)
    likeness = pair_sums(rows, cosines, of_equals=1)
    return torch.where(alive, rows.shape[0] - 1 - likeness, 0)


def _leading(singular: Tensor, gamma: int | float) -> Tensor:
    """1 for each singular value that counts, 0 for the others."""
    if isinstance(gamma, int):
        return (torch.arange(singular.shape[-1], device=singular.device) < gamma).to(singular.dtype).expand_as(singular)
    energy = singular.square()
    before = energy.cumsum(-1) - energy
    return (before < gamma * energy.sum(-1, keepdim=True) * (1 - 1e-12)).to(singular.dtype)


def _unit_columns(matrix: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(matrix, dim=-2, keepdim=True)
    return torch.where(norms > 0, matrix / norms.clamp(min=torch.finfo(matrix.dtype).tiny), 0)
