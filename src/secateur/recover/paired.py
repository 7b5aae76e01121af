"""The dense and the smaller program side by side on the same inputs, stopped wherever somebody wants to look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from secateur.capture.capture import Fact
from secateur.errors import ModelError


class Steps(fx.Interpreter):
    """Runs a flat program up to a node, and on from there; values are dropped after their last use."""

    def __init__(self, program: fx.GraphModule, leaves: Sequence[Any]) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self._nodes = list(program.graph.nodes)
        self._at = 0
        self.args_iter = iter(leaves)

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


def bytes_at(graph: fx.Graph, stops: Sequence[fx.Node]) -> int:
    """Memory of the values that wait for their use at any of these nodes, at most."""
    last = {source: node for node in graph.nodes for source in node.all_input_nodes}
    waiting: dict[fx.Node, int] = {}
    most, wanted = 0, set(stops)
    for node in graph.nodes:
        if node in wanted:
            most = max(most, sum(waiting.values()))
        if node.op != "get_attr":
            waiting[node] = _bytes(node)
        for source in [*node.all_input_nodes, node]:
            if last.get(source) is node or source not in last:
                waiting.pop(source, None)
    return most


def _bytes(node: fx.Node) -> int:
    fact = node.meta.get("fact")
    facts = fact if isinstance(fact, list | tuple) else [fact]
    return sum(torch.Size(f.shape).numel() * f.dtype.itemsize for f in facts if isinstance(f, Fact))
