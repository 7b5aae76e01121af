"""Reshapes and permutations: labels go through the movement themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from secateur.groups.fields import NONE, Field, Fields, Labels, along, hierarchy, permuted, regroup, reshaped
from secateur.groups.ledger import Rectangle
from secateur.groups.meeting import flattened
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule(
    *(
        "aten.reshape",
        "aten.view",
        "aten.view_copy",
        "aten._unsafe_view",
        "aten.reshape_as",
        "aten.view_as",
        "aten.flatten",
        "aten.unflatten",
    ),
    *(
        "aten._reshape_alias",
        "aten.ravel",
        "aten.squeeze",
        "aten.unsqueeze",
        "aten.unsqueeze_copy",
        "aten.atleast_1d",
        "aten.atleast_2d",
        "aten.atleast_3d",
    ),
    pliant=True,
)
def view(call: Call) -> Outcome:
    """Reshape the labels; dimensions that split get block labels, dimensions that merge out of order are united first."""
    x = call.operands()[0]
    return viewed(call, x, call.shape)


def viewed(call: Call, x: Operand, shape: tuple[int, ...]) -> Fields:
    """Fields of ``x`` seen in another shape."""
    if math.prod(x.shape) == 0:
        return call.refuse("an empty tensor is reshaped")  # type: ignore[return-value]
    runs = regroup(x.shape, shape)
    pliant = [_bent(call, f, [g for g in x.fields if g is not f], x.shape, shape) for f in x.fields if f.pliant]
    firm = tuple(f for f in x.fields if not f.pliant)
    source = tuple(_in_order(call, f, firm, runs) for f in firm)
    fields = _crossed(call, source, _as_blocks(call, source, [reshaped(f, x.shape, shape) for f in source]))
    units = {f.dims for f in fields if not f.block}
    kept = tuple(f for f in fields if f.dims and not (f.block and f.dims in units))
    _hold_lost(call, source, fields)
    return (*call.ledger.complete(_once(call, kept)), *(f for f in pliant if f is not None))


def _bent(call: Call, field: Field, others: Sequence[Field], old: tuple[int, ...], new: tuple[int, ...]) -> Field | None:
    """A pliant field where its dimension stays one, by itself or repeated along others without labels; else its labels stay."""
    for left, right in regroup(old, new):
        before, after = [d for d in left if old[d] > 1], [d for d in right if new[d] > 1]
        if field.dims <= set(before) and len(after) == 1 and not any(other.dims & set(before) for other in others):
            return reshaped(field, old, new)
    call.ledger.freeze(field.labels, "is reshaped together with other dimensions")
    return None


def _as_blocks(call: Call, before: Fields, after: list[Field]) -> list[Field]:
    """Where dimensions with labels of their own merge, the labels of all but the largest become blocks of it."""
    units = [(old.labels.size, place) for place, old in enumerate(before) if old.dims and not old.block and after[place].dims]

    def merge(one: int, other: int) -> bool:
        return after[one].dims == after[other].dims and not before[one].dims & before[other].dims and (after[one].labels != NONE).all()

    inner = {place for size, place in units if any((size, place) < larger and merge(place, larger[1]) for larger in units)}
    return [_block_of(call, field) if place in inner else field for place, field in enumerate(after)]


def _block_of(call: Call, unit: Field) -> Field:
    """A block for each label, which goes with it."""
    first, inverse = np.unique(unit.labels, return_inverse=True)
    blocks = call.ledger.fresh(first.size)
    call.ledger.unite(blocks, first)
    return Field(blocks[inverse].reshape(unit.labels.shape), block=True)


def _crossed(call: Call, before: Fields, after: list[Field]) -> list[Field]:
    """Where blocks merge with channels that were not inside them, each pair of a block and a channel gets a label of its own.

    It goes with either of both: heads that share their values, say, laid one after the other. Channels that stay in any case (the rows
    of a batch that a constant has) leave the blocks as they are, and end.
    """
    out = list(after)
    for block, old in zip(after, before, strict=True):
        for place, (unit, source) in enumerate(zip(after, before, strict=True)):
            apart = bool(old.dims) and bool(source.dims) and not old.dims & source.dims
            if block.block and not unit.block and apart and block.dims == unit.dims:
                if call.ledger.holds(unit.labels):
                    out[place] = Field(np.full((1,) * unit.labels.ndim, NONE))
                    continue
                pairs = call.ledger.fresh(unit.labels.size).reshape(unit.labels.shape)
                call.ledger.unite(pairs, out[place].labels)
                call.ledger.contain(block.labels, pairs)
                _tabulate(call, block, unit, pairs)
                out[place] = Field(pairs)
    return out


def _tabulate(call: Call, block: Field, unit: Field, pairs: Labels) -> None:
    """Every block has one pair with each channel: a table of equal rows."""
    heads, columns = np.unique(block.labels), np.unique(unit.labels)
    if pairs.size == heads.size * columns.size:
        order = np.lexsort((unit.labels.ravel(), block.labels.ravel()))
        call.ledger.rectangles.append(Rectangle(pairs.ravel()[order].reshape(heads.size, -1), heads, call.ledger.place.node))


def _once(call: Call, fields: Fields) -> Fields:
    """Block fields that came to lie on the same dimensions are one."""
    kept: dict[tuple[frozenset[int], bool], Field] = {}
    for field in fields:
        key = (field.dims, field.block)
        if key in kept:
            call.ledger.unite(kept[key].labels, field.labels)
        else:
            kept[key] = field
    return tuple(kept.values())


def _hold_lost(call: Call, before: Fields, after: list[Field]) -> None:
    for old, new in zip(before, after, strict=True):
        if old.dims and not new.dims:
            call.ledger.freeze(old.labels, "its labels are lost in a reshape")


def _in_order(call: Call, field: Field, fields: Fields, runs: list[tuple[list[int], list[int]]]) -> Field:
    """Unite over outer dimensions where a merge does not run from outer to inner."""
    order = hierarchy(field, fields)
    for left, _ in runs:
        mine = [d for d in left if d in field.dims]
        if len(mine) > 1 and mine != sorted(mine, key=order.index):
            inner = order[-1]
            if inner not in mine:
                inner = max(mine, key=order.index)
            field = flattened(call.ledger, field, frozenset(mine) - {inner})
    return field


@rule("aten.permute", "aten.permute_copy", pliant=True)
def permute(call: Call) -> Outcome:
    """Put the dimensions in another order."""
    x = call["self"]
    order = [d % len(x.shape) for d in call["dims"]]
    return tuple(permuted(f, order) for f in x.fields)


@rule(
    "aten.transpose",
    "aten.swapaxes",
    "aten.swapdims",
    "aten.t",
    "aten.numpy_T",
    "aten.mT",
    "aten.adjoint",
    "aten.transpose_copy",
    pliant=True,
)
def transpose(call: Call) -> Outcome:
    """Exchange two dimensions."""
    x = call["self"]
    rank = len(x.shape)
    if rank < 2:
        return tuple(x.fields)
    names = [n for n in ("dim0", "dim1", "axis0", "axis1") if n in call.args]
    a, b = (call[n] % rank for n in names) if names else (rank - 2, rank - 1)
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return tuple(permuted(f, order) for f in x.fields)


@rule("aten.movedim", "aten.moveaxis", pliant=True)
def movedim(call: Call) -> Outcome:
    """Move some dimensions to other places."""
    x = call["self"]
    rank = len(x.shape)
    source, target = ([v % rank for v in ([call[k]] if isinstance(call[k], int) else call[k])] for k in ("source", "destination"))
    order = [d for d in range(rank) if d not in source]
    for place, dim in sorted(zip(target, source, strict=True)):
        order.insert(place, dim)
    return tuple(permuted(f, order) for f in x.fields)


@rule("aten.flip", "aten.fliplr", "aten.flipud", pliant=True)
def flip(call: Call) -> Outcome:
    """Reverse some dimensions, their labels with them."""
    x = call["self"]
    name = str(call.node.target)
    dims = (1,) if "fliplr" in name else (0,) if "flipud" in name else tuple(call["dims"])
    return tuple(f.laid(np.flip(f.labels, dims).copy()) for f in x.fields)


@rule("aten.expand", "aten.expand_as", "aten.broadcast_to", "aten.expand_copy", pliant=True)
def expand(call: Call) -> Outcome:
    """Repeat along dimensions of size 1: as often as what they meet has labels there."""
    x = call["self"]
    rank, lead = len(call.shape), len(call.shape) - len(x.shape)
    sizes = call.args.get("size", ())
    grown = [d for d, size in enumerate(call.shape) if size > 1 and (d < lead or x.shape[d - lead] == 1)]
    repeats = [along(call.ledger.fresh(call.shape[d]), d, rank) for d in grown if d < len(sizes) and sizes[d] == call.shape[d]]
    return (*(f.laid(f.labels.reshape((1,) * lead + f.labels.shape)) for f in x.fields), *(Field(r, pliant=True) for r in repeats))
