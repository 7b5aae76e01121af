"""Write down the temperature that attention takes by default."""

from __future__ import annotations

from torch import fx

from secateur.capture.normalize.edit import aten, is_call, operands, shape


def pin_attention_scale(program: fx.GraphModule) -> None:
    """Give attention without a scale its ``1 / sqrt(head_dim)``, which a thinner head must keep."""
    for node in program.graph.nodes:
        if is_call(node, aten.scaled_dot_product_attention.default) and node.kwargs.get("scale") is None:
            node.kwargs = {**node.kwargs, "scale": shape(operands(node)[0])[-1] ** -0.5}
