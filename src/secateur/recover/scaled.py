"""Queries and keys behind a norm: no basis may come between, but the norm's own factors make good what they can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.calls import arguments, leaf, packet
from secateur.capture.capture import Capture
from secateur.errors import RewriteError
from secateur.groups.fields import Labels
from secateur.recover.heads import Heads, heads_of, laid_out, name_of
from secateur.recover.paired import Steps
from secateur.recover.pairs import Places
from secateur.recover.readers import Reader, shape
from secateur.recover.recovery import Change
from secateur.rewrite import Cut, Slices
from secateur.rewrite.graph import rewrite_graph
from secateur.score.batches import Batch
from secateur.score.products import Product, product_at, visible
from secateur.score.ranks import summed

_NORMS = ("aten.layer_norm", "aten.rms_norm")
_PARTS = (*_NORMS, "aten.rsqrt", "aten.linalg_vector_norm", "aten.norm", "aten.sqrt")
FLOOR = 1e-6
"""Ridge of the factors' fit, relative to their mean energy."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A call that multiplies what a norm gives by stored factors, one for each neuron."""

    node: fx.Node
    weight: str
    added: float
    """What is added to the stored factors before: 1 where they are stored as differences from it."""
    bias: str | None


@dataclass(frozen=True, eq=False)
class Scaled:
    """A product of queries and keys of which one side is multiplied by a norm's factors."""

    name: str
    node: fx.Node
    product: Product
    factors: Factors
    side: int
    """0 if the factors are those of the queries, 1 if those of the keys."""
    heads: Heads
    """Which factor each neuron of that side is multiplied by."""
    projections: tuple[Reader, ...]
    """The layers that both sides come from."""

    @property
    def factor_of(self) -> Labels:
        """The factor that stands for each neuron, ``(lead, neurons)``: of a pair that is turned the first, since both change alike."""
        return self.heads.rows[self.heads.head][:, self._first]

    @property
    def shared(self) -> Labels:
        """For each stored factor the one that stands for it."""
        found = np.arange(shape(self.factors.node)[-1])
        found[self.heads.rows] = self.heads.rows[:, self._first]
        return found

    @property
    def _first(self) -> Labels:
        quarter = self.heads.quarter
        own = np.arange(self.heads.rows.shape[1])
        if quarter is None:
            return own
        other = np.where(quarter.any(1).numpy(), quarter.abs().argmax(1).numpy(), own)
        return np.minimum(own, other)


def scaled(node: fx.Node, made: Mapping[fx.Node, Reader], capture: Capture) -> Scaled | str:
    """The factors of a norm before a product of queries and keys; a reason where there is none that may be changed."""
    product = product_at(node)
    if product is None:
        return "it is no product of two activations over one dimension"
    operands = (product.query, product.query_order), (product.key, product.key_order)
    behind = [list(_behind(operand, made)) for operand, _ in operands]
    if not any(packet(each) in _PARTS for nodes in behind for each in nodes):
        return ""
    projections = {each: made[each] for nodes in behind for each in nodes if each in made}
    for side, (operand, order) in enumerate(operands):
        for factors in filter(None, map(_factors, behind[side])):
            reader = Reader(factors.node, factors.node, factors.weight, ("bias", factors.bias or ""))
            found = heads_of(operand, order, {factors.node: reader}, capture)
            if isinstance(found, Heads):
                return Scaled(name_of(node, "qk"), node, product, factors, side, found, tuple(projections.values()))
    return "a norm without a vector of factors of its own stands between a projection and the product"


def _behind(operand: fx.Node, made: Mapping[fx.Node, Reader]) -> Iterator[fx.Node]:
    """The calls that make an operand, the last first, down to the projections."""
    waiting, seen = [operand], {operand}
    while waiting:
        node = waiting.pop(0)
        yield node
        inner = [] if node in made else [n for n in node.all_input_nodes if n not in seen and not n.meta.get("constant")]
        waiting += inner
        seen |= set(inner)


def _factors(node: fx.Node) -> Factors | None:
    given = arguments(node)
    if packet(node) in _NORMS:
        stored, bias = _stored(given["weight"], node), leaf(given.get("bias"))
    elif packet(node) == "aten.mul" and len(node.all_input_nodes) == 2:
        stored, bias = next(filter(None, (_stored(each, node) for each in node.args)), None), None
    else:
        return None
    return None if stored is None else Factors(node, *stored, bias)


def _stored(value: Any, node: fx.Node) -> tuple[str, float] | None:
    """The name of stored factors that nothing else uses, and what is added to them."""
    added = 0.0
    if isinstance(value, fx.Node) and packet(value) == "aten.add" and len(value.users) == 1:
        number = next((x for x in value.args if isinstance(x, int | float)), None)
        value, added = next(iter(value.all_input_nodes), None), added if number is None else float(number)
    name = leaf(value)
    if name is None or shape(value) != shape(node)[-1:]:
        return None
    users = sum(len(each.users) for each in node.graph.find_nodes(op="get_attr") if str(each.target) == name)
    return (name, added) if users == 1 else None


class Scales:
    """Fits factors such that the scores of what is left come as near to the dense ones as they can, on any number of batches.

    With a factor d_p for each pair or neuron p, and Q', K' what the norms make of the kept rows of the dense projections:

        min_d sum_samples || Q K^T - sum_p d_p Q'_p K'_p^T ||^2,    (sum Q'^T Q' * K'^T K') d = sum diag(Q'^T Q K^T K')
    """

    def __init__(self, cut: Cut, wanted: Sequence[Scaled]) -> None:
        self._cut, self.wanted = cut, wanted
        self._program = rewrite_graph(cut) if wanted else None
        twins = {} if self._program is None else {n.meta["origin"]: n for n in self._program.graph.nodes if "origin" in n.meta}
        self._twins: Mapping[fx.Node, fx.Node] = twins
        sizes = [shape(each.factors.node)[-1] for each in wanted]
        self._gram = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
        self._match = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        self._whole = [torch.zeros(1, dtype=torch.float64) for _ in sizes]

    def take(self, batch: Batch) -> None:
        """Add one batch."""
        if self._program is None:
            return
        dense, small = Steps(self._cut.solution.walk.capture.program, batch.leaves), Steps(self._program, batch.leaves)
        projections = {reader.node for each in self.wanted for reader in each.projections}
        products = {each.node for each in self.wanted}
        for node in self._cut.solution.walk.capture.graph.nodes:
            if node not in projections and node not in products:
                continue
            dense.until(node)
            small.until(self._twins[node])
            for number, each in enumerate(self.wanted):
                if each.node is node:
                    self._add(number, each, dense, small, batch)
            if node in projections:
                small.step(value=Places.of(self._cut, node)(dense.step()))

    def share(self) -> None:
        """Add what the other processes have."""
        self._gram, self._match, self._whole = ([summed(x) for x in parts] for parts in (self._gram, self._match, self._whole))

    def fitted(self) -> tuple[dict[str, Tensor], dict[str, Change]]:
        """New values of the smaller model's factors, and what they change."""
        values, changes = {}, {}
        slices, capture = Slices.of(self._cut), self._cut.solution.walk.capture
        for each, gram, match, whole in zip(self.wanted, self._gram, self._match, self._whole, strict=True):
            ones = torch.ones_like(match)
            ridge = FLOOR * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
            scale = ones + torch.linalg.solve(gram + ridge, match - gram @ ones)
            before, after = (float((whole - 2 * d @ match + d @ gram @ d).clamp_min(0) / whole) for d in (ones, scale))
            changes[each.name] = Change(before, after, "factors of the norm")
            own = scale[torch.as_tensor(each.shared)]
            for name, added in ((each.factors.weight, each.factors.added), (each.factors.bias, 0.0)):
                if name is not None:
                    leaves = capture.leaf(name).detach()
                    values[name] = slices.apply(name, ((leaves.double().cpu() + added) * own - added).to(leaves))
        return values, changes

    def _add(self, number: int, each: Scaled, dense: Steps, small: Steps, batch: Batch) -> None:
        sides, factor = [], torch.empty(0)
        for side, (operand, order) in enumerate(_operands(each.product)):
            places = Places.of(self._cut, operand)
            whole, left = places(dense.env[operand], but=order[-1]), small.env[self._twins[operand]]
            mask = visible(each.node, {n: dense.env[n] for n in each.node.all_input_nodes}, dense.env[operand]) if side else None
            parts = [laid_out(v, order).double().cpu() for v in (whole, left)]
            if mask is not None:
                parts = [v * mask.double().cpu()[: len(v), :, None] for v in parts]
            sides.append(parts)
            if side == each.side:
                factor = self._places_of_factors(each, operand, order, places)
        self._sum(number, factor, sides, batch)

    def _sum(self, number: int, factor: Tensor, sides: Sequence[Sequence[Tensor]], batch: Batch) -> None:
        lead = len(sides[0][0])
        repeats = lead // len(sides[1][0])
        (q, q_left), (k, k_left) = sides[0], [v.repeat_interleave(repeats, 0) for v in sides[1]]
        factor = factor.repeat_interleave(lead // len(factor), 0)
        valid = max(1, lead * batch.valid // batch.size)
        q, q_left, k, k_left, factor = (v[:valid] for v in (q, q_left, k, k_left, factor))
        products = (q_left.mT @ q_left) * (k_left.mT @ k_left)
        self._gram[number].index_put_((factor[:, :, None], factor[:, None, :]), products, accumulate=True)
        self._match[number].index_put_((factor,), ((q_left.mT @ q) * (k_left.mT @ k)).sum(2), accumulate=True)
        self._whole[number] += ((q.mT @ q) * (k.mT @ k)).sum()

    def _places_of_factors(self, each: Scaled, operand: fx.Node, order: tuple[int, ...], places: Places) -> Tensor:
        """The factor of each neuron that stays: ``(lead, neurons)``."""
        sizes = [shape(operand)[dim] for dim in order[:-2]]
        found = torch.as_tensor(each.factor_of).reshape(*sizes, -1)
        for axis, dim in enumerate((*order[:-2], order[-1])):
            if dim in places.kept:
                found = found.index_select(axis, places.kept[dim])
        return found.reshape(-1, found.shape[-1])


def _operands(product: Product) -> Iterable[tuple[fx.Node, tuple[int, ...]]]:
    return (product.query, product.query_order), (product.key, product.key_order)


def alike_in_all_heads(cut: Cut, each: Scaled) -> bool:
    """Whether all heads keep the same neurons, as where they share a norm's factors."""
    try:
        for node in (each.product.query, each.product.key, *(reader.node for reader in each.projections)):
            Places.of(cut, node)
    except RewriteError:
        return False
    return True
