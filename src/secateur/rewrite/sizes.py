"""What a cut would leave, before anything is rewritten: the graph with its new shapes noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from secateur.capture.capture import Fact
from secateur.rewrite.cut import Cut
from secateur.rewrite.graph import rewrite_graph


def planned_graph(cut: Cut, program: fx.GraphModule | None = None) -> fx.GraphModule:
    """The rewritten graph, each node with the shape that it will have."""
    program = program or rewrite_graph(cut)
    for node in program.graph.nodes:
        origin = node.meta.get("origin")
        if origin is not None:
            node.meta["fact"] = _new_fact(cut, origin)
    return program


def _new_fact(cut: Cut, node: fx.Node) -> Any:
    fact, fields = node.meta.get("fact"), cut.solution.walk.fields.get(node, ())
    if isinstance(fact, list | tuple) and isinstance(fields, list):
        return [replace(one, shape=cut.shape(f, one.shape)) for one, f in zip(fact, fields, strict=True)]
    return replace(fact, shape=cut.shape(fields, fact.shape)) if isinstance(fact, Fact) and isinstance(fields, tuple) else fact
