"""Operators that mix neighbours or all positions along a dimension, and to which a position that went is a zero."""

from __future__ import annotations

from secateur.groups.fields import NONE, Field, Fields, along
from secateur.groups.rules.indexing import hold
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


def slide(call: Call, x: Operand, dims: frozenset[int], text: str) -> Fields:
    """Let labels of single dimensions end, and of what is made there any part be taken; labels that vary otherwise too stay."""
    slid = tuple(f for f in x.fields if f.dims <= dims and len(f.dims) == 1 and not f.block and (f.labels != NONE).all())
    others = hold(call, Operand(x.shape, tuple(f for f in x.fields if f not in slid)), dims, text)
    rank = len(call.shape)
    made = (Field(along(call.ledger.fresh(call.shape[d]), d, rank), pliant=True) for f in slid for d in f.dims)
    return (*others, *(f for f in made if f.dims))


@rule(*(f"aten.avg_pool{n}d" for n in (1, 2, 3)), pliant=True)
def average_pool(call: Call) -> Outcome:
    """Means of neighbours along the last dimensions, among them zeros where something went."""
    x, window = call["self"], call["kernel_size"]
    first = len(x.shape) - int(str(call.node.target)[len("aten.avg_pool")])
    sizes = list(window) if isinstance(window, list | tuple) else [window]
    wide = (first + i for i in range(len(x.shape) - first) if sizes[i % len(sizes)] > 1 or call.shape[first + i] != x.shape[first + i])
    return slide(call, x, frozenset(wide), "a dimension that pooling runs over")


@rule("aten.roll", pliant=True)
def roll(call: Call) -> Outcome:
    """What is shifted past the end comes in again at the front; without dimensions the flattened tensor is shifted."""
    x, dims = call["self"], call["dims"]
    if not dims:
        return hold(call, x, frozenset(range(len(x.shape))), "the flattened tensor is rolled")
    return slide(call, x, call.dims(dims, len(x.shape)), "is rolled")


@rule("aten.diff", pliant=True)
def differences(call: Call) -> Outcome:
    """Differences of neighbours."""
    x, dims = call["self"], call.dims(call["dim"], len(call["self"].shape))
    ends = [call[name] for name in ("prepend", "append") if call[name] is not None]
    for each in ends:
        call.ledger.freeze_fields(each.fields, "is put to the ends before differences are taken")
    return hold(call, x, dims, "differences run over it") if ends else slide(call, x, dims, "differences run over it")
