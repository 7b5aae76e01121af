"""Sequences of different lengths, packed for a recurrent layer and padded again."""

from __future__ import annotations

from secateur.groups.fields import Fields, along
from secateur.groups.rules.indexing import hold
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule("aten._pack_padded_sequence")
def pack(call: Call) -> Outcome:
    """Steps of all sequences one after the other: ``(batch, time, ...)`` becomes ``(steps, ...)``."""
    return [_features(call, call["input"], 2, 1), ()]


@rule("aten._pad_packed_sequence")
def pad(call: Call) -> Outcome:
    """The way back: ``(steps, ...)`` becomes ``(batch, time, ...)``."""
    return [_features(call, call["data"], 1, 2), ()]


def _features(call: Call, x: Operand, before: int, after: int) -> Fields:
    """Fields along the dimensions behind those of batch and time, of which there are so many before and after."""
    rest = range(before, len(x.shape))
    hold(call, x, frozenset(range(before)), "a dimension that sequences are packed along")
    single = [(f, d) for f in x.fields for d in rest if f.dims == {d}]
    call.ledger.freeze_fields(tuple(f for f in x.fields if len(f.dims) > 1), "sequences are packed by rows")
    rank = len(x.shape) - before + after
    return tuple(f.laid(along(f.labels, d - before + after, rank)) for f, d in single)
