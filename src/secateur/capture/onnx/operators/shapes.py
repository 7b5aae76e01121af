"""Shapes as values, and views of other shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Known, Value


@operator("Shape")
def shape(call: Call) -> Value:
    """The sizes, as numbers."""
    x = call[0]
    sizes = list(x.shape if isinstance(x, Known) else call.tensor(0).shape)
    return Known.of(sizes[slice(call.attribute("start", 0), call.attribute("end"))], torch.int64)


@operator("Reshape")
def reshape(call: Call) -> Value:
    """To other sizes, of which 0 takes the old one, and -1 what remains."""
    wanted = call.integers(1) if call.node.opset >= 5 else list(call.attribute("shape"))
    x = call[0]
    if isinstance(x, Known):
        return Known(x.array.reshape([x.shape[d] if _is(n, 0) else n for d, n in enumerate(wanted)]), x.dtype)
    tensor = call.tensor(0)
    copies = not call.attribute("allowzero", 0)
    return tensor.reshape([tensor.shape[d] if copies and _is(n, 0) else n for d, n in enumerate(wanted)])


def _is(number: Any, value: int) -> bool:
    """Whether a size is this number; a symbolic one never is."""
    return isinstance(number, int) and number == value


@operator("Flatten")
def flatten(call: Call) -> Value:
    """To two dimensions: those before an axis, and the others."""
    x = call.tensor(0)
    axis = call.attribute("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    ahead = x.unsqueeze(0) if axis == 0 else x.flatten(0, axis - 1)
    return ahead.flatten(1) if ahead.dim() > 1 else ahead.unsqueeze(1)


@operator("Squeeze")
def squeeze(call: Call) -> Value:
    axes, x = call.axes(1, 13), call[0]
    if isinstance(x, Known):
        kept = [n for d, n in enumerate(x.shape) if not (n == 1 if axes is None else d in [a % x.array.ndim for a in axes])]
        return Known(x.array.reshape(kept), x.dtype)
    tensor = call.tensor(0)
    return tensor.squeeze() if axes is None else tensor.squeeze(axes)


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Value:
    axes, x = call.axes(1, 13) or [], call[0]
    rank = (x.array.ndim if isinstance(x, Known) else call.tensor(0).dim()) + len(axes)
    places = sorted(axis % rank for axis in axes)
    if isinstance(x, Known):
        sizes = iter(x.shape)
        return Known(x.array.reshape([1 if d in places else next(sizes) for d in range(rank)]), x.dtype)
    tensor = call.tensor(0)
    for place in places:
        tensor = tensor.unsqueeze(place)
    return tensor


@operator("Transpose")
def transpose(call: Call) -> Value:
    x = call[0]
    rank = x.array.ndim if isinstance(x, Known) else call.tensor(0).dim()
    order = list(call.attribute("perm", range(rank - 1, -1, -1)))
    return Known(x.array.transpose(order), x.dtype) if isinstance(x, Known) else call.tensor(0).permute(order)


@operator("Expand")
def expand(call: Call) -> Value:
    """By broadcasting: a size of 1 takes that of the tensor."""
    wanted = call.integers(1)
    x = call.tensor(0)
    lacking = max(x.dim() - len(wanted), 0)
    target = [1] * lacking + wanted
    offset = len(target) - x.dim()
    return x.expand([-1 if d >= offset and _keeps(x, d - offset, n) else n for d, n in enumerate(target)])


def _keeps(x: Tensor, dim: int, wanted: Any) -> bool:
    """Whether a dimension stays as it is: because 1 is asked for, or what it has."""
    return _is(wanted, 1) or (not _is(x.shape[dim], 1) and bool(x.shape[dim] == wanted))


@operator("Tile")
def tile(call: Call) -> Value:
    return call.tensor(0).repeat(call.integers(1))


@operator("Cast", "CastLike")
def cast(call: Call) -> Value:
    """To another type."""
    if call.node.operator == "CastLike":
        like = call[1]
        dtype = like.dtype if isinstance(like, Known) else call.tensor(1).dtype
    else:
        dtype = call.attribute("to")
    x = call[0]
    return x.map(lambda value: _cast(value, dtype), dtype=dtype) if isinstance(x, Known) else call.tensor(0).to(dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if dtype is torch.bool:
        return bool(value)
    if dtype.is_floating_point:
        return value if isinstance(value, torch.SymInt | torch.SymFloat) else float(value)
    return value if isinstance(value, torch.SymInt) else torch.sym_int(value)
