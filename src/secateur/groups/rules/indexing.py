"""Look-ups: embeddings, and indices that are known constants or come from the input."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.groups.fields import Field, Fields
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


@rule("aten.gather", "aten.take_along_dim")
def gather(call: Call) -> Outcome:
    """Positions by a tensor of numbers: everything that is picked from stays."""
    x = call["self"]
    for operand in call.operands()[1:]:
        call.ledger.freeze_fields(operand.fields, "numbers to gather by")
    return hold(call, x, frozenset(range(len(x.shape))), "is gathered position by position")
