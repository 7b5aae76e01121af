"""Write the reordering of one dimension as what it is: a selection by a constant permutation."""

from __future__ import annotations

from itertools import chain

import torch
from torch import fx

from secateur.capture.normalize.edit import arguments, aten, emit, fact, is_call, leaf, operands, shape, symbolic, unused_name


def select_shuffles(program: fx.GraphModule) -> None:
    """Turn what reorders one dimension into ``index_select`` with a stored index.

    That is a channel shuffle, or reshape, permute, reshape, or advanced indexing of one dimension by a known table.
    """
    for node in list(program.graph.nodes):
        if (found := _shuffle(node)) is not None:
            source, dim, order = found
            if order.equal(torch.arange(shape(source)[dim])):
                node.replace_all_uses_with(source)
            else:
                index = leaf(program, unused_name(program, "_permutation_0"), order.to(_device(program)), node)
                node.replace_all_uses_with(emit(node, aten.index_select.default, source, dim, index, like=node))


def _looked_up(node: fx.Node) -> tuple[fx.Node, int, torch.Tensor] | None:
    """What is indexed along one dimension alone by a table whose numbers no input has a say in."""
    source, indices = operands(node)
    ((dim, index), *others) = [(dim, index) for dim, index in enumerate(indices) if index is not None] or [(0, None)]
    if others or index is None or source.op == "get_attr" or symbolic(source, dim):
        return None
    value = fact(index).value
    if value is None or value.dim() != 1 or value.dtype not in (torch.int32, torch.int64):
        return None
    return source, dim, value.long().cpu() % shape(source)[dim]


def _shuffle(node: fx.Node) -> tuple[fx.Node, int, torch.Tensor] | None:
    """What is shuffled, along which dimension, and the order in which it is read."""
    if is_call(node, aten.channel_shuffle.default, aten.native_channel_shuffle.default):
        return _dealt(node)
    if is_call(node, aten.index.Tensor):
        return _looked_up(node)
    return _turned(node) if is_call(node, aten.reshape.default) else None


def _dealt(node: fx.Node) -> tuple[fx.Node, int, torch.Tensor] | None:
    """Channels that are dealt out from each of several groups in turn."""
    source, groups = arguments(node).values()
    if symbolic(source, 1):
        return None
    return source, 1, torch.arange(shape(source)[1]).reshape(groups, -1).T.flatten()


def _turned(merge: fx.Node) -> tuple[fx.Node, int, torch.Tensor] | None:
    """One dimension that is split, permuted and merged again."""
    move = operands(merge)[0]
    split = operands(move)[0] if is_call(move, aten.permute.default) else None
    if not is_call(split, aten.reshape.default):
        return None
    source = operands(split)[0]
    whole, parts, result = _extents(source), _extents(split), _extents(merge)
    head, tail = _common(whole, parts)
    if shape(source) != shape(merge) or whole != result or len(whole) - head - tail != 1 or len(parts) - head - tail < 2:
        return None
    dim, size, _ = whole[head]
    middle = parts[head : len(parts) - tail]
    if symbolic(source, dim) or any(follows for _, _, follows in middle):
        return None
    places = [place for place, _, _ in parts]
    order = [places.index(place) for place in operands(move)[1] if place in places]
    inner = [place - head for place in order[head : len(parts) - tail]]
    if order != [*range(head), *(place + head for place in inner), *range(len(parts) - tail, len(parts))] or sorted(inner) != list(
        range(len(inner))
    ):
        return None
    return source, dim, torch.arange(size).reshape([extent for _, extent, _ in middle]).permute(inner).flatten()


def _extents(node: fx.Node) -> list[tuple[int, int, bool]]:
    """The dimensions that hold more than one position: place, size, and whether the size follows an input."""
    return [(dim, size, symbolic(node, dim)) for dim, size in enumerate(shape(node)) if size != 1 or symbolic(node, dim)]


def _common(whole: list[tuple[int, int, bool]], parts: list[tuple[int, int, bool]]) -> tuple[int, int]:
    """How many dimensions at the front and at the back are the same in both."""
    pairs = [a[1:] == b[1:] for a, b in zip(whole, parts, strict=False)]
    head = next((count for count, same in enumerate(pairs) if not same), len(pairs))
    pairs = [a[1:] == b[1:] for a, b in zip(whole[head:][::-1], parts[head:][::-1], strict=False)]
    return head, next((count for count, same in enumerate(pairs) if not same), len(pairs))


def _device(program: fx.GraphModule) -> torch.device:
    return next((tensor.device for tensor in chain(program.parameters(), program.buffers())), torch.device("cpu"))
