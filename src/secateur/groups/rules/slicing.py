"""Slices, selections and splits, and writing into them."""

from __future__ import annotations

import operator

import numpy as np

from secateur.groups.fields import Field, Fields, compact
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


def taken(call: Call, x: Operand, dim: int, where: slice | np.ndarray) -> Fields:
    """Fields of the part of ``x`` at some positions of a dimension; a label left alone is held."""
    fields = []
    for field in x.fields:
        if dim not in field.dims:
            fields.append(field)
            continue
        labels = compact(field.labels[(slice(None),) * dim + (where,)])
        if all(size == 1 for size in labels.shape):
            call.ledger.freeze(labels, "a single position of it is picked")
        else:
            fields.append(field.laid(labels))
    units = {f.dims for f in fields if not f.block}
    return tuple(f for f in fields if not (f.block and f.dims in units))


@rule("aten.slice", "aten.narrow", "aten.slice_copy", pliant=True)
def slice_(call: Call) -> Outcome:
    """Positions from start to end, in steps."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    if "length" in call.args:
        start = call["start"] % x.shape[dim] if x.shape[dim] else 0
        return taken(call, x, dim, slice(start, start + call["length"]))
    return taken(call, x, dim, slice(call["start"], call["end"], call["step"]))


@rule("aten.select", "aten.select_copy", pliant=True)
def select(call: Call) -> Outcome:
    """One position of a dimension, which goes."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    index = call["index"] % x.shape[dim]
    fields = taken(call, x, dim, slice(index, index + 1))
    return tuple(f.laid(f.labels.reshape(f.labels.shape[:dim] + f.labels.shape[dim + 1 :])) for f in fields)


@rule(
    "aten.split",
    "aten.split_with_sizes",
    "aten.chunk",
    "aten.tensor_split",
    "aten.unsafe_chunk",
    "aten.unsafe_split",
    "aten.split_with_sizes_copy",
)
def split(call: Call) -> Outcome:
    """Consecutive parts of a dimension; one that nobody reads holds nothing."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    read = {user.args[1] if user.target is operator.getitem else None for user in call.node.users}
    parts = []
    for number, shape in enumerate(call.shapes):
        start = sum(each[dim] for each in call.shapes[:number])
        wanted = bool({number, None} & read)
        parts.append(taken(call, x, dim, slice(start, start + shape[dim])) if wanted else ())
    return parts


@rule("aten.unbind", "aten.unbind_copy")
def unbind(call: Call) -> Outcome:
    """Every position of a dimension on its own."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    parts = [taken(call, x, dim, slice(i, i + 1)) for i in range(x.shape[dim])]
    return [tuple(f.laid(f.labels.reshape(f.labels.shape[:dim] + f.labels.shape[dim + 1 :])) for f in part) for part in parts]


@rule("aten.slice_scatter", pliant=True)
def slice_scatter(call: Call) -> Outcome:
    """Written values meet the labels of the place they are written to."""
    x, dim = call["self"], call["dim"] % len(call["self"].shape)
    place = taken(call, x, dim, slice(call["start"], call["end"], call["step"]))
    return _scattered(call, x, place, call["src"])


@rule("aten.select_scatter", pliant=True)
def select_scatter(call: Call) -> Outcome:
    """A written position meets the labels of its place."""
    x, dim = call["self"], call["dim"] % len(call["self"].shape)
    index = call["index"] % x.shape[dim]
    place = taken(call, x, dim, slice(index, index + 1))
    return _scattered(
        call, x, tuple(f.laid(f.labels.reshape(f.labels.shape[:dim] + f.labels.shape[dim + 1 :])) for f in place), call["src"]
    )


def _scattered(call: Call, x: Operand, place: Fields, source: Operand) -> Fields:
    meet(call.ledger, [Shaped(source.shape, place), source], len(source.shape))
    labelled = frozenset().union(*(f.dims for f in x.fields))
    bare = tuple(f for f in source.fields if not f.dims <= labelled)
    call.ledger.freeze_fields(bare, "is written into a tensor without labels")
    return tuple(Field(f.labels, f.block) for f in x.fields)
