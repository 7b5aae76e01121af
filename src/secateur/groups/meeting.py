"""The two primitive rules: *meet* (elementwise, broadcasting) and *contract* (sums of products), and *reduce*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateur.groups.fields import NONE, Field, Fields, aligned, permuted
from secateur.groups.ledger import Ledger

UNLABELLED = "meets values that are not made by prunable weights"


@dataclass(frozen=True)
class Shaped:
    """A shape with the fields on it: what meeting needs to know of an operand."""

    shape: tuple[int, ...]
    fields: Fields


def meet(ledger: Ledger, operands: Sequence[Shaped], rank: int) -> Fields:
    """Unite the labels of operands that meet element by element, and return the fields of the result."""
    operands = [Shaped((1,) * (rank - len(o.shape)) + o.shape, tuple(aligned(f, rank) for f in o.fields)) for o in operands]
    pliant, operands = _bend(ledger, operands)
    every = [f for o in operands for f in o.fields if f.dims]
    blocks = _meet_blocks(ledger, [f for f in every if f.block])
    units, blocks = _meet_units(ledger, [f for f in every if not f.block], blocks)
    fields = (*units, *blocks)
    for field in fields:
        for operand in operands:
            _pin_unlabelled(ledger, field, operand, fields)
    return (*fields, *pliant)


def _bend(ledger: Ledger, operands: list[Shaped]) -> tuple[list[Field], list[Shaped]]:
    """Let pliant fields be as others where they meet labels; return those that meet none, and the operands without these."""
    pliant = [f for o in operands for f in o.fields if f.pliant]
    if not pliant:
        return [], operands
    firm = frozenset().union(*(f.dims for o in operands for f in o.fields if not f.pliant))
    kept = []
    for dims in dict.fromkeys(f.dims for f in pliant if not f.dims <= firm):
        found = [f for f in pliant if f.dims == dims]
        covered = [any(f.dims == dims for f in o.fields) for o in operands if any(o.shape[d] > 1 for d in dims)]
        if all(covered):
            for field in found[1:]:
                ledger.unite(found[0].labels, field.labels)
            kept.append(found[0])
        else:
            ledger.freeze_fields(tuple(found), UNLABELLED)
    bent = [Shaped(o.shape, tuple(Field(f.labels, f.block) for f in o.fields if not f.pliant or f.dims <= firm)) for o in operands]
    return kept, bent


def _meet_blocks(ledger: Ledger, blocks: list[Field]) -> list[Field]:
    kept: dict[frozenset[int], Field] = {}
    for block in blocks:
        if block.dims in kept:
            ledger.unite(kept[block.dims].labels, block.labels)
        else:
            kept[block.dims] = block
    return list(kept.values())


def _meet_units(ledger: Ledger, units: list[Field], blocks: list[Field]) -> tuple[list[Field], list[Field]]:
    kept: list[Field] = []
    by_dims = {b.dims: b for b in blocks}
    for unit in sorted(units, key=lambda f: -len(f.dims)):
        if unit.dims in by_dims:
            ledger.unite(by_dims[unit.dims].labels, unit.labels)
            continue
        absorbed = False
        for other in kept:
            overlap = unit.dims & other.dims
            if overlap and overlap not in by_dims:
                ledger.unite(other.labels, unit.labels)
            absorbed |= unit.dims <= other.dims and (overlap == unit.dims)
        if not absorbed:
            kept.append(unit)
    return kept, blocks


def _pin_unlabelled(ledger: Ledger, field: Field, operand: Shaped, fields: Fields) -> None:
    """Hold the labels that meet an operand which extends along them and has no labels of its own there.

    Where it has none along some of their dimensions, what goes is whole along these: blocks where blocks name the other dimensions,
    else all labels of a line together.
    """
    covered = frozenset().union(*(f.dims for f in operand.fields)) if operand.fields else frozenset()
    bare = frozenset(d for d in field.dims if operand.shape[d] > 1) - covered
    if bare == field.dims:
        ledger.freeze(field.labels, UNLABELLED)
    elif bare and _blocks_cover(fields, field.dims - bare, bare):
        ledger.pin(field.labels, bare, operand.shape, UNLABELLED)
    elif bare:
        flattened(ledger, field, bare)


def contract(ledger: Ledger, operands: Sequence[Shaped], letters: Sequence[str], out: str) -> Fields:
    """Fields of an einsum: labels meet in the space of all letters, then those along summed letters end."""
    summed = sorted(set("".join(letters)) - set(out))
    space = [*out, *summed]
    spread = [_spread(o, word, space) for o, word in zip(operands, letters, strict=True)]
    fields = meet(ledger, spread, len(space))
    kept = reduce(ledger, fields, frozenset(range(len(out), len(space))))
    return tuple(f.laid(f.labels.reshape(f.labels.shape[: len(out)])) for f in kept)


def _spread(operand: Shaped, word: str, space: list[str]) -> Shaped:
    order = sorted(range(len(word)), key=lambda i: space.index(word[i]))
    where = [space.index(word[i]) for i in order]
    shape = [1] * len(space)
    for dim, place in zip(order, where, strict=True):
        shape[place] = operand.shape[dim]
    fields = []
    for field in operand.fields:
        target = [1] * len(space)
        for dim, place in zip(order, where, strict=True):
            target[place] = field.labels.shape[dim]
        fields.append(field.laid(permuted(field, order).labels.reshape(target)))
    return Shaped(tuple(shape), tuple(fields))


def reduce(ledger: Ledger, fields: Fields, dims: frozenset[int]) -> Fields:
    """Fields after the dimensions ``dims`` are reduced (to size 1): labels along them end there."""
    kept: list[Field] = []
    for field in fields:
        if not field.dims & dims:
            kept.append(field)
        elif (outside := field.dims - dims) and not _blocks_cover(fields, outside, dims):
            if field.block:
                ledger.freeze(field.labels[field.labels != NONE], "other rows of it are summed over beside it")
            else:
                kept.append(flattened(ledger, field, dims))
    return tuple(kept)


def _blocks_cover(fields: Fields, outside: frozenset[int], dims: frozenset[int]) -> bool:
    return outside <= frozenset().union(*(f.dims for f in fields if f.block and not f.dims & dims))


def flattened(ledger: Ledger, field: Field, dims: frozenset[int]) -> Field:
    """The field with its labels united along ``dims``, which it then no longer varies over.

    The new labels lie in none of the blocks of the old ones: a row may go, and the sum over the others remains.
    """
    if not dims & field.dims:
        return field
    labels = field.labels
    for dim in sorted(dims & field.dims):
        labels = labels.take([0], axis=dim)
    if (field.labels != NONE).all():
        labels = ledger.fresh(labels.size).reshape(labels.shape)
    ledger.unite(labels, field.labels)
    return Field(labels, field.block)
