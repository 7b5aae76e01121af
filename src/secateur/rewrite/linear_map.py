"""Calls that multiply by a stored matrix, as one linear map, and the layer for those whose matrix lies ``(in, out)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from secateur.capture.calls import arguments, packet


class LinearMap(fx.GraphModule):
    """Multiply by a matrix that is stored ``(in, out)``, the transpose of what ``nn.Linear`` stores.

        y = x W + b

    The weight alone tells the widths, so that a smaller one can take its place. A graph module, since it is pickled as one of torch's own.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, device: torch.device | str | None = None) -> None:
        root, graph = nn.Module(), fx.Graph()
        product = graph.call_function(torch.matmul, (graph.placeholder("x"), graph.get_attr("weight")))
        root.register_parameter("weight", nn.Parameter(torch.empty(in_features, out_features, device=device)))
        if bias:
            root.register_parameter("bias", nn.Parameter(torch.empty(out_features, device=device)))
            product = graph.call_function(torch.add, (product, graph.get_attr("bias")))
        graph.output(product)
        super().__init__(root, graph, "LinearMap")

    def extra_repr(self) -> str:
        inputs, outputs = self.get_parameter("weight").shape
        return f"{inputs}, {outputs}, bias={hasattr(self, 'bias')}"


@dataclass(frozen=True)
class Product:
    """One call, or a product and the sum that alone reads it: an input, a stored matrix, and perhaps a stored vector."""

    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    inputs_first: bool
    """Whether the matrix is stored ``(in, out)``."""


def product_of(node: fx.Node) -> Product | None:
    """The linear map that a call computes, if its operands but one are stored."""
    operator, named = packet(node), arguments(node)
    if operator == "aten.linear":
        return _product(named["input"], named["weight"], named["bias"], inputs_first=False)
    if operator in ("aten.mm", "aten.matmul"):
        return _product(named["self"], named["mat2" if operator == "aten.mm" else "other"], None, inputs_first=True)
    if operator == "aten.addmm" and named["beta"] == named["alpha"] == 1:
        return _product(named["mat1"], named["mat2"], named["self"], inputs_first=True)
    return _sum(named["self"], named["other"]) if operator == "aten.add" and named.get("alpha") == 1 else None


def _product(source: Any, weight: Any, bias: Any, *, inputs_first: bool) -> Product | None:
    if isinstance(weight, fx.Node) and packet(weight) == "aten.permute" and list(weight.args[1]) == [1, 0]:  # type: ignore[arg-type]
        weight, inputs_first = weight.args[0], not inputs_first
    stored = isinstance(weight, fx.Node) and weight.op == "get_attr" and (bias is None or bias.op == "get_attr")
    return Product(source, weight, bias, inputs_first) if stored and isinstance(source, fx.Node) else None


def _sum(one: Any, other: Any) -> Product | None:
    """The product with the vector that is added to it, where nobody else reads the product."""
    for call, bias in ((one, other), (other, one)):
        if not isinstance(call, fx.Node) or not isinstance(bias, fx.Node) or bias.op != "get_attr":
            continue
        found = product_of(call) if packet(call) in ("aten.linear", "aten.mm", "aten.matmul") and len(call.users) == 1 else None
        if found is not None and found.bias is None:
            return Product(found.source, found.weight, bias, found.inputs_first)
    return None
