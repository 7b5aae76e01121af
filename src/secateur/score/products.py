"""Products of two activations, as of queries and keys, whatever operator computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.calls import arguments
from secateur.capture.capture import Fact
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.places import numbers, place_of


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
    if not isinstance(operands, list | tuple) or len(operands) != 2 or "->" not in equation:
        return None
    query, key = operands
    if not isinstance(query, fx.Node) or not isinstance(key, fx.Node):
        return None
    inputs, _, out = equation.partition("->")
    first, second = inputs.split(",")
    ranks = {_rank(each) - len(word.replace("...", "")) for each, word in ((query, first), (key, second)) if "..." in word}
    if len(ranks) > 1:
        return None
    some = "".join(chr(ord("\u0100") + n) for n in range(max(ranks, default=0)))
    words, made = [word.replace("...", some) for word in (first, second)], out.replace("...", some)
    batch = [letter for letter in words[0] if letter in words[1] and letter in made]
    query_order, key_order = (_order(own, other, made, batch) for own, other in (words, words[::-1]))
    return None if query_order is None or key_order is None else Product(query, key, query_order, key_order)


def _order(own: str, other: str, made: str, batch: Sequence[str]) -> tuple[int, ...] | None:
    """The dimensions of one operand in the order of a product, if it has one of tokens and one that is summed over."""
    summed = [letter for letter in own if letter in other and letter not in made]
    tokens = [letter for letter in own if letter not in other]
    if len(tokens) != 1 or len(summed) != 1:
        return None
    return tuple(own.index(letter) for letter in (*batch, *tokens, *summed))


def _rank(node: fx.Node) -> int:
    fact = node.meta.get("fact")
    return len(fact.shape) if isinstance(fact, Fact) else 0


def neurons_of(product: Product, group: ChannelGroup, solution: Solution) -> Tensor | None:
    """The channel of each query neuron, in the shape of the queries without the tokens; ``None`` where tokens differ in it.

    Of size 1 where it does not change, -1 for other groups' neurons.
    """
    place = place_of(product.query, numbers(group, solution), solution)
    if place is None:
        return None
    channels = torch.as_tensor(place.channels).permute(product.query_order)
    return channels.squeeze(-2) if channels.shape[-2] == 1 else None


def visible(node: fx.Node, inputs: Mapping[fx.Node, Tensor], operand: Tensor) -> Tensor | None:
    """1 for tokens that the mask of attention lets some query see, 0 for others, as padding: ``(lead, tokens)``."""
    given = arguments(node).get("attn_mask")
    mask = inputs.get(given) if isinstance(given, fx.Node) else None
    if mask is None or mask.shape[-1] != operand.shape[-2]:
        return None
    seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(-2)
    if seen.ndim > 1 and seen.shape[-2] != 1 and seen.shape[-2] != operand.shape[-3]:
        seen = seen.any(-2, keepdim=True)
    return seen.expand(*operand.shape[:-2], seen.shape[-1]).flatten(0, -2).to(operand)
