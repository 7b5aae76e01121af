"""Parts of tensors along an axis, and tensors put together."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Known, Parts, Value


@operator("Slice")
def slice_(call: Call) -> Value:
    """Bounds are attributes before opset 10."""
    x = call[0]
    rank = x.array.ndim if isinstance(x, Known) else call.tensor(0).dim()
    if call.node.opset < 10:
        starts, ends = list(call.attribute("starts")), list(call.attribute("ends"))
        axes, steps = list(call.attribute("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = call.integers(1), call.integers(2)
        axes = call.integers(3) if call.has(3) else list(range(len(starts)))
        steps = call.integers(4) if call.has(4) else [1] * len(starts)
    parts = dict(zip([axis % rank for axis in axes], zip(starts, ends, steps, strict=True), strict=True))
    if isinstance(x, Known):
        return Known(x.array[tuple(slice(*parts[d]) if d in parts else slice(None) for d in range(rank))], x.dtype)
    tensor = call.tensor(0)
    for axis, (start, end, step) in parts.items():
        tensor = _part(tensor, axis, start, end, step)
    return tensor


def _part(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    if step > 0:
        whole: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        return whole
    places = range(*slice(start, end, step).indices(int(x.shape[axis])))
    if step == -1 and len(places) == x.shape[axis]:
        return x.flip(axis)
    return x.index_select(axis, torch.tensor(list(places), device=x.device))


@operator("Concat")
def concat(call: Call) -> Value:
    axis = call.attribute("axis")
    if call.all_known():
        parts = [value for value in call.operands if isinstance(value, Known)]
        return Known(np.concatenate([part.array for part in parts], axis), parts[0].dtype)
    return torch.cat([call.tensor(place) for place in range(len(call.operands))], axis)


@operator("Split")
def split(call: Call) -> tuple[Value, ...]:
    """Into parts of given sizes (an attribute before opset 13), or into equal ones, of which the last may be smaller."""
    axis, count = call.attribute("axis", 0), len(call.node.outputs)
    sizes = call.attribute("split") if call.node.opset < 13 else call.integers(1) if call.has(1) else None
    x = call[0]
    length = x.shape[axis] if isinstance(x, Known) else call.tensor(0).shape[axis]
    if sizes is None:
        whole = -(-length // count)
        sizes = [whole] * (count - 1) + [length - whole * (count - 1)]
    if isinstance(x, Known):
        return tuple(Known(part, x.dtype) for part in np.split(x.array, list(accumulate(sizes))[:-1], axis))
    return torch.split(call.tensor(0), list(sizes), axis)


@operator("SequenceConstruct")
def sequence(call: Call) -> Value:
    return Parts(tuple(call.tensor(place) for place in range(len(call.operands))))


@operator("SplitToSequence")
def split_to_sequence(call: Call) -> Value:
    """Into parts of one size or of given sizes; into single ones, without the axis unless it is kept, if none are given."""
    x, axis = call.tensor(0), call.attribute("axis", 0)
    if not call.has(1):
        return Parts(torch.split(x, 1, axis) if call.attribute("keepdims", 1) else x.unbind(axis))
    sizes, given = call.integers(1), call[1]
    scalar = given.array.ndim == 0 if isinstance(given, Known) else call.tensor(1).dim() == 0
    return Parts(torch.split(x, sizes[0] if scalar else sizes, axis))


@operator("SequenceAt")
def sequence_at(call: Call) -> Value:
    (place,) = call.integers(1)
    parts = _parts(call)
    return parts[int(place)]


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call) -> Value:
    axis = call.attribute("axis")
    return torch.stack(_parts(call), axis) if call.attribute("new_axis", 0) else torch.cat(_parts(call), axis)


def _parts(call: Call) -> tuple[Tensor, ...]:
    value = call[0]
    if not isinstance(value, Parts):
        raise call.node.refuse("operand 0 is no sequence")
    return value.tensors
