"""Attention as one operator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Value


@operator("Attention")
def attention(call: Call) -> Value:
    """Scaled dot products of queries and keys; operands have heads as a dimension of their own, or beside each other."""
    beyond = [place for place in range(4, len(call.operands)) if call.has(place)]
    if (
        beyond
        or len([name for name in call.node.outputs if name]) > 1
        or call.attribute("softcap", 0.0)
        or call.attribute("qk_matmul_output_mode")
    ):
        raise call.node.refuse("a cache, a cap, or scores as an output cannot be read")
    query, key, value = (call.tensor(place) for place in range(3))
    heads, shared = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
    flat = query.dim() == 3
    if flat:
        query, key, value = _by_head(query, heads), _by_head(key, shared), _by_head(value, shared)
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=call.optional(3),
        is_causal=bool(call.attribute("is_causal", 0)),
        scale=call.attribute("scale"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2).flatten(2) if flat else found


def _by_head(x: Tensor, heads: int) -> Tensor:
    apart: Tensor = torch.unflatten(x, -1, (heads, -1))
    return apart.transpose(1, 2)
