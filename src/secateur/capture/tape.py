"""Writing a graph while tensors are being computed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils.weak import WeakIdKeyDictionary

from secateur.capture.facts import CONSTANT_PREFIX
from secateur.capture.leaves import Leaves, address, place
from secateur.capture.modules import ModulePath
from secateur.capture.untouched import Keepsakes
from secateur.capture.values import tells_python
from secateur.capture.writes import close_graph, written
from secateur.errors import CaptureError

aten = torch.ops.aten

_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Tape:
    """A graph under construction, and which of its nodes stands for which living tensor."""

    def __init__(self, leaves: Leaves, path: ModulePath, keepsakes: Keepsakes) -> None:
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._leaves = leaves
        self._path = path
        self._keepsakes = keepsakes
        self._nodes: MutableMapping[Tensor, fx.Node] = WeakIdKeyDictionary()
        self._stored: dict[str, fx.Node] = {}

    def placeholder(self, name: str, value: Any) -> None:
        """Write a placeholder for a leaf of the inputs."""
        self._remember(value, self._placed(self.graph.placeholder(name)))

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], run: Callable[[], Any]) -> Any:
        """Run one call, and write it down if it makes or changes a tensor, or tells Python what is in one."""
        if target is aten.detach_.default or getattr(target, "namespace", "") == "profiler":
            return run()
        operands = written(target, args, kwargs)
        for operand in operands:
            for leaf in self._leaves.sharing(operand):
                self._keepsakes.keep(leaf)
        node_args = map_aggregate(args, self._operand)
        node_kwargs = {
            name: map_aggregate(value, self._operand) for name, value in kwargs.items() if not isinstance(value, torch.Generator)
        }
        result = run()
        items = result if isinstance(result, list | tuple) else [result]
        target = aten.lift_fresh_copy.default if target is aten.lift_fresh.default else target
        node = self._placed(self.graph.call_function(target, node_args, node_kwargs))
        if operands or any(isinstance(item, Tensor) for item in items) or tells_python(node):
            self._remember(result, node)
        else:
            self.graph.erase_node(node)
        return result

    def run(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Carry out a call."""
        return target(*args, **kwargs)

    def finish(self, model: nn.Module, outputs: Sequence[Any]) -> fx.GraphModule:
        """Close the graph with its outputs and return the program."""
        self._placed(self.graph.output(tuple(self._operand(leaf) for leaf in outputs)))
        return close_graph(self.graph, {**self._leaves.tensors, **self.constants}, type(model).__name__)

    def _remember(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self._nodes[value] = node
        elif isinstance(value, list | tuple):
            for position, item in enumerate(value):
                self._remember(item, self._placed(self.graph.call_function(operator.getitem, (node, position))))

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, _PLAIN):
            return value
        raise CaptureError(f"A call in module {self._path.current!r} takes a {type(value).__name__}, which a graph cannot hold.")

    def _node(self, tensor: Tensor) -> fx.Node:
        known = self._nodes.get(tensor)
        if known is None:
            known = self._leaf(tensor) or self._alias(tensor) or self._constant(tensor)
            self._nodes[tensor] = known
        return known

    def _leaf(self, tensor: Tensor) -> fx.Node | None:
        name = self._leaves.name(tensor)
        return None if name is None else self._get_attr(name)

    def _alias(self, tensor: Tensor) -> fx.Node | None:
        """Find the node of a tensor that was made unseen from a known one, as ``.data`` does."""
        if not address(tensor):
            return None
        owners = [(owner, node) for owner, node in self._nodes.items() if address(owner) == address(tensor)]
        twin = next((node for owner, node in reversed(owners) if place(owner) == place(tensor)), None)
        if twin is not None or not owners:
            return twin
        strided = (owners[-1][1], list(tensor.shape), list(tensor.stride()), tensor.storage_offset())
        return self._placed(self.graph.call_function(aten.as_strided.default, strided))

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"{CONSTANT_PREFIX}{len(self.constants)}"
        self.constants[name] = self._keepsakes.keep(tensor)
        return self._get_attr(name)

    def _get_attr(self, name: str) -> fx.Node:
        if name not in self._stored:
            self._stored[name] = self._placed(self.graph.create_node("get_attr", name))
        return self._stored[name]

    def _placed(self, node: fx.Node) -> fx.Node:
        node.meta["module"] = self._path.current
        return node
