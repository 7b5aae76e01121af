"""Sums, means and extremes along axes; sorting."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce as fold
from typing import Any

import torch
from torch import Tensor

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Known, Value

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


_REDUCTIONS: dict[str, tuple[Reduce, int]] = {
    "ReduceMean": (lambda x, axes, keep: x.mean(axes, keepdim=keep), 18),
    "ReduceSum": (lambda x, axes, keep: x.sum(axes, keepdim=keep), 13),
    "ReduceMax": (lambda x, axes, keep: x.amax(axes, keepdim=keep), 18),
    "ReduceMin": (lambda x, axes, keep: x.amin(axes, keepdim=keep), 18),
    "ReduceProd": (_product, 18),
    "ReduceL1": (lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keepdim=keep), 18),
    "ReduceL2": (lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep), 18),
    "ReduceSumSquare": (lambda x, axes, keep: (x * x).sum(axes, keepdim=keep), 18),
    "ReduceLogSum": (lambda x, axes, keep: x.sum(axes, keepdim=keep).log(), 18),
    "ReduceLogSumExp": (lambda x, axes, keep: x.logsumexp(axes, keepdim=keep), 18),
}
_NUMBERS: dict[str, Callable[[list[Any]], Any]] = {"ReduceProd": math.prod, "ReduceSum": sum, "ReduceMax": max, "ReduceMin": min}


@operator(*_REDUCTIONS)
def reduce(call: Call) -> Value:
    """Along some axes, or along all if none are given; those are an operand since opset 13 for sums and 18 for all others."""
    function, since = _REDUCTIONS[call.node.operator]
    axes, keep = call.axes(1, since), bool(call.attribute("keepdims", 1))
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return call[0]
    x = call[0]
    if isinstance(x, Known) and call.node.operator in _NUMBERS and x.array.ndim <= 1:
        total = _NUMBERS[call.node.operator](x.numbers())
        return Known.of([total], x.dtype, (1,) * (x.array.ndim if keep else 0))
    tensor = call.tensor(0)
    chosen = [axis % tensor.dim() for axis in axes] if axes else list(range(tensor.dim()))
    return function(tensor, chosen, keep)


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Value:
    if call.attribute("select_last_index", 0):
        raise call.node.refuse("the last of equal values cannot be asked for in PyTorch")
    function = torch.argmax if call.node.operator == "ArgMax" else torch.argmin
    return function(call.tensor(0), dim=call.attribute("axis", 0), keepdim=bool(call.attribute("keepdims", 1)))


@operator("CumSum")
def cumulative_sum(call: Call) -> Value:
    x, (axis,) = call.tensor(0), call.integers(1)
    backwards = bool(call.attribute("reverse", 0))
    steps = x.flip(axis) if backwards else x
    total = steps.cumsum(axis)
    total = total - steps if call.attribute("exclusive", 0) else total
    return total.flip(axis) if backwards else total


@operator("TopK")
def top_k(call: Call) -> tuple[Value, ...]:
    (k,) = call.integers(1) if call.node.opset >= 10 else (call.attribute("k"),)
    largest, in_order = bool(call.attribute("largest", 1)), bool(call.attribute("sorted", 1))
    values, places = torch.topk(call.tensor(0), k, call.attribute("axis", -1), largest=largest, sorted=in_order)
    return values, places


@operator("Size")
def size(call: Call) -> Value:
    x = call[0]
    shape = x.shape if isinstance(x, Known) else call.tensor(0).shape
    return Known.of(fold(lambda a, b: a * b, shape, 1), torch.int64)
