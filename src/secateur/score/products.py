"""Products of two activations, as of queries and keys, whatever operator computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.capture import Fact


@dataclass(frozen=True)
class Product:
    """Two activations that are multiplied and summed over the last dimension, once they are put in order."""

    query: fx.Node
    key: fx.Node
    query_order: tuple[int, ...]
    """The query's dimensions in the order: batch and heads, tokens, neurons."""
    key_order: tuple[int, ...]

    def operands(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as ``(..., tokens, neurons)``, with key heads repeated where several query heads share one."""
        query, key = query.permute(self.query_order), key.permute(self.key_order)
        if query.ndim > 2 and key.ndim == query.ndim and query.shape[-3] != key.shape[-3]:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        return query, key


def product_at(node: fx.Node) -> Product | None:
    """The product that a node computes, if it has one dimension of tokens on either side and sums over one dimension."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target.overloadpacket.__name__
    if name == "scaled_dot_product_attention":
        return _of(node.args[0], node.args[1], transposed=False)
    if name in ("matmul", "bmm", "mm"):
        return _of(node.args[0], node.args[1], transposed=True)
    if name in ("baddbmm", "addmm"):
        return _of(node.args[1], node.args[2], transposed=True)
    return _of_einsum(node) if name == "einsum" else None


def _of(query: Any, key: Any, *, transposed: bool) -> Product | None:
    if not isinstance(query, fx.Node) or not isinstance(key, fx.Node):
        return None
    left, right = tuple(range(_rank(query))), tuple(range(_rank(key)))
    if len(left) < 2 or len(left) != len(right):
        return None
    return Product(query, key, left, (*right[:-2], right[-1], right[-2]) if transposed else right)


def _of_einsum(node: fx.Node) -> Product | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    inputs, arrow, out = equation.partition("->")
    words = inputs.split(",")
    if not arrow or "." in equation or len(words) != 2 or not isinstance(operands, list | tuple):
        return None
    shared = set(words[0]) & set(words[1])
    batch = [letter for letter in words[0] if letter in shared and letter in out]
    orders = []
    for word in words:
        tokens = [letter for letter in word if letter not in shared]
        summed = [letter for letter in words[0] if letter in shared and letter not in out]
        if len(tokens) != 1 or len(summed) != 1:
            return None
        orders.append(tuple(word.index(letter) for letter in (*batch, *tokens, *summed)))
    query, key = operands
    return Product(query, key, *orders) if isinstance(query, fx.Node) and isinstance(key, fx.Node) else None


def _rank(node: fx.Node) -> int:
    fact = node.meta.get("fact")
    return len(fact.shape) if isinstance(fact, Fact) else 0
