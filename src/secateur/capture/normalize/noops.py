"""Remove calls that change nothing: checks, copies, conversions to what a tensor already is, whole slices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from secateur.capture.normalize.edit import arguments, aten, fact, mutates, operands, shape, static, symbolic
from secateur.capture.values import looks, tells_python


def drop_copies(program: fx.GraphModule) -> None:
    """Read the source instead of a copy of it; for graphs without in-place operators."""
    devices = {tensor.device for tensor in [*program.parameters(), *program.buffers()]}
    bound = _sources(node for node in program.graph.nodes if node.target in _NEED_STRIDES)
    for node in program.graph.nodes:
        if node.op == "call_function" and _changes_nothing(node, devices) and not (node in bound and node.target in _LAYOUTS):
            node.replace_all_uses_with(node.args[0])


def drop_expansions(program: fx.GraphModule) -> None:
    """Read what is expanded instead of the expansion, where every reader broadcasts it by itself."""
    for node in program.graph.find_nodes(op="call_function", target=aten.expand.default):
        source = node.args[0]
        if shape(source) and node.users and all(_broadcasts(user, node, source) for user in node.users):
            node.replace_all_uses_with(source)


def _broadcasts(user: fx.Node, node: fx.Node, source: fx.Node) -> bool:
    """Whether an elementwise call gives the same with the source of an expansion in its place."""
    if torch.Tag.pointwise not in getattr(user.target, "tags", ()):
        return False
    padded = (1,) * (len(shape(node)) - len(shape(source))) + shape(source)
    grown = [dim - len(padded) for dim, size in enumerate(padded) if size != shape(node)[dim]]
    others = [shape(each) for each in user.all_input_nodes if each is not node]
    covered = all(any(len(other) >= -dim and other[dim] == shape(node)[dim] for other in others) for dim in grown)
    return covered and static(node, [len(padded) + dim for dim in grown])


def _sources(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Everything that some nodes are computed from."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def drop_dead(program: fx.GraphModule) -> None:
    """Remove calls that nothing reads, except checks of sizes, and those that write in place or by which Python decides."""
    for node in reversed(program.graph.nodes):
        if not node.users and not _matters(node):
            program.graph.erase_node(node)


def _matters(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output") or node.target is torch._assert or mutates(node) or (tells_python(node) and looks(node))


def _changes_nothing(node: fx.Node, devices: set[torch.device]) -> bool:
    if node.target in _COPIES:
        return True
    if node.target in _CONVERSIONS:
        given = arguments(node)
        wanted = given["other"].meta["fact"].dtype if "other" in given else given["dtype"]
        device = given.get("device")
        return wanted in (None, fact(node.args[0]).dtype) and (device is None or devices <= {torch.device(device)})
    check = _WHOLE.get(node.target)
    return check is not None and check(node)


def _is_whole(node: fx.Node) -> bool:
    """Whether a slice keeps everything."""
    source, dim, start, end, *step = operands(node)
    enough = shape(source)[dim] if static(source, [dim]) else sys.maxsize
    return start == 0 and isinstance(end, int) and end >= enough and not step


def _is_same_shape(node: fx.Node) -> bool:
    return shape(node) == shape(node.args[0]) and static(node) and static(node.args[0])


def _is_same_reshape(node: fx.Node) -> bool:
    """Whether a reshape changes nothing: one dimension may follow the inputs, since the number of elements stays."""
    free = [{dim for dim in range(len(shape(each))) if symbolic(each, dim)} for each in (node, node.args[0])]
    return shape(node) == shape(node.args[0]) and free[0] == free[1] and len(free[0]) <= 1


def _is_in_order(node: fx.Node) -> bool:
    return list(operands(node)[1]) == list(range(len(shape(node))))


_COPIES = {
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
_LAYOUTS = {aten.clone.default, aten.contiguous.default}
_NEED_STRIDES = {aten.as_strided.default, aten.view_as_complex.default, aten.view.dtype}
"""Operators that ask how their operand lies in memory."""
_CONVERSIONS = {
    aten._to_copy.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
}
_WHOLE: dict[Any, Callable[[fx.Node], bool]] = {
    aten.slice.Tensor: _is_whole,
    aten.reshape.default: _is_same_reshape,
    aten.expand.default: _is_same_shape,
    aten.permute.default: _is_in_order,
}
