"""Which operands a call writes in place, and keeping such writes off the user's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from secateur.capture.program import as_program
from secateur.capture.values import tells_python

aten = torch.ops.aten

_UPDATES_STATISTICS: dict[Any, tuple[int, int, int]] = {
    aten.batch_norm.default: (3, 4, 5),
    aten.instance_norm.default: (3, 4, 5),
}
"""Calls that write running statistics without their schema saying so: positions of mean and variance, and of the flag that turns it on."""


def written(target: Callable[..., Any] | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the operands (tensors or nodes) that a call of ``target`` writes in place."""
    if target in _UPDATES_STATISTICS:
        mean, variance, flag = _UPDATES_STATISTICS[target]
        return [args[i] for i in (mean, variance) if args[flag] and args[i] is not None]
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return []
    operands: list[Any] = []
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            operands += [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
    return operands


def detach_writes(graph: fx.Graph, origins: Iterable[fx.Node]) -> None:
    """Let the graph write to a copy wherever it would write to a placeholder or a stored tensor."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for origin in origins:
        place = graph.inserting_before(first) if origin.op == "placeholder" else graph.inserting_after(origin)
        with place:
            copy = graph.call_function(aten.clone.default, (origin,))
        copy.meta = dict(origin.meta)
        for user in [user for user in origin.users if user is not copy]:
            user.replace_input_with(origin, copy)


def close_graph(graph: fx.Graph, tensors: Mapping[str, torch.Tensor], name: str) -> fx.GraphModule:
    """Drop calls that nobody needs (assertions of torch's own among them), and return the graph as a program that holds the tensors."""
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users and not _matters_unused(node):
            graph.erase_node(node)
    graph.lint()
    used = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return as_program({target: tensors[target] for target in tensors if target in used}, graph, name)


def _matters_unused(node: fx.Node) -> bool:
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return (
        is_random
        or node.target is torch._assert
        or tells_python(node)
        or bool(node.op == "call_function" and written(node.target, node.args, node.kwargs))
    )
