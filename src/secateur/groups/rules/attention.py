"""Scaled dot-product attention: scores contract over the head dimension, values over the keys."""

from __future__ import annotations

import numpy as np

from secateur.groups.fields import Field, Fields
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.contraction import product
from secateur.groups.rules.reduction import after_softmax
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> Outcome:
    """``softmax(q k^T + mask) v`` with broadcast batch dimensions."""
    query, key, value, mask = call["query"], call["key"], call["value"], call["attn_mask"]
    if call.args.get("enable_gqa"):
        key, value = (_repeated(each, query.shape[-3]) for each in (key, value))
    batch = "abcdefgh"[: len(query.shape) - 2]
    scores = product(call, [query, key], [batch + "qz", batch + "kz"], batch + "qk")
    shape = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        scores = meet(call.ledger, [Shaped(shape, scores), mask], len(shape))
    weights = Operand(shape, after_softmax(call.ledger, scores, frozenset({len(shape) - 1})))
    return product(call, [weights, value], [batch + "qk", batch + "kv"], batch + "qv")


def _repeated(x: Operand, heads: int) -> Operand:
    """Key or value heads shared by consecutive query heads."""
    dim = len(x.shape) - 3
    times = heads // x.shape[dim]
    fields: Fields = tuple(Field(np.repeat(f.labels, times, axis=dim), f.block) if dim in f.dims else f for f in x.fields)
    shape = (*x.shape[:dim], x.shape[dim] * times, *x.shape[dim + 1 :])
    return Operand(shape, fields, parametric=x.parametric)
