"""Elements by number, read and written."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.capture.onnx.registry import Call, Node, Weights, layer, operator
from secateur.capture.onnx.values import Known, Value, integers


@layer("Gather", places=(0,))
def embedding_layer(node: Node, weights: Weights) -> nn.Module | None:
    """A table of vectors of which inputs of the model choose some is an embedding."""
    (table,) = weights
    if table is None or table.dim() != 2 or not table.is_floating_point() or node.attribute("axis", 0) != 0:
        return None
    made = nn.Embedding(table.shape[0], table.shape[1], device="meta")
    made.weight = nn.Parameter(table)
    return made


@operator("Gather")
def gather(call: Call) -> Value:
    """Slices by number; a single number takes the axis away."""
    found: Tensor
    if call.layer is not None:
        found = call.layer(call.tensor(1))
        return found
    x, places, axis = call[0], call[1], call.attribute("axis", 0)
    if isinstance(x, Known) and isinstance(places, Known):
        taken: Any = np.take(x.array, np.array(places.numbers(), dtype=int).reshape(places.shape), axis)
        return Known.of(taken, x.dtype)
    tensor = call.tensor(0)
    axis = axis % tensor.dim()
    if isinstance(places, Known):
        return _by_numbers(tensor, axis, places)
    found = torch.ops.aten.index.Tensor(tensor, [*[None] * axis, call.tensor(1)])  # brackets would look at a single number
    return found


def _by_numbers(x: Tensor, axis: int, places: Known) -> Tensor:
    numbers = integers(places.numbers())
    if places.array.ndim == 0:
        return x.select(axis, numbers[0])
    if places.array.ndim == 1 and _in_a_row(numbers):
        return x.narrow(axis, numbers[0], len(numbers))
    ahead = Known.of([n + x.shape[axis] if isinstance(n, int) and n < 0 else n for n in numbers], torch.int64)
    index = ahead.tensor(x.device)
    return torch.unflatten(x.index_select(axis, index), axis, places.shape) if places.array.ndim != 1 else x.index_select(axis, index)


def _in_a_row(numbers: list[Any]) -> bool:
    """Whether plain numbers follow each other."""
    plain = bool(numbers) and all(isinstance(n, int) for n in numbers) and numbers[0] >= 0
    return plain and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@operator("GatherElements")
def gather_elements(call: Call) -> Value:
    return torch.gather(call.tensor(0), call.attribute("axis", 0), _counted(call, 1))


def _counted(call: Call, place: int) -> Tensor:
    """Places counted from the front, given ones perhaps from the end."""
    axis, index = call.attribute("axis", 0), call.tensor(place)
    return torch.where(index < 0, index + call.tensor(0).shape[axis], index)


@operator("GatherND")
def gather_nd(call: Call) -> Value:
    x, index, batch = call.tensor(0), call.tensor(1), call.attribute("batch_dims", 0)
    if batch:
        ranges = [torch.arange(n, device=x.device) for n in x.shape[:batch]]
        lifted = [r.reshape([-1 if d == i else 1 for d in range(index.dim() - 1)]) for i, r in enumerate(ranges)]
        return x[(*lifted, *index.unbind(-1))]
    return x[tuple(index.unbind(-1))]


@operator("ScatterND")
def scatter_nd(call: Call) -> Value:
    x, index, update = (call.tensor(place) for place in range(3))
    kind = call.attribute("reduction", "none")
    if kind not in ("none", "add"):
        raise call.node.refuse(f"writing with {kind} cannot be read")
    return torch.index_put(x, tuple(index.unbind(-1)), update, accumulate=kind == "add")


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Value:
    x, update, axis = call.tensor(0), call.tensor(2), call.attribute("axis", 0)
    kind = call.attribute("reduction", "none")
    if kind == "none":
        return torch.scatter(x, axis, _counted(call, 1), update)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, axis, _counted(call, 1), update, names[kind])


@operator("NonZero")
def non_zero(call: Call) -> Value:
    return torch.nonzero(call.tensor(0)).t()


@operator("OneHot")
def one_hot(call: Call) -> Value:
    (depth,), values = call.integers(1), call.tensor(2)
    index, axis = call.tensor(0).long() % depth, call.attribute("axis", -1)
    chosen = torch.nn.functional.one_hot(index, depth).movedim(-1, axis)
    return torch.where(chosen.bool(), values[1], values[0])


@operator("Trilu")
def triangle(call: Call) -> Value:
    k = call.integers(1)[0] if call.has(1) else 0
    return call.tensor(0).triu(k) if call.attribute("upper", 1) else call.tensor(0).tril(k)
