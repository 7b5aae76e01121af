"""Arithmetic, comparisons and functions of single elements."""

from __future__ import annotations

import math
import operator as python
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from secateur.capture.onnx.registry import Call, Operator, operator
from secateur.capture.onnx.values import Known, Value

BOOL = torch.bool


def _scalar_or_tensor(call: Call, place: int, rank: int) -> Any:
    value = call[place]
    if isinstance(value, Known) and value.array.size == 1 and value.array.ndim <= rank:
        return value.item()
    return call.tensor(place)


def _rank(call: Call) -> int:
    return max((value.dim() for value in call.operands if isinstance(value, Tensor)), default=0)


def operands(call: Call) -> list[Any]:
    """The operands as tensors, single numbers as they are where a tensor meets them."""
    rank = _rank(call)
    found = [_scalar_or_tensor(call, place, rank) for place in range(len(call.operands))]
    if not any(isinstance(value, Tensor) for value in found):
        found[0] = call.tensor(0)
    return found


def _truncated(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0):
        return -(-a // b)
    return a // b


def _divided(a: Any, b: Any) -> Any:
    whole = not any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _binary(name: str, tensors: Callable[[Any, Any], Any], numbers: Callable[[Any, Any], Any], dtype: torch.dtype | None = None) -> None:
    @operator(name)
    def run(call: Call) -> Value:
        if call.all_known():
            a, b = (value for value in call.operands if isinstance(value, Known))
            return a.map(numbers, b, dtype=dtype)
        a_, b_ = operands(call)
        found: Tensor = tensors(a_, b_)
        return found


_binary("Add", python.add, python.add)
_binary("Sub", python.sub, python.sub)
_binary("Mul", python.mul, python.mul)
_binary("Div", _divided, _truncated)
_binary("Pow", python.pow, python.pow)
_binary("Equal", python.eq, python.eq, BOOL)
_binary("Less", python.lt, python.lt, BOOL)
_binary("LessOrEqual", python.le, python.le, BOOL)
_binary("Greater", python.gt, python.gt, BOOL)
_binary("GreaterOrEqual", python.ge, python.ge, BOOL)
_binary("And", torch.logical_and, lambda a, b: bool(a) and bool(b), BOOL)
_binary("Or", torch.logical_or, lambda a, b: bool(a) or bool(b), BOOL)
_binary("Xor", torch.logical_xor, lambda a, b: bool(a) != bool(b), BOOL)
_binary("BitwiseAnd", torch.bitwise_and, python.and_)
_binary("BitwiseOr", torch.bitwise_or, python.or_)


@operator("Mod")
def mod(call: Call) -> Value:
    """The remainder, with the sign of the divisor, or with ``fmod`` of the dividend."""
    c_like = bool(call.attribute("fmod", 0))
    if call.all_known():
        a, b = (value for value in call.operands if isinstance(value, Known))
        return a.map(math.fmod if c_like else python.mod, b)
    a_, b_ = (x if isinstance(x, Tensor | int | float) else call.tensor(place) for place, x in enumerate(operands(call)))
    function: Callable[[Any, Any], Tensor] = torch.fmod if c_like else torch.remainder
    return function(a_, b_)


def _unary(name: str, tensors: Callable[[Tensor], Tensor], numbers: Callable[[Any], Any] | None = None) -> None:
    @operator(name)
    def run(call: Call) -> Value:
        x = call[0]
        if isinstance(x, Known) and numbers is not None:
            return x.map(numbers)
        return tensors(call.tensor(0))


_FUNCTIONS: Sequence[tuple[str, Callable[[Tensor], Tensor]]] = (
    *(("Erf", torch.erf), ("Exp", torch.exp), ("Log", torch.log), ("Sin", torch.sin), ("Cos", torch.cos), ("Tan", torch.tan)),
    *(("Asin", torch.asin), ("Acos", torch.acos), ("Atan", torch.atan), ("Sinh", torch.sinh), ("Cosh", torch.cosh)),
    *(("Asinh", torch.asinh), ("Acosh", torch.acosh), ("Atanh", torch.atanh), ("Tanh", torch.tanh), ("Sigmoid", torch.sigmoid)),
    *(("Reciprocal", torch.reciprocal), ("Round", torch.round), ("Sign", torch.sign), ("IsNaN", torch.isnan), ("IsInf", torch.isinf)),
)
for _name, _function in _FUNCTIONS:
    _unary(_name, _function)
_unary("Abs", torch.abs, abs)
_unary("Neg", torch.neg, python.neg)
_unary("Floor", torch.floor, math.floor)
_unary("Ceil", torch.ceil, math.ceil)
_unary("Sqrt", torch.sqrt, math.sqrt)
_unary("Not", torch.logical_not, lambda value: not value)


def _variadic(name: str, pair: Callable[[Any, Any], Any], numbers: Callable[[Any, Any], Any]) -> None:
    @operator(name)
    def run(call: Call) -> Value:
        if call.all_known():
            return reduce(lambda a, b: a.map(numbers, b), (value for value in call.operands if isinstance(value, Known)))
        found: Tensor = reduce(pair, operands(call))
        return found


def _smaller(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return torch.clamp(a, max=b) if isinstance(a, Tensor) else torch.clamp(b, max=a)


def _larger(a: Any, b: Any) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return torch.clamp(a, min=b) if isinstance(a, Tensor) else torch.clamp(b, min=a)


_variadic("Sum", python.add, python.add)
_variadic("Min", _smaller, min)
_variadic("Max", _larger, max)


@operator("Mean")
def mean(call: Call) -> Value:
    total: Tensor = reduce(python.add, [call.tensor(place) for place in range(len(call.operands))])
    return total / len(call.operands)


@operator("Where")
def where(call: Call) -> Value:
    condition, chosen, other = (call[place] for place in range(3))
    if isinstance(condition, Known) and isinstance(chosen, Known) and isinstance(other, Known):
        return chosen.map(lambda a, c, b: a if c else b, condition, other)
    rank = _rank(call)
    a, b = (_scalar_or_tensor(call, place, rank) for place in (1, 2))
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = call.tensor(1)
    return torch.where(call.tensor(0), a, b)


@operator("Clip")
def clip(call: Call) -> Value:
    """Bounds are attributes before opset 11."""
    if call.node.opset < 11:
        return torch.clamp(call.tensor(0), call.attribute("min"), call.attribute("max"))
    x = call[0]
    lowest, highest = (_bound(call, place) for place in (1, 2))
    if isinstance(x, Known) and not isinstance(lowest, Tensor) and not isinstance(highest, Tensor):
        return x.map(lambda v: _clipped(v, lowest, highest))
    if isinstance(lowest, Tensor) or isinstance(highest, Tensor):
        return torch.clamp(call.tensor(0), call.optional(1), call.optional(2))
    return call.tensor(0) if lowest is None and highest is None else torch.clamp(call.tensor(0), lowest, highest)


def _bound(call: Call, place: int) -> Any:
    return _scalar_or_tensor(call, place, 0) if call.has(place) else None


def _clipped(value: Any, lowest: Any, highest: Any) -> Any:
    value = value if lowest is None else max(value, lowest)
    return value if highest is None else min(value, highest)


@operator("Identity", "Dropout")
def identity(call: Call) -> Value:
    """The first operand; a dropout mask is not computed."""
    return call[0]


__all__ = ["Operator", "operands"]
