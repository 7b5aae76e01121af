"""Cut a fused projection apart where it is made, not after it was reshaped."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

from torch import fx

from secateur.capture.normalize.edit import aten, emit, is_call, operands, shape, shapes, static


@dataclass(frozen=True)
class _Pick:
    """A node that takes ``length`` positions of one dimension of ``source``, from ``start`` on."""

    node: fx.Node
    source: fx.Node
    dim: int
    start: int
    length: int
    drops: bool
    """Whether the dimension, of which one position is left, goes."""


@dataclass(frozen=True)
class _Level:
    """A movement that a pick is pushed through: where the picked dimension lies before and after, and how much of it is picked after."""

    node: fx.Node
    source_dim: int
    dim: int
    length: int
    splits: bool
    """Whether the picked dimension is the outer part of the source's."""


def push_selections_up(program: fx.GraphModule) -> None:
    """Turn select, unbind, split and slice of a reshaped tensor into a slice of the tensor, with the movements on each branch.

    Select of a permute is a permute of a select; select on the outermost part of a split dimension is a slice of the dimension:
    ``linear.view(b, n, 3, h, d).permute(2, 0, 3, 1, 4)[1]`` is ``linear[..., h*d : 2*h*d].view(b, n, h, d).permute(0, 2, 1, 3)``.
    A dimension that is not outermost, as in ``view(b, n, h, 3, d)``, is left alone.
    """
    for node in list(program.graph.nodes):
        pick = _pick(node)
        if pick is not None and static(pick.source, [pick.dim]) and 0 < pick.length < shape(pick.source)[pick.dim]:
            _push(pick)


def _pick(node: fx.Node) -> _Pick | None:
    """What a node takes of a tensor, if it takes a run of positions that is known."""
    if is_call(node, aten.select.int):
        source, dim, index = operands(node)
        return _Pick(node, source, dim, index, 1, True) if isinstance(index, int) else None
    if is_call(node, aten.slice.Tensor) and len(operands(node)) == 4:
        source, dim, start, end = operands(node)
        return _Pick(node, source, dim, start, end - start, False) if isinstance(start, int) and isinstance(end, int) else None
    if not is_call(node, operator.getitem):
        return None
    parts, index = operands(node)
    if is_call(parts, aten.unbind.int):
        source, dim = operands(parts)
        return _Pick(node, source, dim, index, 1, True)
    if is_call(parts, aten.split_with_sizes.default) and len(parts.args) == 3:
        source, lengths, dim = operands(parts)
        known = all(isinstance(length, int) for length in lengths[: index + 1])
        return _Pick(node, source, dim, [0, *accumulate(lengths[:index])][index], lengths[index], False) if known else None
    return None


def _push(pick: _Pick) -> None:
    levels: list[_Level] = []
    source, dim, start, length = pick.source, pick.dim, pick.start, pick.length
    while (found := _origin(source, dim)) is not None:
        source_dim, inner = found
        levels.append(_Level(source, source_dim, dim, length, inner > 1))
        source, dim, start, length = operands(source)[0], source_dim, start * inner, length * inner
    if not any(level.splits for level in levels):
        return
    value = _cut(source, dim, start, start + length, pick.node)
    dropped = False
    for level in reversed(levels):
        drops = dropped or (pick.drops and level.splits and level.length == 1)
        value = _move(value, level, pick.node, dropped=dropped, drops=drops)
        dropped = drops
    pick.node.replace_all_uses_with(value)


def _cut(source: fx.Node, dim: int, start: int, end: int, before: fx.Node) -> fx.Node:
    """A slice of a tensor, or of what that tensor is a slice of."""
    outer = _pick(source) if is_call(source, aten.slice.Tensor) else None
    if outer is not None and outer.dim == dim:
        return _cut(outer.source, dim, outer.start + start, outer.start + end, before)
    return emit(before, aten.slice.Tensor, source, dim, start, end, like=source)


def _origin(node: fx.Node, dim: int) -> tuple[int, int] | None:
    """The source's dimension of which ``dim`` is the outermost part, and how many of its positions make one of ``dim``."""
    if is_call(node, aten.permute.default):
        return operands(node)[1][dim], 1
    if is_call(node, aten.reshape.default, aten.unsqueeze.default):
        return _outer(node, dim)
    if is_call(node, aten.squeeze.dim, aten.squeeze.dims):
        found = _outer(node, dim)
        return None if found is None or found[0] in _squeezed(node) else found
    return None


def _outer(node: fx.Node, dim: int) -> tuple[int, int] | None:
    before, after = shape(operands(node)[0]), shape(node)
    for source_dim, size in enumerate(before):
        if size > 1 and prod(before[:source_dim]) == prod(after[:dim]):
            return (source_dim, size // after[dim]) if _splits_alone(node, source_dim, dim) else None
    return None


def _splits_alone(node: fx.Node, source_dim: int, dim: int) -> bool:
    """Whether some dimensions from ``dim`` on are all of the source's dimension, whatever sizes the inputs have."""
    source, before, after = operands(node)[0], shape(operands(node)[0]), shape(node)
    end = next((end for end in range(dim + 1, len(after) + 1) if prod(after[dim:end]) == before[source_dim]), None)
    if end is None or not static(source, [source_dim]) or not static(node, range(dim, end)):
        return False
    return all(prod(old[:source_dim]) == prod(new[:dim]) for old, new in zip(shapes(source), shapes(node), strict=False))


def _squeezed(node: fx.Node) -> list[int]:
    given: Any = operands(node)[1]
    return [dim % len(shape(operands(node)[0])) for dim in ([given] if isinstance(given, int) else given)]


def _move(value: fx.Node, level: _Level, before: fx.Node, *, dropped: bool, drops: bool) -> fx.Node:
    """The same movement of the picked part, with the picked dimension gone before (``dropped``) or after it (``drops``)."""
    node = level.node
    if is_call(node, aten.permute.default):
        order: list[int] = operands(node)[1]
        return emit(before, aten.permute.default, value, _without(order, level.source_dim) if dropped else order, like=node)
    if is_call(node, aten.unsqueeze.default):
        place: int = operands(node)[1] % len(shape(node))
        return emit(before, aten.unsqueeze.default, value, place - (dropped and level.dim < place), like=node)
    if is_call(node, aten.squeeze.dim, aten.squeeze.dims):
        dims = _squeezed(node)
        return emit(before, aten.squeeze.dims, value, _without(dims, level.source_dim) if dropped else dims, like=node)
    entries: list[Any] = list(operands(node)[1])
    entries[level.dim : level.dim + 1] = [] if drops else [level.length]
    return emit(before, aten.reshape.default, value, entries, like=node)


def _without(dims: list[int], gone: int) -> list[int]:
    return [dim - (dim > gone) for dim in dims if dim != gone]
