"""Concatenation, stacking, repetition and padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx

from secateur.groups.fields import NONE, Field, Fields, along, row_along
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule("aten.cat", "aten.concat", "aten.concatenate", pliant=True)
def cat(call: Call) -> Outcome:
    """Along the joined dimension labels follow one another; along the others they meet."""
    parts = [p for p in call["tensors"] if math.prod(p.shape)] or call["tensors"]
    dim = call["dim"] % len(call.shape)
    return joined(call, parts, dim)


def joined(call: Call, parts: list[Operand], dim: int) -> Fields:
    """Fields of parts laid one after the other."""
    rank = len(call.shape)
    across = [Shaped((*p.shape[:dim], 1, *p.shape[dim + 1 :]), tuple(f for f in p.fields if dim not in f.dims)) for p in parts]
    others = meet(call.ledger, across, rank)
    if any(len(f.dims) > 1 and dim in f.dims for p in parts for f in p.fields):
        return _jointly(call, parts, dim, others)
    mine = [f for p in parts for f in p.fields if dim in f.dims]
    if not mine:
        return others
    labels = np.concatenate([_row(p, dim) for p in parts])
    return (*others, Field(along(labels, dim, rank), pliant=all(f.pliant for f in mine)))


def _row(part: Operand, dim: int) -> np.ndarray:
    field = row_along(part.fields, dim)
    return np.full(part.shape[dim], NONE) if field is None else field.labels.ravel()


def _jointly(call: Call, parts: list[Operand], dim: int, others: Fields) -> Fields:
    """Parts whose labels vary jointly over the joined dimension and others: joined row by row."""
    joint = [next((f for f in p.fields if dim in f.dims and not f.block), None) for p in parts]
    rows = {d: f.labels.shape[d] for f in joint if f is not None and len(f.dims) > 1 for d in f.dims - {dim}}
    wide = [None if f is None else _in_every_row(call, f, dim, rows) for f in joint]
    shapes = {f.dims - {dim} for f in wide if f is not None}
    if len(shapes) != 1 or any(f is None for f in wide):
        return _give_up(call, parts, dim, others)
    field = Field(np.concatenate([f.labels for f in wide if f is not None], axis=dim))
    for block in (f for f in others if f.block and f.dims < field.dims):
        call.ledger.contain(block.labels, field.labels)
    return call.ledger.complete((*others, field))


def _in_every_row(call: Call, field: Field, dim: int, rows: dict[int, int]) -> Field:
    """Labels that are the same in every row get one for each row, so that rows can go from what they are joined with."""
    if field.dims != {dim} or (field.labels == NONE).any():
        return field
    shape = [rows.get(d, size) for d, size in enumerate(field.labels.shape)]
    labels = call.ledger.fresh(int(np.prod(shape))).reshape(shape)
    call.ledger.unite(labels, field.labels)
    return Field(labels)


def _give_up(call: Call, parts: list[Operand], dim: int, others: Fields) -> Fields:
    for part in parts:
        call.ledger.freeze_fields(tuple(f for f in part.fields if dim in f.dims), "is joined with parts of another layout")
    return others


@rule("aten.stack", pliant=True)
def stack(call: Call) -> Outcome:
    """Parts meet along all dimensions; the new one carries no labels."""
    parts = call["tensors"]
    dim = call["dim"] % len(call.shape)
    fields = meet(call.ledger, parts, len(call.shape) - 1)
    return tuple(f.laid(np.expand_dims(f.labels, dim)) for f in fields)


@rule("aten.repeat", "aten.tile", pliant=True)
def repeat(call: Call) -> Outcome:
    """The labels repeat as the values do; what has no labels because it has size 1 repeats as often as what it meets has them."""
    x = call["self"]
    times = list(call["repeats"] if "repeats" in call.args else call["dims"])
    lead = len(call.shape) - len(x.shape)
    times = [1] * (len(call.shape) - len(times)) + times
    out = []
    for field in x.fields:
        labels = field.labels.reshape((1,) * lead + field.labels.shape)
        labels = np.tile(labels, [t if d in {i + lead for i in field.dims} else 1 for d, t in enumerate(times)])
        out.append(field.laid(labels))
    padded = (1,) * lead + x.shape
    grown = [d for d, size in enumerate(call.shape) if size > 1 and padded[d] == 1 and times[d] == size]
    return (*out, *(Field(along(call.ledger.fresh(call.shape[d]), d, len(call.shape)), pliant=True) for d in grown))


@rule("aten.repeat_interleave")
def repeat_interleave(call: Call) -> Outcome:
    """Each label repeats in place; the repeats of one label form a row of their own."""
    x, times = call["self"], call["repeats"]
    if not isinstance(times, int):
        return call.refuse("repeat_interleave with a tensor of counts has no rule")
    dim = call.args.get("dim")
    if dim is None:
        return call.refuse("repeat_interleave of a flattened tensor has no rule")
    dim %= len(x.shape)
    return tuple(f.with_labels(np.repeat(f.labels, times, axis=dim)) if dim in f.dims else f for f in x.fields)


@rule("aten.constant_pad_nd", "aten.pad", "aten.reflection_pad1d", "aten.reflection_pad2d", "aten.reflection_pad3d")
def pad(call: Call) -> Outcome:
    """Padded places of a labelled dimension get labels of their own; reflected or repeated ones hold the dimension, as do numbers of
    places that follow the inputs."""
    rank = len(call["self"].shape)
    pads: Any = call.node.args[1]
    following = {rank - 1 - place // 2 for place, each in enumerate(pads) if isinstance(each, fx.Node)}
    for field in call["self"].fields:
        if field.dims & following:
            call.ledger.freeze(field.labels, "is padded by a number of places that follows the inputs")
    return _padded(call, call["self"], list(call.args.get("pad") or call.args.get("padding") or []))


@rule("aten.replication_pad1d", "aten.replication_pad2d", "aten.replication_pad3d")
def replication_pad(call: Call) -> Outcome:
    """Borders are repeated outwards."""
    return _padded(call, call["self"], list(call["padding"]))


def _padded(call: Call, x: Operand, pads: list[int]) -> Fields:
    constant = "constant_pad" in str(call.node.target) or call.args.get("mode") == "constant"
    rank = len(x.shape)
    out = []
    for field in x.fields:
        touched = {d for d in field.dims if (rank - 1 - d) * 2 < len(pads) and any(pads[(rank - 1 - d) * 2 : (rank - 1 - d) * 2 + 2])}
        if not touched:
            out.append(field)
        elif constant and len(field.dims) == 1 and not field.block:
            out.append(_extended(call, field, touched.pop(), pads))
        else:
            call.ledger.freeze(field.labels, "is padded along several dimensions or not by a constant")
    return tuple(out)


def _extended(call: Call, field: Field, dim: int, pads: list[int]) -> Field:
    rank = field.labels.ndim
    before, after = pads[(rank - 1 - dim) * 2 : (rank - 1 - dim) * 2 + 2]
    row = field.labels.ravel()
    row = row[max(-before, 0) : row.size - max(-after, 0)]
    parts = [call.ledger.fresh(max(before, 0)), row, call.ledger.fresh(max(after, 0))]
    return Field(along(np.concatenate(parts), dim, rank))


@rule("aten.pixel_shuffle", "aten.pixel_unshuffle")
def pixel_shuffle(call: Call) -> Outcome:
    """``r * r`` neighbouring channels make the pixels of one: they go together."""
    x, shuffles = call["self"], "unshuffle" not in str(call.node.target)
    factor = call.args.get("upscale_factor") or call["downscale_factor"]
    dim = len(x.shape) - 3
    held = tuple(f for f in x.fields if f.dims & {dim + 1, dim + 2})
    call.ledger.freeze_fields(held, "a dimension whose pixels are moved")
    fields = []
    for field in (f for f in x.fields if f not in held):
        if dim not in field.dims:
            fields.append(field)
        elif shuffles:
            shape = list(field.labels.shape)
            shape[dim : dim + 1] = [shape[dim] // factor**2, factor**2]
            labels = field.labels.reshape(shape)
            first = labels.take([0], axis=dim + 1)
            call.ledger.unite(first, labels)
            fields.append(Field(first.squeeze(dim + 1), field.block))
        else:
            fields.append(Field(np.repeat(field.labels, factor**2, axis=dim), field.block))
    return tuple(fields)


@rule("aten.im2col", "aten.unfold_backward")
def im2col(call: Call) -> Outcome:
    """Each channel makes ``k * k`` rows of patches."""
    x = call["self"]
    kernel = math.prod(call["kernel_size"])
    held = tuple(f for f in x.fields if any(d >= 2 for d in f.dims) or len(x.shape) < 4)
    call.ledger.freeze_fields(held, "a dimension that patches are cut from")
    out = []
    for field in (f for f in x.fields if f not in held):
        labels = field.labels.reshape(field.labels.shape[:2])
        labels = np.repeat(labels, kernel, axis=1) if 1 in field.dims else labels
        out.append(Field(labels[:, :, None], field.block))
    return tuple(out)


@rule("aten.col2im")
def col2im(call: Call) -> Outcome:
    """``k * k`` rows of patches add up to one channel."""
    x = call["self"]
    kernel = math.prod(call["kernel_size"])
    out = []
    for field in x.fields:
        if field.dims == {1}:
            labels = field.labels.reshape(field.labels.shape[0], -1, kernel)
            first = labels[:, :, :1]
            call.ledger.unite(first, labels)
            out.append(Field(first[:, :, 0][:, :, None, None], field.block))
        elif field.dims <= {0}:
            out.append(Field(field.labels.reshape(*field.labels.shape, 1), field.block))
        else:
            call.ledger.freeze(field.labels, "a dimension that patches are put together from")
    return tuple(out)


@rule("aten.unfold")
def unfold(call: Call) -> Outcome:
    """Windows along one dimension, which stays whole."""
    x = call["self"]
    dim = call["dimension"] % len(x.shape)
    held = tuple(f for f in x.fields if dim in f.dims)
    call.ledger.freeze_fields(held, "windows slide along it")
    return tuple(Field(f.labels[..., None], f.block) for f in x.fields if f not in held)
