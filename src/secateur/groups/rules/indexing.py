"""Look-ups: embeddings, and indices that are known constants or come from the input."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.groups.fields import Field, Fields, Labels, along
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule
from secateur.groups.rules.slicing import taken


def hold(call: Call, x: Operand, dims: frozenset[int], text: str) -> Fields:
    """Freeze fields along some dimensions, and return the others."""
    held = tuple(f for f in x.fields if f.dims & dims)
    call.ledger.freeze_fields(held, text)
    return tuple(f for f in x.fields if f not in held)


@rule("aten.embedding", "aten.embedding_bag")
def embedding(call: Call) -> Outcome:
    """Rows are looked up, so they stay; columns are written."""
    weight, indices = call["weight"], call["indices"]
    call.ledger.freeze_fields(indices.fields, "numbers of rows to look up")
    fields = hold(call, weight, frozenset({0}), "rows that are looked up by number")
    call.ledger.note(fields, frozenset({1}), "writes")
    lead = len(call.shape) - 1
    out = tuple(Field(f.labels.reshape(*[1] * lead, -1), f.block) for f in fields)
    return out if len(call.shapes) == 1 else [out, *[()] * (len(call.shapes) - 1)]


@rule("aten.index_select")
def index_select(call: Call) -> Outcome:
    """Positions by a table: a constant table is followed, any other holds the dimension."""
    x, index = call["self"], call["index"]
    dim = call["dim"] % len(x.shape)
    if index.value is None:
        return hold(call, x, frozenset({dim}), "is indexed by numbers that depend on the input")
    return taken(call, x, dim, index.value.numpy())


@rule("aten.index", "aten._unsafe_index")
def index(call: Call) -> Outcome:
    """Advanced indexing: the indexed dimensions are replaced by those of the broadcast indices."""
    x = call["self"]
    indices: Sequence[Operand | None] = call["indices"]
    dims = [d for d, i in enumerate(indices) if i is not None]
    for each in indices:
        if each is not None:
            call.ledger.freeze_fields(each.fields, "numbers that index a tensor")
    boolean = any(
        i is not None and i.value is not None and i.value.dtype.is_floating_point is False and i.value.dtype.itemsize == 1 for i in indices
    )
    fields = hold(call, x, frozenset(dims), "is indexed position by position")
    if boolean or any(_is_mask(call, d) for d in range(len(indices))):
        spread = sum(len(i.shape) for i in indices if i is not None)
        return _relaid(fields, len(x.shape), list(range(dims[0], dims[0] + spread)), 1)
    width = max((len(i.shape) for i in indices if i is not None), default=0)
    return _relaid(fields, len(x.shape), dims, width)


def _is_mask(call: Call, place: int) -> bool:
    node = call.node.args[1][place]  # type: ignore[index]
    fact = getattr(node, "meta", {}).get("fact")
    return fact is not None and str(fact.dtype) in ("torch.bool", "torch.uint8")


def _relaid(fields: Fields, rank: int, dims: list[int], width: int) -> Fields:
    """Fields with the dimensions ``dims`` replaced by ``width`` others: in place if they are adjacent, else in front."""
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    front = [d for d in range(dims[0]) if d not in dims] if adjacent else []
    back = [d for d in range(rank) if d not in dims and d not in front]
    out = []
    for field in fields:
        shape = field.labels.shape
        new = [shape[d] for d in front] + [1] * width + [shape[d] for d in back]
        out.append(Field(field.labels.reshape(new), field.block))
    return tuple(out)


@rule("aten.take", "aten.put")
def take(call: Call) -> Outcome:
    """Numbers count the positions of all dimensions together, so all stay."""
    return call.refuse("is read or written by numbers that count all its positions")


@rule("aten.one_hot")
def one_hot(call: Call) -> Outcome:
    """A row of classes for every number; the numbers stay."""
    return call.refuse("numbers of classes")


@rule("aten.diagonal", "aten.diagonal_copy")
def diagonal(call: Call) -> Outcome:
    """Row and column of the same number meet; the diagonal lies along the last dimension."""
    x: Operand = call["self"]
    rank = len(x.shape)
    dims = [call["dim1"] % rank, call["dim2"] % rank]
    sides = [next((f for f in x.fields if f.dims == {d} and not f.block), None) for d in dims]
    square = call["offset"] == 0 and x.shape[dims[0]] == x.shape[dims[1]]
    both = [f for f in x.fields if f.dims & set(dims)]
    if not square or len(both) != 2 or any(side is None for side in sides):
        fields = hold(call, x, frozenset(dims), "a diagonal is taken along it")
        return tuple(_off_diagonal(f, dims) for f in fields)
    row, column = (side.labels.ravel() for side in sides if side is not None)
    call.ledger.unite(row, column)
    others = tuple(_off_diagonal(f, dims) for f in x.fields if f not in both)
    return (*others, Field(along(row, rank - 2, rank - 1)))


def _off_diagonal(field: Field, dims: Sequence[int]) -> Field:
    """A field that does not vary along the two dimensions of a diagonal, without them and with that of the diagonal behind."""
    shape = [size for d, size in enumerate(field.labels.shape) if d not in dims]
    return field.laid(field.labels.reshape([*shape, 1]))


@rule("aten.index_add", "aten.index_copy", "aten.index_reduce")
def index_add(call: Call) -> Outcome:
    """Slices are written to places by number, so these stay; along the other dimensions labels meet."""
    x, source = call["self"], call["source"]
    dim = call["dim"] % len(x.shape)
    parts = [Shaped((*o.shape[:dim], 1, *o.shape[dim + 1 :]), hold(call, o, frozenset({dim}), "is written by number")) for o in (x, source)]
    return meet(call.ledger, parts, len(x.shape))


@rule("aten.index_fill")
def index_fill(call: Call) -> Outcome:
    """Places that are filled by number stay."""
    x = call["self"]
    return hold(call, x, frozenset({call["dim"] % len(x.shape)}), "is written by number")


@rule("aten.index_put")
def index_put(call: Call) -> Outcome:
    """Places that are written by number or by a mask stay; what is written there meets the other dimensions."""
    x, values, indices = call["self"], call["values"], call["indices"]
    for each in indices:
        call.ledger.freeze_fields(() if each is None else each.fields, "numbers that index a tensor")
    dims = _indexed_dims(call, indices)
    text = "is written position by position"
    fields = hold(call, x, frozenset(dims), text)
    start, end = dims[0], dims[-1] + 1
    if dims != list(range(start, end)):
        call.ledger.freeze_fields(values.fields, text)
        return fields
    width = max(1 if _is_mask(call, i) else len(each.shape) for i, each in enumerate(indices) if each is not None)
    rank = start + width + len(x.shape) - end
    place = Shaped(_replaced(x.shape, start, end, width), tuple(Field(_relaid_row(f, start, end, width), f.block) for f in fields))
    lead = rank - len(values.shape)
    taken = frozenset(range(start - lead, start + width - lead))
    written = Shaped(tuple(1 if d in taken else size for d, size in enumerate(values.shape)), hold(call, values, taken, text))
    met = meet(call.ledger, [place, written], rank)
    return tuple(Field(_relaid_row(f, start, start + width, end - start), f.block) for f in met)


def _replaced(shape: tuple[int, ...], start: int, end: int, width: int) -> tuple[int, ...]:
    return (*shape[:start], *[1] * width, *shape[end:])


def _relaid_row(field: Field, start: int, end: int, width: int) -> Labels:
    """Labels that do not vary from ``start`` to ``end``, with ``width`` dimensions in this place."""
    return field.labels.reshape(_replaced(field.labels.shape, start, end, width))


def _indexed_dims(call: Call, indices: Sequence[Operand | None]) -> list[int]:
    """Dimensions that numbers or masks pick from; a mask takes as many as it has."""
    dims: list[int] = []
    place = 0
    for number, each in enumerate(indices):
        width = len(each.shape) if each is not None and _is_mask(call, number) else 1
        dims += range(place, place + width) if each is not None else ()
        place += width
    return dims
