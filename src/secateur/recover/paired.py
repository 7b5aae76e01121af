"""The dense and the smaller program side by side on the same inputs, stopped wherever somebody wants to look."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import fx

from secateur.capture.capture import Fact
from secateur.errors import ModelError
from secateur.rewrite import Cut


class Steps(fx.Interpreter):
    """Runs a flat program up to a node, and on from there; values are dropped after their last use."""

    def __init__(self, program: fx.GraphModule, leaves: Sequence[Any]) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self._nodes = list(program.graph.nodes)
        self._at = 0
        self.args_iter = iter(leaves)

    def fork(self) -> Self:
        """Another run from here on, which leaves this one where it is."""
        other = copy.copy(self)
        other.env, other.args_iter = dict(self.env), copy.copy(self.args_iter)
        return other

    def until(self, stop: fx.Node) -> None:
        """Run what comes before a node."""
        try:
            while self._nodes[self._at] is not stop:
                self.step()
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(f"The captured model does not run on the calibration data: {error}") from error

    def step(self, *, value: Any = None) -> Any:
        """Run the next node, or take a value for what it returns."""
        node = self._nodes[self._at]
        self.env[node] = self.run_node(node) if value is None else value
        found = self.env[node]
        for last in self.user_to_last_uses.get(node, []):
            del self.env[last]
        self._at += 1
        return found


def bytes_at(graph: fx.Graph, sizes: Callable[[fx.Node], int], stops: Iterable[fx.Node]) -> Mapping[fx.Node, tuple[int, int]]:
    """Memory of the values that wait for their use, before and behind each stop, with the size of each node's value."""
    last = {source: node for node in graph.nodes for source in node.all_input_nodes}
    waiting: dict[fx.Node, int] = {}
    found, wanted = {}, set(stops)
    for node in graph.nodes:
        before = sum(waiting.values()) if node in wanted else 0
        if node.op != "get_attr" and node in last:
            waiting[node] = sizes(node)
        for source in node.all_input_nodes:
            if last[source] is node:
                waiting.pop(source, None)
        if node in wanted:
            found[node] = before, sum(waiting.values())
    return found


def dense_bytes(node: fx.Node) -> int:
    """Memory of what a node of the dense graph returns."""
    return sum(torch.Size(fact.shape).numel() * fact.dtype.itemsize for fact in _facts(node))


def _facts(node: fx.Node) -> list[Fact]:
    fact = node.meta.get("fact")
    return [f for f in (fact if isinstance(fact, list | tuple) else [fact]) if isinstance(f, Fact)]


def small_bytes(node: fx.Node, cut: Cut) -> int:
    """Memory of what is left of it in the smaller graph."""
    fact = node.meta.get("fact")
    return torch.Size(cut.node_shape(node)).numel() * fact.dtype.itemsize if isinstance(fact, Fact) else dense_bytes(node)
