"""Rotary positions: neurons that are turned in pairs, by an angle for each position, between a projection and a product."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.calls import packet
from secateur.capture.capture import Capture
from secateur.groups.fields import Labels
from secateur.recover.readers import Reader, shape

_LINEAR = frozenset(("aten.cat", "aten.stack", "aten.neg", "aten.add", "aten.sub", "aten.to", "aten._to_copy"))
_CLOSE = 1e-5
Factor = Callable[[fx.Node], Any]


@dataclass(frozen=True, eq=False)
class Turned:
    """An operand whose neurons are those of a projection, turned in pairs."""

    reader: Reader
    """The layer that makes it."""
    rows: Labels
    """The row of its weight that each neuron starts from: ``(lead, neurons)``."""
    quarter: Tensor
    """What a quarter turn of all pairs does to a head, ``(neurons, neurons)``: nothing is left of neurons that are not turned."""


def turned(
    operand: fx.Node, lay_out: Callable[[Tensor], Tensor], made: Mapping[fx.Node, Reader], moves: Collection[str], capture: Capture
) -> Turned | None:
    """What turns an operand, if each pair of neurons is turned and scaled alike, and nothing else but changes of shape happens to it.

    Which neurons are pairs is read off what single products with constants let through; that turns commute with quarter turns is then
    tried with the constants themselves.
    """
    chain = _Chain.to(operand, made, moves)
    if chain is None or not chain.factors:
        return None
    source = chain.source
    terms = [lay_out(chain.run(_numbered(source, made[source]), _alone(node))) for node in chain.factors]
    signed = torch.stack(terms).round().to(torch.int64).numpy()
    if (signed != signed[:, :, :1]).any():
        return None
    found = _pairs(signed[:, :, 0])
    if found is None:
        return None
    rows, quarter = found
    result = Turned(made[source], rows, torch.as_tensor(quarter, dtype=torch.float64))
    return result if _commutes(chain, result, lay_out, capture) else None


@dataclass(frozen=True, eq=False)
class _Chain:
    """Calls between a projection and an operand, all of them linear in what the projection makes."""

    source: fx.Node
    calls: tuple[fx.Node, ...]
    factors: tuple[fx.Node, ...]
    """Those that multiply by a constant tensor."""

    @classmethod
    def to(cls, operand: fx.Node, made: Mapping[fx.Node, Reader], moves: Collection[str]) -> _Chain | None:
        waiting, seen, sources, factors = [operand], {operand}, set(), []
        while waiting:
            node = waiting.pop()
            if node in made:
                sources.add(node)
                continue
            inner = [n for n in node.all_input_nodes if not n.meta.get("constant")]
            constants = [] if chooses(node) else [n for n in node.all_input_nodes if n.meta.get("constant")]
            if packet(node) == "aten.mul" and len(inner) == 1 and (len(constants) == 1 or _number(node) is not None):
                factors += [node] if constants else []
            elif constants or not inner or not (node.target is operator.getitem or packet(node) in moves or packet(node) in _LINEAR):
                return None
            waiting += [n for n in inner if n not in seen]
            seen |= set(inner)
        if len(sources) != 1:
            return None
        (source,) = sources
        calls = tuple(n for n in operand.graph.nodes if n in seen and n is not source)
        return cls(source, calls, tuple(n for n in calls if n in factors))

    def run(self, value: Tensor, factor: Factor) -> Tensor:
        """The operand, for a value of the source and of what is multiplied by."""
        env: dict[fx.Node, Any] = {self.source: value}
        for node in self.calls:
            if packet(node) == "aten.mul":
                (inner,) = (n for n in node.all_input_nodes if n in env)
                env[node] = env[inner] * factor(node)
            elif packet(node) in ("aten.to", "aten._to_copy"):
                env[node] = env[node.all_input_nodes[0]]
            else:
                target: Any = node.target
                args: Any = fx.map_arg(node.args, lambda n: env[n] if n in env else stored_value(n))
                env[node] = target(*args, **node.kwargs)
        result: Tensor = env[self.calls[-1]]
        return result


def chooses(node: fx.Node) -> bool:
    """Whether a call picks positions by a stored index."""
    index = node.args[2] if packet(node) == "aten.index_select" else None
    return isinstance(index, fx.Node) and index.op == "get_attr"


def stored_value(node: fx.Node) -> Any:
    """What a graph has stored under a node's name."""
    return operator.attrgetter(str(node.target))(node.graph.owning_module)


def _numbered(source: fx.Node, reader: Reader) -> Tensor:
    size = shape(source)[reader.channel_dim]
    numbers = torch.arange(1, size + 1, dtype=torch.float64)
    return numbers.reshape(-1, *(1,) * (-1 - reader.channel_dim)).expand(shape(source))


def _alone(chosen: fx.Node) -> Factor:
    """One product with a constant lets all through, the others nothing; products with numbers keep signs alone."""

    def factor(node: fx.Node) -> float:
        number = _number(node)
        return float(node is chosen) if number is None else float(np.sign(number))

    return factor


def _number(node: fx.Node) -> float | None:
    """The number that a product multiplies by."""
    return next((x for x in node.args if isinstance(x, int | float)), None)


def _pairs(signed: Labels) -> tuple[Labels, Labels] | None:
    """Rows from 0 ``(lead, neurons)`` and the quarter turn, from signed rows from 1 that terms let through ``(terms, lead, neurons)``."""
    lead, size = signed.shape[1:]
    rows, quarter = np.zeros((lead, size), dtype=np.int64), np.zeros((lead, size, size), dtype=np.int64)
    for head in range(lead):
        parts = [set(signed[:, head, n].tolist()) - {0} for n in range(size)]
        first = {frozenset(map(abs, each)): n for n, each in enumerate(parts) if len(each) == 2 and min(each) < 0 < max(each)}
        for n, each in enumerate(parts):
            start = first.get(frozenset(map(abs, each)))
            if len(each) == 1 and min(each) > 0:
                rows[head, n] = min(each) - 1
            elif len(each) != 2 or start is None or (start != n and min(each) < 0):
                return None
            elif start == n:
                rows[head, n] = max(each) - 1
            else:
                rows[head, n] = -min(parts[start]) - 1
                quarter[head, start, n], quarter[head, n, start] = -1, 1
    if (quarter != quarter[:1]).any():
        return None
    return rows, quarter[0]


def _commutes(chain: _Chain, found: Turned, lay_out: Callable[[Tensor], Tensor], capture: Capture) -> bool:
    """Whether a quarter turn before the constants' turns is one behind them."""
    source, dim = chain.source, found.reader.channel_dim
    value = torch.randn(shape(source), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size = value.shape[dim]
    heads, first = np.unique(found.rows, axis=0, return_index=True)
    if np.unique(heads).size < heads.size or not len(first):
        return False
    before = torch.zeros(size, size, dtype=torch.float64)
    for rows in heads:
        place = torch.as_tensor(rows)
        before[place[:, None], place] = found.quarter
    turned_first = (value.movedim(dim, -1) @ before.mT).movedim(-1, dim)
    known: dict[fx.Node, Any] = {}

    def factor(node: fx.Node) -> Any:
        constant = next((n for n in node.all_input_nodes if n.meta.get("constant")), None)
        return _number(node) if constant is None else _value(constant, capture, known)

    wanted = lay_out(chain.run(value, factor)) @ found.quarter.mT
    given = lay_out(chain.run(turned_first, factor))
    return bool((given - wanted).abs().max() <= _CLOSE * wanted.abs().max())


def _value(node: fx.Node, capture: Capture, known: dict[fx.Node, Any]) -> Any:
    """The value of a node that depends on no input."""
    if node not in known:
        for each in node.all_input_nodes:
            _value(each, capture, known)
        if node.op == "get_attr":
            known[node] = capture.leaf(str(node.target)).detach().cpu()
        else:
            target: Any = node.target
            known[node] = target(*fx.map_arg(node.args, known.__getitem__), **fx.map_arg(node.kwargs, known.__getitem__))
    return known[node]
