"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Value


def linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of a weight of shape ``(out, in)``."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


@layer("MatMul", places=(1, 2))
def matmul_layer(node: Node, weights: Weights) -> nn.Module | None:
    """A third operand is the bias of an addition that followed."""
    weight, bias = weights
    return None if weight is None or weight.dim() != 2 else linear_layer(weight.t(), bias)


@operator("MatMul")
def matmul(call: Call) -> Value:
    if call.layer is not None:
        found: Tensor = call.layer(call.tensor(0))
        return found
    return torch.matmul(call.tensor(0), call.tensor(1))


@layer("Gemm", places=(1, 2))
def gemm_layer(node: Node, weights: Weights) -> nn.Module | None:
    weight, bias = weights
    if weight is None or node.attribute("transA", 0) or (bias is not None and bias.shape[:-1].numel() > 1):
        return None
    weight = _times(weight if node.attribute("transB", 0) else weight.t(), node.attribute("alpha", 1.0))
    if bias is not None:
        bias = _times(bias, node.attribute("beta", 1.0)).reshape(-1).expand(weight.shape[0]).contiguous()
    return linear_layer(weight, bias)


def _times(x: Tensor, factor: float) -> Tensor:
    """A product, of which a factor of 1 leaves the tensor itself."""
    return x if factor == 1.0 else x * factor


@operator("Gemm")
def gemm(call: Call) -> Value:
    if call.layer is not None:
        found: Tensor = call.layer(call.tensor(0))
        return found
    left, right = call.tensor(0), call.tensor(1)
    left = left.t() if call.attribute("transA", 0) else left
    right = right.t() if call.attribute("transB", 0) else right
    product = _times(left @ right, call.attribute("alpha", 1.0))
    return product + _times(call.tensor(2), call.attribute("beta", 1.0)) if call.has(2) else product


@operator("Einsum")
def einsum(call: Call) -> Value:
    return torch.einsum(call.attribute("equation"), *[call.tensor(place) for place in range(len(call.operands))])
