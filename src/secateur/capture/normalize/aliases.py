"""Which results of a graph share memory with an argument, as the run that told its facts showed."""

from __future__ import annotations

import operator

from torch import fx

from secateur.capture.facts import NOWHERE, Memory


class Aliases:
    """For each result that views an argument the argument, and whether it is that argument unchanged."""

    def __init__(self, program: fx.GraphModule) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.same: set[fx.Node] = set()
        leaves: dict[object, fx.Node] = {}
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._note(node)
            elif node.op == "get_attr" and leaves.setdefault(node.target, node) is not node:
                self.parent[node] = leaves[node.target]
                self.same.add(node)

    def _note(self, node: fx.Node) -> None:
        memory = _memory(node)
        source = next((each for each in node.all_input_nodes if memory.addresses & _memory(each).addresses), None)
        if source is None or self._is_one_of_several(node, source):
            return
        self.parent[node] = source
        if memory.place is not None and memory.place == _memory(source).place:
            self.same.add(node)

    def _is_one_of_several(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a tensor is one of those that a call made, each in memory of its own."""
        facts = source.meta.get("fact")
        apart = isinstance(facts, list) and len(facts) == len(_memory(source).addresses)
        return node.target is operator.getitem and apart and source not in self.parent


def _memory(node: fx.Node) -> Memory:
    found = node.meta.get("memory", NOWHERE)
    assert isinstance(found, Memory)
    return found
