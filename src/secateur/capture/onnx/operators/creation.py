"""Tensors made of numbers."""

from __future__ import annotations

import math

import torch

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import LONGEST, Known, Value


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Value:
    sizes, filled = call.integers(0), call.attribute("value")
    value, dtype = (0.0, torch.float32) if filled is None else (filled.item(), filled.dtype)
    if all(type(n) is int for n in sizes) and math.prod(sizes) <= LONGEST and not dtype.is_floating_point:
        return Known.of([value] * math.prod(sizes), dtype, tuple(sizes))
    return torch.full(sizes, value, dtype=dtype, device=call.device)


@operator("Range")
def range_(call: Call) -> Value:
    """Numbers if there are few of them, else a tensor."""
    start, limit, step = (call.numbers(place)[0] for place in range(3))
    first = call[0]
    dtype = first.dtype if isinstance(first, Known) else call.tensor(0).dtype
    if all(type(n) is int for n in (start, limit, step)) and len(range(start, limit, step)) <= LONGEST:
        return Known.of(list(range(start, limit, step)), dtype)
    return torch.arange(start, limit, step, dtype=dtype, device=call.device)


@operator("EyeLike")
def eye_like(call: Call) -> Value:
    x = call.tensor(0)
    if call.attribute("k", 0):
        raise call.node.refuse("a diagonal beside the middle cannot be read")
    return torch.eye(*x.shape, dtype=call.attribute("dtype", x.dtype), device=x.device)
