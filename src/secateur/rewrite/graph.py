"""Rewrite the graph: the same calls on smaller tensors, with their shape constants written anew."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.capture.capture import Capture, Fact
from secateur.capture.normalize.constants import PLIANT
from secateur.capture.pause import collector_paused
from secateur.capture.program import as_program
from secateur.rewrite.constants import Site, adjust
from secateur.rewrite.cut import Cut
from secateur.rewrite.slices import Slices


@collector_paused()
def rewrite_graph(cut: Cut, *, values: bool = True) -> fx.GraphModule:
    """A new flat graph of ATen calls that computes with the kept positions alone; without ``values`` no parameter is copied."""
    capture = cut.solution.walk.capture
    root, graph = _leaves(capture, Slices.of(cut), values), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    numbers: dict[fx.Node, Any] = {}
    for node in capture.graph.nodes:
        if PLIANT in node.meta and not _changes(cut, node):
            copies[node] = copies[node.args[0]]
            continue
        copy = graph.node_copy(node, lambda n: copies[n])
        copy.meta = {k: v for k, v in node.meta.items() if k in ("module",)} | {"origin": node}
        copies[node] = copy
        _number(cut, node, numbers)
        if node.op == "call_function" and _changes(cut, node):
            adjust(Site(cut, root, node, copy, numbers))
    program = as_program(root, graph)
    graph.lint()
    return program


def _leaves(capture: Capture, slices: Slices, values: bool) -> nn.Module:
    """Every tensor that the graph reads, cut down, under its own name."""
    root, stored = nn.Module(), capture.model.state_dict(keep_vars=True).keys()
    for node in capture.graph.nodes:
        if node.op == "get_attr":
            leaf = capture.leaf(str(node.target))
            names = capture.tied.get(str(node.target), (str(node.target),))
            tensor = leaf if values or not isinstance(leaf, nn.Parameter) else nn.Parameter(leaf.to("meta"), leaf.requires_grad)
            put(root, str(node.target), smaller(tensor, str(node.target), slices), persistent=not stored.isdisjoint(names))
    return root


def smaller(tensor: Tensor, name: str, slices: Slices) -> Tensor:
    """A tensor cut down, a parameter again if it was one."""
    with torch.no_grad():
        new = slices.apply(name, tensor.detach())
        if new is tensor or new.data_ptr() == tensor.data_ptr():
            new = new.clone()
    return nn.Parameter(new, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def put(root: nn.Module, name: str, value: Tensor | nn.Module, *, persistent: bool = True) -> None:
    """Register a tensor or module under a dotted name, making plain modules on the way; a buffer is part of the state if ``persistent``."""
    *path, last = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(last, value)
    elif isinstance(value, nn.Module):
        owner.add_module(last, value)
    elif last not in owner._buffers:
        owner.register_buffer(last, value, persistent=persistent)


def _changes(cut: Cut, node: fx.Node) -> bool:
    """Whether a call reads or makes a tensor that gets smaller."""
    for each in (node, *node.all_input_nodes):
        fields = cut.solution.walk.fields.get(each, ())
        for one in fields if isinstance(fields, list) else [fields]:
            if cut.touches(one):
                return True
    return False


def _number(cut: Cut, node: fx.Node, numbers: dict[fx.Node, Any]) -> None:
    """What a size, or arithmetic on sizes, comes to in the new graph."""
    if isinstance(node.meta.get("fact"), Fact) or node.op != "call_function":
        return
    target: Any = node.target
    if target in (torch.ops.aten.sym_size.int, torch.ops.aten.size.int):
        numbers[node] = cut.node_shape(node.args[0])[node.args[1]]  # type: ignore[arg-type,index]
    elif not isinstance(node.meta.get("fact"), list | tuple) and isinstance(node.meta.get("fact"), int | float | bool):
        numbers[node] = _evaluated(node, numbers)


def _evaluated(node: fx.Node, numbers: dict[fx.Node, Any]) -> Any:
    target: Any = node.target
    if target is operator.getitem or not callable(target):
        return node.meta["fact"]
    args = fx.node.map_arg(node.args, lambda n: numbers.get(n, n.meta.get("fact")))
    try:
        return target(*args)
    except (TypeError, RuntimeError):
        return node.meta["fact"]
