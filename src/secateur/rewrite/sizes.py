"""What a cut would leave, before anything is rewritten: the graph with its new shapes noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from secateur.capture.capture import Fact
from secateur.capture.normalize.edit import infer
from secateur.rewrite.cut import Cut
from secateur.rewrite.graph import rewrite_graph


def planned_graph(cut: Cut, program: fx.GraphModule | None = None, *, values: bool = True) -> fx.GraphModule:
    """The rewritten graph, each node with the shape that it will have; without ``values`` its parameters have shapes alone."""
    program = program or rewrite_graph(cut, values=values)
    for node in program.graph.nodes:
        origin = node.meta.get("origin")
        if node.op == "get_attr":
            leaf = _leaf(program, str(node.target))
            fact = Fact((), leaf.dtype) if origin is None else origin.meta["fact"]  # tables of positions that a rewrite adds have no origin
            node.meta["fact"] = replace(fact, shape=tuple(leaf.shape))
        elif origin is not None:
            node.meta["fact"] = _new_fact(cut, origin)
        elif node.op == "call_function" and "fact" not in node.meta:
            infer(node)
    return program


def _leaf(program: fx.GraphModule, name: str) -> Tensor:
    """A tensor as it was cut: of a grouped weight each row keeps inputs of its own, which its labels do not count."""
    owner, _, last = name.rpartition(".")
    tensor = getattr(program.get_submodule(owner), last)
    assert isinstance(tensor, Tensor)
    return tensor


def _new_fact(cut: Cut, node: fx.Node) -> Any:
    fact, fields = node.meta.get("fact"), cut.solution.walk.fields.get(node, ())
    if isinstance(fact, list | tuple) and isinstance(fields, list):
        return [replace(one, shape=cut.shape(f, one.shape)) for one, f in zip(fact, fields, strict=True)]
    return replace(fact, shape=cut.shape(fields, fact.shape)) if isinstance(fact, Fact) and isinstance(fields, tuple) else fact
