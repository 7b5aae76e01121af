"""Which rows of which weight make the queries, keys and values of each head, and which columns read them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.calls import packet
from secateur.capture.capture import Capture
from secateur.groups.fields import Labels
from secateur.recover.readers import Reader, shape
from secateur.recover.turned import chooses, stored_value, turned
from secateur.score.products import product_at

_MOVES = (
    *("aten.view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.squeeze", "aten.unsqueeze", "aten.contiguous", "aten.clone"),
    *("aten.permute", "aten.transpose", "aten.t", "aten.mT", "aten.swapaxes", "aten.movedim", "aten.roll"),
    *("aten.slice", "aten.narrow", "aten.select", "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.unbind"),
    *("aten.expand", "aten.repeat_interleave", "aten.index_select"),
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
    quarter: Tensor | None = None
    """Where neurons are turned in pairs behind the layer, a quarter turn of all pairs: ``(neurons, neurons)``."""

    @classmethod
    def of(cls, table: Labels, reader: Reader, quarter: Tensor | None = None) -> Heads | str:
        """Heads of a table ``(lead, neurons)`` that says which row made each element; a reason where it has none."""
        rows, head = np.unique(table, axis=0, return_inverse=True)
        if np.unique(rows).size < rows.size:
            return "heads share rows"
        return cls(reader, rows, head.reshape(-1), quarter)

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
    key_of: Labels
    """The head of keys that each head of queries meets; several may share one."""
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
    """Inputs of the reading layer: ``(mixed heads, neurons)``."""
    head: Labels
    """The mixed head at each place of the leading dimensions: ``(lead,)``."""
    value_of: Labels
    """The head of values that each mixed head is made of; several may share one."""


def query_key(node: fx.Node, made: Mapping[fx.Node, Reader], capture: Capture) -> Product | str:
    """The queries and keys of a product, if nothing but changes of shape and scale or rotary positions stand before it; else the reason."""
    product = product_at(node)
    if product is None:
        return "it is no product of two activations over one dimension"
    sides = []
    for operand, order in ((product.query, product.query_order), (product.key, product.key_order)):
        found = heads_of(operand, order, made, capture)
        if isinstance(found, str):
            return found
        sides.append(found)
    left, right = sides
    if not _alike(left.quarter, right.quarter):
        return "queries and keys are not turned in the same pairs"
    orders, operands = (product.query_order, product.key_order), (product.query, product.key)
    leads = [tuple(shape(operand)[dim] for dim in order[:-2]) for operand, order in zip(operands, orders, strict=True)]
    keys = _repeated(right.head, leads[1], leads[0])
    key_of = None if keys is None else _one_each(left.head, keys)
    if key_of is None:
        return "a head of queries meets several heads of keys"
    return Product(name_of(node, "qk"), node, left, right, key_of, orders, operands)


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def mixing(node: fx.Node, made: Mapping[fx.Node, Reader]) -> Mixing | str:
    """The values that a product mixes, if nothing but changes of shape stands before and behind; else the reason."""
    plain = packet(node) in ("aten.scaled_dot_product_attention", "aten.matmul", "aten.bmm")
    operand = node.args[2 if "attention" in packet(node) else 1] if plain else None
    if not isinstance(operand, fx.Node):
        return f"{packet(node) or node.target} is not followed"
    values = heads_of(operand, tuple(range(len(shape(operand)))), made, None)
    if isinstance(values, str):
        return values
    lead = shape(node)[:-2]
    places = _repeated(values.head, shape(operand)[:-2], lead)
    if places is None:
        return "its leading dimensions are not those of the values"
    found: tuple[Reader, Labels] | str = "nothing mixes its values"
    for head in _mixed_heads(places, lead):
        found = _columns(node, head, values.rows.shape[1], made)
        if not isinstance(found, str):
            value_of = _one_each(head, places)
            assert value_of is not None
            return Mixing(name_of(node, "v"), node, values, *found, head, value_of)
    return str(found)


def _repeated(head: Labels, own: tuple[int, ...], wanted: tuple[int, ...]) -> Labels | None:
    """The head at each of so many leading places, where the last dimension may repeat each, as torch's attention does."""
    if own == wanted:
        return head
    if not own or own[:-1] != wanted[:-1] or wanted[-1] % own[-1]:
        return None
    return np.repeat(head.reshape(own), wanted[-1] // own[-1], axis=-1).reshape(-1)


def _one_each(heads: Labels, others: Labels) -> Labels | None:
    """For each head the other one at the same places; ``None`` if some have several."""
    first = np.unique(heads, return_index=True)[1]
    found: Labels = others[first]
    return found if (found[heads] == others).all() else None


def _mixed_heads(places: Labels, lead: tuple[int, ...]) -> Iterator[Labels]:
    """What may count as one head of mixed values: each head of values, or where several share one, each place of the last dimension."""
    yield places
    if lead:
        inner = np.broadcast_to(np.arange(lead[-1]), lead).reshape(-1)
        if _one_each(inner, places) is not None:
            yield inner


def _columns(node: fx.Node, head: Labels, depth: int, made: Mapping[fx.Node, Reader]) -> tuple[Reader, Labels] | str:
    """The layer that reads mixed values, and the inputs where it reads each neuron of each head."""
    table = (head[:, None] * depth + np.arange(depth)).reshape(*shape(node)[:-2], 1, depth)
    read = _read(node, torch.as_tensor(table, dtype=torch.float64).expand(shape(node)), {r.source: r for r in made.values()})
    if isinstance(read, str):
        return read
    out, inputs = read
    column = np.full((int(head.max()) + 1) * depth, -1)
    column[inputs] = np.arange(inputs.size)
    if np.unique(inputs).size < inputs.size or (column < 0).any():
        return "the next projection reads some neurons several times or never"
    return out, column.reshape(-1, depth)


def name_of(node: fx.Node, last: str) -> str:
    """The name under which people know a product."""
    module = str(node.meta.get("module", ""))
    return f"{module}.{last}" if module else last


def laid_out(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """An operand as ``(lead, tokens, neurons)``."""
    return values.permute(order).flatten(0, -3) if len(order) > 2 else values.permute(order).unsqueeze(0)


def heads_of(operand: fx.Node, order: tuple[int, ...], made: Mapping[fx.Node, Reader], capture: Capture | None) -> Heads | str:
    """The heads of an operand; with a capture also where pairs of neurons are turned."""
    chain: list[fx.Node] = []
    node = operand
    while node not in made:
        before = _before(node)
        if before is None:
            break
        chain.append(node)
        node = before
    if node not in made:
        found = None if capture is None else turned(operand, lambda x: laid_out(x, order), made, _MOVES, capture)
        if found is None:
            return f"{packet(node) or node.name} stands between a projection and the product"
        return _unfit(found.reader) or Heads.of(found.rows, found.reader, found.quarter)
    reader = made[node]
    size = shape(node)[reader.channel_dim]
    index = torch.arange(size, dtype=torch.float64).reshape(-1, *(1,) * (-1 - reader.channel_dim))
    value: Any = index.expand(shape(node))
    for each in reversed(chain):
        value = _moved(each, value)
    table = laid_out(value, order).to(torch.int64).numpy()
    if (table != table[:, :1]).any():
        return "its tokens are made by different rows"
    return _unfit(reader) or Heads.of(table[:, 0], reader)


def _unfit(reader: Reader) -> str:
    if reader.groups > 1 or (_has_bias(reader) and (reader.offset is None or reader.offset[0] != "bias")):
        return "its projection is grouped, or its bias is not its own"
    return ""


def _has_bias(reader: Reader) -> bool:
    bias = reader.node.args[0] if reader.transposed else reader.node.args[2] if len(reader.node.args) > 2 else None
    return isinstance(bias, fx.Node) and packet(reader.node) not in ("aten.mm", "aten.matmul")


def _before(node: fx.Node) -> fx.Node | None:
    """What a node moves or scales; ``None`` where it does anything else."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    others = [n for n in node.all_input_nodes if n is not source and not chooses(node)]
    if node.target is operator.getitem or (packet(node) in _MOVES and not others):
        return source
    if packet(node) in _SCALES and not others and isinstance(node.args[1], int | float):
        return source
    return None


def _moved(node: fx.Node, value: Any) -> Any:
    if packet(node) in _SCALES:
        return value
    target: Any = node.target
    return target(value, *fx.map_arg(node.args[1:], stored_value), **node.kwargs)


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
