"""Which rows of which weight make the queries, keys and values of each head, and which columns read them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.groups.fields import Labels
from secateur.recover.readers import Reader, packet, shape
from secateur.score.products import product_at

_MOVES = (
    *("aten.view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.squeeze", "aten.unsqueeze", "aten.contiguous", "aten.clone"),
    *("aten.permute", "aten.transpose", "aten.t", "aten.mT", "aten.swapaxes", "aten.movedim", "aten.roll"),
    *("aten.slice", "aten.narrow", "aten.select", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind"),
    *("aten.alias", "aten.detach", "aten.dropout"),
)
_SCALES = ("aten.mul", "aten.div")


@dataclass(frozen=True, eq=False)
class Heads:
    """One operand of an attention product, laid out as ``(lead, tokens, neurons)``."""

    reader: Reader
    """The layer that makes it."""
    rows: Labels
    """Rows of the layer's weight: ``(heads, neurons)``."""
    head: Labels
    """The head at each place of the leading dimensions: ``(lead,)``."""

    @classmethod
    def of(cls, table: Labels, reader: Reader) -> Heads | str:
        """Heads of a table ``(lead, tokens, neurons)`` that says which row made each element; a reason where it has none."""
        if (table != table[:, :1]).any():
            return "its tokens are made by different rows"
        rows, head = np.unique(table[:, 0], axis=0, return_inverse=True)
        if np.unique(rows).size < rows.size:
            return "heads share rows"
        return cls(reader, rows, head.reshape(-1))

    def kept(self, rows: Labels) -> list[tuple[Labels, Labels]]:
        """For each head the neurons whose rows stay, and the places of these among all rows that stay."""
        place = np.full(int(max(self.rows.max(), rows.max(initial=0))) + 1, -1)
        place[rows] = np.arange(rows.size)
        return [(np.flatnonzero(place[each] >= 0), place[each][place[each] >= 0]) for each in self.rows]


@dataclass(frozen=True, eq=False)
class Product:
    """Queries and keys that are multiplied, or values that are mixed and then read by one layer."""

    name: str
    node: fx.Node
    left: Heads
    right: Heads
    order: tuple[tuple[int, ...], tuple[int, ...]]
    """The dimensions of both operands in the order: leading ones, tokens, neurons."""
    operands: tuple[fx.Node, fx.Node]


@dataclass(frozen=True, eq=False)
class Mixing:
    """Values that attention mixes over tokens, and the layer that reads them."""

    name: str
    node: fx.Node
    """Its output is ``(*lead, tokens, neurons)``."""
    values: Heads
    out: Reader
    columns: Labels
    """Inputs of the reading layer: ``(heads, neurons)``."""


def query_key(node: fx.Node, made: Mapping[fx.Node, Reader]) -> Product | str:
    """The queries and keys of a product, if nothing but changes of shape and scale stands before it; else the reason."""
    product = product_at(node)
    if product is None:
        return "it is no product of two activations over one dimension"
    sides = []
    for operand, order in ((product.query, product.query_order), (product.key, product.key_order)):
        found = _heads(operand, order, made)
        if isinstance(found, str):
            return found
        sides.append(found)
    left, right = sides
    pairs = {(int(a), int(b)) for a, b in zip(left.head, right.head, strict=False)}
    if len(left.head) != len(right.head) or len(pairs) != len(left.rows) or len(pairs) != len(right.rows):
        return "several query heads share one key head"
    right = Heads(right.reader, right.rows[[b for _, b in sorted(pairs)]], left.head)
    return Product(name_of(node, "qk"), node, left, right, (product.query_order, product.key_order), (product.query, product.key))


def mixing(node: fx.Node, made: Mapping[fx.Node, Reader]) -> Mixing | str:
    """The values that a product mixes, if nothing but changes of shape stands before and behind; else the reason."""
    plain = packet(node) in ("aten.scaled_dot_product_attention", "aten.matmul", "aten.bmm")
    operand = node.args[2 if "attention" in packet(node) else 1] if plain else None
    if not isinstance(operand, fx.Node):
        return f"{packet(node) or node.target} is not followed"
    values = _heads(operand, tuple(range(len(shape(operand)))), made)
    if isinstance(values, str):
        return values
    if shape(node)[:-2] != shape(operand)[:-2]:
        return "several query heads share one value head"
    lead = values.rows[values.head].reshape(*shape(node)[:-2], 1, -1)
    table = torch.as_tensor(lead, dtype=torch.float64).expand(shape(node))
    read = _read(node, table, {r.source: r for r in made.values()})
    if isinstance(read, str):
        return read
    out, inputs = read
    column = np.full(int(values.rows.max()) + 1, -1)
    column[inputs] = np.arange(inputs.size)
    return Mixing(name_of(node, "v"), node, values, out, column[values.rows])


def name_of(node: fx.Node, last: str) -> str:
    """The name under which people know a product."""
    module = str(node.meta.get("module", ""))
    return f"{module}.{last}" if module else last


def laid_out(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """An operand as ``(lead, tokens, neurons)``."""
    return values.permute(order).flatten(0, -3) if len(order) > 2 else values.permute(order).unsqueeze(0)


def _heads(operand: fx.Node, order: tuple[int, ...], made: Mapping[fx.Node, Reader]) -> Heads | str:
    chain: list[fx.Node] = []
    node = operand
    while node not in made:
        before = _before(node)
        if before is None:
            return f"{packet(node) or node.name} stands between a projection and the product"
        chain.append(node)
        node = before
    reader = made[node]
    if reader.groups > 1 or (_has_bias(reader) and (reader.offset is None or reader.offset[0] != "bias")):
        return "its projection is grouped, or its bias is not its own"
    rank, size = len(shape(node)), shape(node)[reader.channel_dim]
    index = torch.arange(size, dtype=torch.float64).reshape(-1, *(1,) * (-1 - reader.channel_dim))
    value: Any = index.expand(shape(node)) if rank else index
    for each in reversed(chain):
        value = _moved(each, value)
    table = laid_out(value, order).to(torch.int64).numpy()
    return Heads.of(table, reader)


def _has_bias(reader: Reader) -> bool:
    bias = reader.node.args[0] if reader.transposed else reader.node.args[2] if len(reader.node.args) > 2 else None
    return isinstance(bias, fx.Node) and packet(reader.node) not in ("aten.mm", "aten.matmul")


def _before(node: fx.Node) -> fx.Node | None:
    """What a node moves or scales; ``None`` where it does anything else."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    others = [n for n in node.all_input_nodes if n is not source]
    if node.target is operator.getitem or (packet(node) in _MOVES and not others):
        return source
    if packet(node) in _SCALES and not others and isinstance(node.args[1], int | float):
        return source
    return None


def _moved(node: fx.Node, value: Any) -> Any:
    if packet(node) in _SCALES:
        return value
    target: Any = node.target
    return target(value, *node.args[1:], **node.kwargs)


def _read(node: fx.Node, table: Tensor, reading: Mapping[fx.Node, Reader]) -> tuple[Reader, Labels] | str:
    """The layer that reads a node's output, and which element each of its inputs comes from."""
    value: Any = table
    while node not in reading:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        if user is None or _before(user) is not node or packet(user) in _SCALES:
            return f"{'several calls' if user is None else packet(user) or user.name} stand between the product and the next projection"
        node, value = user, _moved(user, value)
    reader = reading[node]
    if len(node.users) != 1 or reader.groups > 1 or reader.taps > 1:
        return "it is read by more than one projection, or by a convolution over positions"
    inputs = value.movedim(reader.channel_dim, -1).reshape(-1, value.shape[reader.channel_dim]).to(torch.int64).numpy()
    if (inputs != inputs[:1]).any():
        return "positions of the next projection read different neurons"
    return reader, inputs[0]
