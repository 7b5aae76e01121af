"""Normalisation layers: batch, layer, group, instance and root-mean-square norms."""

from __future__ import annotations

from secateur.groups.fields import Field, Fields, row_along
from secateur.groups.ledger import Rectangle
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


def channelwise(call: Call, x: Operand, vectors: list[Operand | None], dim: int = 1) -> Fields:
    """Fields of ``x`` after it met vectors that lie along one dimension."""
    tail = len(x.shape) - dim - 1
    lifted = [
        Shaped((v.shape[0], *[1] * tail), tuple(Field(f.labels.reshape(-1, *[1] * tail), f.block) for f in v.fields))
        for v in vectors
        if v is not None
    ]
    return meet(call.ledger, [x, *lifted], len(x.shape))


def renormalises(call: Call, x: Operand, dims: frozenset[int]) -> None:
    """Write down that statistics are taken over labelled dimensions, which from now on means: over the kept positions."""
    if any(f.dims & dims for f in x.fields):
        call.ledger.renormalising[call.node.name] = str(call.node.target)


@rule(
    "aten.batch_norm",
    "aten._native_batch_norm_legit_no_training",
    "aten.native_batch_norm",
    "aten.cudnn_batch_norm",
    "aten._batch_norm_no_update",
)
def batch_norm(call: Call) -> Outcome:
    """One scale, shift, mean and variance for each channel."""
    x, *vectors = call.operands()
    if call.args.get("training"):
        call.ledger.freeze_fields(tuple(f for f in x.fields if f.dims - {1}), "training statistics run over it")
    fields = channelwise(call, x, list(vectors))
    return fields if len(call.shapes) == 1 else [fields, *[()] * (len(call.shapes) - 1)]


@rule("aten.instance_norm")
def instance_norm(call: Call) -> Outcome:
    """Statistics for each channel of each sample."""
    x, *vectors = call.operands()
    call.ledger.freeze_fields(
        tuple(f for f in x.fields if f.dims & set(range(2, len(x.shape)))), "a dimension that instance norm averages over"
    )
    return channelwise(call, x, list(vectors))


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(call: Call) -> Outcome:
    """Statistics over the trailing dimensions: over the channels that stay."""
    x, *vectors = call.operands()
    renormalises(call, x, frozenset(range(len(x.shape) - len(call["normalized_shape"]), len(x.shape))))
    fields = meet(call.ledger, [x, *vectors], len(x.shape))
    return fields if len(call.shapes) == 1 else [fields, *[()] * (len(call.shapes) - 1)]


@rule("aten.group_norm")
def group_norm(call: Call) -> Outcome:
    """Statistics for each group of channels: groups keep equal counts."""
    x, groups = call["input"], call["num_groups"]
    call.ledger.freeze_fields(
        tuple(f for f in x.fields if f.dims & set(range(2, len(x.shape)))), "a dimension that group norm averages over"
    )
    fields = channelwise(call, x, [call["weight"], call["bias"]])
    if any(len(f.dims) > 1 and 1 in f.dims for f in fields):
        call.ledger.freeze_fields(fields, "enters group norm with labels over several dimensions")
        return fields
    field = row_along(fields, 1)
    if field is not None and groups < x.shape[1]:
        renormalises(call, x, frozenset({1}))
        if groups > 1:
            _rows(call, field, groups)
    return fields


def _rows(call: Call, field: Field, groups: int) -> None:
    table = field.labels.reshape(groups, -1)
    block = call.ledger.fresh(groups)
    call.ledger.contain(block[:, None], table)
    call.ledger.rectangles.append(Rectangle(table, block, call.node.name))
