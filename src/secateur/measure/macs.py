"""Multiply-adds of a captured graph: by node, by weight, and what was not counted."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from secateur.capture.capture import Fact
from secateur.measure.formulas import Product, operator_name, products, shape_of

_MOVES = frozenset(
    {
        "_to_copy",
        "arange",
        "cat",
        "channel_shuffle",
        "clone",
        "concat",
        "constant_pad_nd",
        "copy",
        "detach_copy",
        "dropout",
        "embedding",
        "empty",
        "empty_like",
        "expand_copy",
        "eye",
        "feature_dropout",
        "fill",
        "flip",
        "full",
        "full_like",
        "gather",
        "hstack",
        "im2col",
        "index",
        "index_put",
        "index_select",
        "lift_fresh_copy",
        "linspace",
        "masked_fill",
        "masked_select",
        "meshgrid",
        "native_channel_shuffle",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "nonzero",
        "one_hot",
        "ones",
        "ones_like",
        "pad",
        "permute_copy",
        "pixel_shuffle",
        "pixel_unshuffle",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "repeat",
        "repeat_interleave",
        "roll",
        "rot90",
        "scalar_tensor",
        "scatter",
        "select_scatter",
        "slice_scatter",
        "stack",
        "take",
        "take_along_dim",
        "tile",
        "tril",
        "triu",
        "unfold",
        "unfold_copy",
        "vstack",
        "where",
        "zero",
        "zeros",
        "zeros_like",
    }
)
"""Operators that make or move values and compute none (those that return views need no entry)."""


@dataclass(frozen=True)
class MacCount:
    """Multiply-adds of one run of a graph, on the example inputs that it was captured with.

    FLOPs are twice the MACs. What is elementwise, normalises or pools is not counted; ``not_counted`` says what there was of it.
    """

    total: int
    by_node: Mapping[str, int]
    """MACs of every counted node, by its name."""
    by_weight: Mapping[str, int]
    """MACs with each parameter or buffer, by the name that the graph uses for it."""
    by_product: Mapping[str, int]
    """MACs between activations, by module path and operator (``"blocks.0.attn.scaled_dot_product_attention"``)."""
    not_counted: Mapping[str, int]
    """How many calls there are of each operator that does arithmetic and is not counted."""

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition for each MAC."""
        return 2 * self.total

    @property
    def by_layer(self) -> dict[str, int]:
        """MACs by layer: weights under the module that owns them, products of activations under their own names."""
        layers: Counter[str] = Counter()
        for weight, macs in self.by_weight.items():
            layers[weight.rpartition(".")[0] or weight] += macs
        return dict(layers + Counter(self.by_product))

    def to_json(self) -> dict[str, Any]:
        """The count as plain JSON values."""
        return asdict(self)


def count_macs(graph: fx.Graph) -> MacCount:
    """Count the multiply-adds of every call in a captured graph, from the shapes in ``node.meta["fact"]``."""
    by_node: Counter[str] = Counter()
    by_weight: Counter[str] = Counter()
    by_product: Counter[str] = Counter()
    not_counted: Counter[str] = Counter()
    weights: dict[fx.Node, fx.Node | None] = {}
    for node in graph.nodes:
        found = products(node) if node.op == "call_function" else ()
        if not found:
            _follow_weight(node, weights)
            not_counted.update([operator_name(node.target)] if _computes(node) else [])
        for product in found:
            weight = _weight_of(product, weights)
            by_node[node.name] += product.macs
            by_product[_product_name(node)] += 0 if weight else product.macs
            by_weight[str(weight.target) if weight else ""] += product.macs if weight else 0
    return MacCount(by_node.total(), dict(by_node), dict(+by_weight), dict(+by_product), dict(sorted(not_counted.items())))


def _follow_weight(node: fx.Node, weights: dict[fx.Node, fx.Node | None]) -> None:
    """Note which leaf a node is computed from, if model inputs and products have no part in it."""
    if node.op == "get_attr":
        weights[node] = node
    elif node.op == "call_function" and all(source in weights for source in node.all_input_nodes):
        weights[node] = _largest([weights[source] for source in node.all_input_nodes])


def _weight_of(product: Product, weights: Mapping[fx.Node, fx.Node | None]) -> fx.Node | None:
    return _largest([weights.get(operand) for operand in product.operands])


def _largest(leaves: list[fx.Node | None]) -> fx.Node | None:
    # A gain or a mean is computed into a weight; the weight itself is the larger.
    return max((leaf for leaf in leaves if leaf is not None), key=lambda leaf: prod(shape_of(leaf)), default=None)


def _product_name(node: fx.Node) -> str:
    return ".".join(filter(None, (node.meta.get("module", ""), operator_name(node.target))))


def _computes(node: fx.Node) -> bool:
    """Whether a call does arithmetic on tensors, as far as its name and schema tell."""
    if node.op != "call_function" or node.target is operator.getitem or operator_name(node.target) in _MOVES:
        return False
    if not any(isinstance(leaf, Fact) for leaf in pytree.tree_leaves(node.meta["fact"])):
        return False
    return not (isinstance(node.target, torch._ops.OpOverload) and is_view(node.target))


def is_view(target: torch._ops.OpOverload) -> bool:
    """Whether the operator gives its input's own values back under another shape (``to`` and ``contiguous`` among them)."""
    aliases = [value.alias_info for value in target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
