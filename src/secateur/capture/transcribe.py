"""Copying a graph that torch made into the form of a capture."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch.fx.node import Node, map_arg

from secateur.capture.casts import CONVERT, cast_dtype, converts
from secateur.capture.facts import CONSTANT_PREFIX
from secateur.capture.leaves import Leaves
from secateur.capture.writes import close_graph
from secateur.errors import CaptureError

_FIRST_OPERAND = {"wrap_with_set_grad_enabled": 2, "wrap_with_autocast": 5, "tag_activation_checkpoint": 1, "wrap": 1, "invoke_subgraph": 2}
"""Wrappers around a part of the graph, and how many of their arguments stand before the operands of that part."""


class Transcript:
    """A graph in the form of a capture, written from graphs that torch made.

    ``prefix`` is what torch puts before the user's names.
    """

    def __init__(self, leaves: Leaves, input_names: Sequence[str], *, prefix: str = "") -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.inputs = [self.graph.placeholder(name) for name in input_names]
        self._leaves = leaves
        self._prefix = prefix
        self._constant_sources: dict[str, Tensor] = {}
        self._stored: dict[str, Node] = {}
        self._casting = False
        for node in self.inputs:
            node.meta["module"] = ""

    def leaf(self, name: str) -> Node:
        """Return the node of a parameter or buffer by any of its names, as torch has it."""
        return self._get_attr(self._leaves.first_name(name.removeprefix(self._prefix)))

    def constant(self, tensor: Tensor) -> Node:
        """Return the node of a tensor that is no parameter or buffer."""
        name = next((name for name, known in self._constant_sources.items() if known is tensor), None)
        if name is None:
            name = f"{CONSTANT_PREFIX}{len(self.constants)}"
            self._constant_sources[name] = tensor
            self.constants[name] = tensor.detach().clone()
        return self._get_attr(name)

    def write(self, module: fx.GraphModule, operands: Sequence[Any]) -> Any:
        """Copy the calls of a graph, its placeholders standing for ``operands``, and return what it returns."""
        values: dict[Node, Any] = {}
        remaining = iter(operands)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "get_attr":
                values[node] = self._attribute(module, str(node.target))
            elif node.op == "output":
                return map_arg(node.args[0], values.__getitem__)
            else:
                values[node] = self._call(node, values)
        raise CaptureError("The traced graph has no output.")

    def finish(self, outputs: Sequence[Any], name: str) -> fx.GraphModule:
        """Close the graph with its outputs and return the program."""
        self.graph.output(tuple(outputs)).meta["module"] = ""
        return close_graph(self.graph, {**self._leaves.tensors, **self.constants}, name)

    def _get_attr(self, name: str) -> Node:
        if name not in self._stored:
            self._stored[name] = self.graph.create_node("get_attr", name)
            self._stored[name].meta["module"] = ""
        return self._stored[name]

    def _attribute(self, module: fx.GraphModule, target: str) -> Any:
        value: Any = operator.attrgetter(target)(module)
        if not isinstance(value, Tensor):
            return value
        name = self._leaves.name(value)
        return self.constant(value) if name is None else self._get_attr(name)

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        if node.op != "call_function":
            raise CaptureError(f"The traced graph has a node {node.format_node()}, which is no call of an operator.")
        args = map_arg(node.args, values.__getitem__)
        kwargs = map_arg(node.kwargs, values.__getitem__)
        if self._casting:
            args, kwargs = self._cast(node, values)
        if isinstance(node.target, HigherOrderOperator):
            return self._inline(node, args)
        if node.target is operator.getitem and not isinstance(args[0], Node):
            items: Any = args[0]
            return items[args[1]]
        if node.target is torch.ops.aten.detach_.default:
            return args[0]
        copy = self.graph.create_node("call_function", node.target, args, kwargs, name=node.name)
        copy.meta["module"] = _module_path(node, copy, self._prefix)
        return copy

    def _inline(self, node: Node, args: Sequence[Any]) -> Any:
        name = str(node.target)
        first = _FIRST_OPERAND.get(name)
        body = next((x for x in args if isinstance(x, fx.GraphModule)), None)
        if first is None or body is None:
            raise CaptureError(f"The model uses torch.ops.higher_order.{name} (node {node.name}), whose inside cannot be pruned.")
        before = self._casting
        self._casting = bool(args[2]) if name == "wrap_with_autocast" else before
        try:
            return self.write(body, args[first:])
        finally:
            self._casting = before

    def _cast(self, node: Node, values: Mapping[Node, Any]) -> tuple[Any, Any]:
        """The operands of a call under autocast, converted as it would."""
        known = map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
        dtype = cast_dtype(node.target, *known, node.meta.get("val"))  # type: ignore[arg-type]

        def cast(each: Node) -> Any:
            if dtype is None or not converts(each.meta.get("val"), dtype):
                return values[each]
            copy = self.graph.call_function(CONVERT, (values[each], dtype))
            copy.meta["module"] = _module_path(node, copy, self._prefix)
            return copy

        return map_arg(node.args, cast), map_arg(node.kwargs, cast)


def _module_path(node: Node, copy: Node, prefix: str) -> str:
    stack = node.meta.get("nn_module_stack")
    if stack:
        path = re.sub(r"@\d+|^_empty_nn_module_stack.*", "", str(list(stack.values())[-1][0]))
        return f"{path}.".removeprefix("L['self'].").removeprefix(prefix).removesuffix(".")
    owners = [str(x.target).rpartition(".")[0] for x in copy.all_input_nodes if x.op == "get_attr"]
    return owners[0] if owners else ""
