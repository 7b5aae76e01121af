from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import export

from secateur.capture import observe

GraphOf = Callable[..., fx.Graph]


@pytest.fixture
def graph_of() -> GraphOf:
    """A function that turns a module and its inputs into a graph with facts."""
    return _graph_of


def _graph_of(model: nn.Module, *inputs: Tensor) -> fx.Graph:
    program = export(model.eval(), inputs, strict=False).module()
    assert isinstance(program, fx.GraphModule)
    program.graph.set_codegen(fx.graph.CodeGen())
    for node in list(program.graph.nodes):
        if node.op == "call_module":
            program.graph.erase_node(node)
        elif node.op == "call_function":
            node.meta["module"] = next(reversed(node.meta["nn_module_stack"].values()))[0]
    program.recompile()
    observe(program, inputs)
    return program.graph


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
