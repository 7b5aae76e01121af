"""Where a captured model multiplies by matrices that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from secateur.capture import Capture
from secateur.capture.calls import short_name

_PRODUCTS = frozenset(
    ["linear", "addmm", "addbmm", "baddbmm", "mm", "bmm", "matmul", "mv", "addmv", "dot", "inner", "einsum", "tensordot", "bilinear"]
    + ["lstm", "gru", "rnn_tanh", "rnn_relu"]
    + [f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)]
)
_SAME_VALUES = frozenset(
    [
        *("t", "transpose", "permute", "movedim", "numpy_T", "mT", "adjoint", "view", "reshape", "_unsafe_view", "flatten", "unflatten"),
        *("squeeze", "unsqueeze", "expand", "select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "getitem"),
        *("clone", "contiguous", "to", "_to_copy", "alias", "detach"),
    ]
)


@dataclass(frozen=True)
class Product:
    """A product in the graph: the module whose forward it stands in, and the stored matrices that it multiplies by."""

    module: str
    weights: tuple[str, ...]


def stored_products(capture: Capture) -> tuple[Product, ...]:
    """List the products of a graph with the stored matrices, whole or in parts, that are among their operands."""
    return tuple(_products(capture))


def _products(capture: Capture) -> Iterator[Product]:
    held: dict[fx.Node, str] = {}
    for node in capture.graph.nodes:
        name = "getitem" if node.op == "call_function" and node.target.__name__ == "getitem" else short_name(node)
        if node.op == "get_attr" and _is_matrix(capture, str(node.target)):
            held[node] = str(node.target)
        elif name in _SAME_VALUES and node.all_input_nodes and node.all_input_nodes[0] in held:
            held[node] = held[node.all_input_nodes[0]]
        elif name in _PRODUCTS:
            weights = dict.fromkeys(held[one] for one in node.all_input_nodes if one in held)
            yield Product(node.meta.get("module", ""), tuple(weights))


def _is_matrix(capture: Capture, name: str) -> bool:
    value: Any = capture.leaf(name)
    return isinstance(value, nn.Parameter) and value.dim() > 1 and value.is_floating_point()
