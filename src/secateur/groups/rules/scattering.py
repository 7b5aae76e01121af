"""Positions by a tensor of numbers as large as the result: gather and scatter."""

from __future__ import annotations

import torch
from torch import fx

from secateur.capture.capture import Fact
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.indexing import hold
from secateur.groups.rules.registry import Call, Operand, Outcome, rule

aten = torch.ops.aten
_REPEATING = (aten.expand.default, aten.repeat.default)


@rule("aten.gather", "aten.take_along_dim")
def gather(call: Call) -> Outcome:
    """What is picked from stays, but for dimensions along which the numbers repeat: all channels of a token, say, move together."""
    x, index = call["self"], "index" if "index" in call.args else "indices"
    call.ledger.freeze_fields(call[index].fields, "numbers to gather by")
    return hold(call, x, _held(call, index), "is gathered position by position")


@rule(
    "aten.scatter_add", "aten.scatter_reduce", "aten.scatter.src", "aten.scatter.reduce", "aten.scatter.value", "aten.scatter.value_reduce"
)
def scatter(call: Call) -> Outcome:
    """Where values are written stays, but for dimensions along which the numbers repeat; there both tensors meet."""
    call.ledger.freeze_fields(call["index"].fields, "numbers to scatter by")
    held = _held(call, "index")
    if "src" not in call.args:
        return hold(call, call["self"], held, "is scattered position by position")
    parts: list[Operand] = [call["src"]] if starts_at_zero(call.node) and not call["self"].fields else [call["self"], call["src"]]
    shaped = [
        Shaped(tuple(1 if d in held else n for d, n in enumerate(p.shape)), hold(call, p, held, "is scattered position by position"))
        for p in parts
    ]
    return meet(call.ledger, shaped, len(call.shape))


def starts_at_zero(node: fx.Node) -> bool:
    """Whether values are written into zeros, which can be made at any size."""
    return str(getattr(node.args[0], "target", "")).startswith(("aten.zeros.", "aten.new_zeros."))


def repeated_dims(index: fx.Node) -> frozenset[int]:
    """Dimensions along which a tensor of numbers repeats one row."""
    fact = index.meta.get("fact")
    if index.target not in _REPEATING or not isinstance(fact, Fact):
        return frozenset()
    source = index.args[0].meta["fact"].shape  # type: ignore[union-attr]
    lead = len(fact.shape) - len(source)
    return frozenset(d for d in range(len(fact.shape)) if d < lead or source[d - lead] == 1)


def _held(call: Call, name: str) -> frozenset[int]:
    """The dimension of the numbers, and those along which they differ."""
    rank = len(call[name].shape)
    place = list(call.args).index(name)
    index = call.node.args[place] if place < len(call.node.args) else call.node.kwargs[name]
    dim = call.args.get("dim")
    if not isinstance(index, fx.Node) or dim is None or len(call["self"].shape) != rank:
        return frozenset(range(max(rank, len(call["self"].shape))))
    return frozenset(range(rank)) - repeated_dims(index) | {dim % max(rank, 1)}
