"""Mark tensors that a graph makes of numbers and sizes alone, so that positions of them can be left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from secateur.capture.capture import Fact
from secateur.capture.normalize.edit import aten, emit, mutates, overload, shape, symbolic

PLIANT = "pliant"
"""Meta of a node: the dimensions, of fixed size, along which any positions of its tensor can be left out."""

_OF_A_SHAPE = frozenset({"new_zeros", "new_ones", "new_full"})
_SIZES = (aten.sym_size.int, aten.sym_numel.default)
_READERS = frozenset(
    {
        *("add", "sub", "mul", "div", "where", "masked_fill", "maximum", "minimum", "pow", "clamp"),
        *("cat", "stack", "expand", "linear", "matmul", "bmm", "mm", "einsum", "slice_scatter", "select_scatter"),
    }
)
"""Operators that can do with fewer positions of such a tensor."""


def mark_constants(program: fx.GraphModule) -> None:
    """Put a copy between tensors that no input and no weight has a say in (tables of positions, zeros, masks) and what reads them.

    The copy's meta tells along which dimensions it may be cut; what the tensor is computed from stays whole.
    """
    if any(map(mutates, program.graph.nodes)):
        return
    made: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_made(node, made):
            made.add(node)
    for node in sorted(made):
        readers = [user for user in node.users if user not in made and _reads(user)]
        if readers and isinstance(node.meta["fact"], Fact) and any(size > 1 for size in shape(node)):
            _mark(node, readers)


def _is_made(node: fx.Node, made: set[fx.Node]) -> bool:
    if node.target in _SIZES:
        return True
    target = overload(node)
    sources = node.all_input_nodes
    if target is None:
        return bool(sources) and made.issuperset(sources)
    if torch.Tag.nondeterministic_seeded in target.tags or "empty" in target._schema.name:
        return False
    return made.issuperset(sources[1:] if _name(node) in _OF_A_SHAPE else sources)


def _name(node: fx.Node) -> str:
    target = overload(node)
    return "" if target is None else target._schema.name.removeprefix("aten::")


def _reads(node: fx.Node) -> bool:
    return _name(node) in _READERS


def _mark(node: fx.Node, readers: list[fx.Node]) -> None:
    copy: Any = emit(node.next, aten.clone.default, node, like=node)
    copy.meta[PLIANT] = tuple(dim for dim in range(len(shape(node))) if not symbolic(node, dim))
    for reader in readers:
        reader.replace_input_with(node, copy)
