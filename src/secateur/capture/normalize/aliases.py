"""Which results of a graph share memory with an argument, as one run shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from secateur.capture.facts import Observer
from secateur.capture.leaves import address


class Aliases(Observer):
    """An observed run that notes for each result the argument which it views, and whether it is that argument unchanged."""

    def __init__(self, program: fx.GraphModule, flat_inputs: Sequence[Any]) -> None:
        super().__init__(program)
        self.parent: dict[fx.Node, fx.Node] = {}
        self.same: set[fx.Node] = set()
        self._leaves: dict[Any, fx.Node] = {}
        self.observe(flat_inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note which argument it views."""
        result = super().run_node(n)
        if n.op == "call_function":
            self._note(n, result)
        elif n.op == "get_attr" and self._leaves.setdefault(n.target, n) is not n:
            self.parent[n] = self._leaves[n.target]
            self.same.add(n)
        return result

    def _note(self, node: fx.Node, result: Any) -> None:
        memory = _memory(result)
        source = next((each for each in node.all_input_nodes if memory & _memory(self.env[each])), None)
        if source is None:
            return
        self.parent[node] = source
        if isinstance(result, Tensor) and isinstance(self.env[source], Tensor) and _extent(result) == _extent(self.env[source]):
            self.same.add(node)


def _memory(value: Any) -> set[int]:
    return {address(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)} - {0}


def _extent(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
