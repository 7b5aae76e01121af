"""Mark tensors that a graph makes of numbers and sizes alone, so that positions of them can be left out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate, map_arg

from secateur.capture.capture import Fact
from secateur.capture.normalize.edit import aten, emit, mutates, overload, shape, stand_in

PLIANT = "pliant"
"""Meta of a node: the dimensions, of fixed size, along which any positions of its tensor can be left out."""

_OF_A_SHAPE = frozenset({"new_zeros", "new_ones", "new_full"})
_SIZES = (aten.sym_size.int, aten.sym_numel.default)
_MOVERS = frozenset({"expand", "permute", "repeat", "reshape", "to", "unsqueeze"})
"""Operators that hand the positions of one tensor on, in another shape."""
_READERS = frozenset(
    {
        *("cat", "stack", "copy", "where", "masked_fill", "expand", "slice_scatter", "select_scatter"),
        *("linear", "matmul", "bmm", "mm", "einsum", "addmm", "baddbmm", "conv1d", "conv2d", "conv3d"),
    }
)
"""Operators that can do with fewer positions of such a tensor, beside those that work element by element."""


def mark_constants(program: fx.GraphModule) -> None:
    """Put a copy between tensors that no input and no weight has a say in (tables of positions, zeros, masks) and what reads them.

    The copy's meta tells along which dimensions it may be cut; what the tensor is computed from stays whole.
    """
    if any(map(mutates, program.graph.nodes)):
        return
    made: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_made(node, made):
            made[node] = None
    runs = _elsewhere(made)
    for node in made:
        readers = [user for user in node.users if user not in made and _reads(user)]
        if readers and isinstance(node.meta["fact"], Fact) and any(size > 1 for size in shape(node)):
            _mark(*_before_merging(node, readers, runs))


def _is_made(node: fx.Node, made: dict[fx.Node, None]) -> bool:
    if node.target in _SIZES:
        return True
    target = overload(node)
    if target is None:
        return bool(node.all_input_nodes) and all(source in made for source in node.all_input_nodes)
    if torch.Tag.nondeterministic_seeded in target.tags or "empty" in target._schema.name:
        return False
    return all(source in made for source in _sources(node))


def _sources(node: fx.Node) -> list[fx.Node]:
    """What the values of a call come from."""
    return node.all_input_nodes[1:] if _name(node) in _OF_A_SHAPE else node.all_input_nodes


def _elsewhere(made: dict[fx.Node, None]) -> list[dict[fx.Node, Any]]:
    """What such tensors are like when sizes are doubled: all of them together, and those of each dimension alone."""
    places: dict[Any, set[fx.Node]] = {}
    for node in made:
        if node.target in _SIZES:
            places.setdefault(node.args, set()).add(node)
    every = set().union(*places.values())
    return [_values(made, doubled) for doubled in (every, *(places.values() if len(places) > 1 else ()))]


def _values(made: dict[fx.Node, None], doubled: set[fx.Node]) -> dict[fx.Node, Any]:
    """What the calls return without content; those that do not take these sizes are left out, with what reads them."""
    values: dict[fx.Node, Any] = {}
    for node in made:
        if node.target in _SIZES:
            values[node] = node.meta["fact"] * (2 if node in doubled else 1)
        elif all(source in values for source in node.all_input_nodes if source in made):
            args, kwargs = map_arg((node.args, node.kwargs), lambda each: values[each] if each in made else stand_in(each.meta["fact"]))
            with suppress(Exception):
                values[node] = node.target(*map_aggregate(args, _nowhere), **map_aggregate(kwargs, _nowhere))  # type: ignore[operator]
    return values


def _nowhere(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value


def _fixed_dims(node: fx.Node, runs: list[dict[fx.Node, Any]]) -> list[int]:
    """Dimensions whose size no run has changed; none if the call went in no run."""
    sizes = [run[node].shape for run in runs if node in run]
    return [dim for dim, size in enumerate(shape(node)) if sizes and all(other[dim] == size for other in sizes)]


def _before_merging(node: fx.Node, readers: list[fx.Node], runs: list[dict[fx.Node, Any]]) -> tuple[fx.Node, list[fx.Node], list[int]]:
    """A tensor, what reads it, and its dimensions of fixed size; where it has none, what it repeats or merges if that has some."""
    source, reader = node, node
    while not (dims := _wide(source, runs)) and _name(source) in _MOVERS:
        reader, source = source, source.all_input_nodes[0]
    return (source, [reader], dims) if dims and source is not node else (node, readers, _fixed_dims(node, runs))


def _wide(node: fx.Node, runs: list[dict[fx.Node, Any]]) -> list[int]:
    """Fixed dimensions of more than one position."""
    return [dim for dim in _fixed_dims(node, runs) if shape(node)[dim] > 1]


def _name(node: fx.Node) -> str:
    target = overload(node)
    return "" if target is None else target._schema.name.removeprefix("aten::")


def _reads(node: fx.Node) -> bool:
    return _name(node) in _READERS or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _mark(node: fx.Node, readers: list[fx.Node], dims: list[int]) -> None:
    copy: Any = emit(node.next, aten.clone.default, node, like=node)
    copy.meta[PLIANT] = tuple(dims)
    for reader in readers:
        reader.replace_input_with(node, copy)
