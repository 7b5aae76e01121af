"""Elementwise operators: the labels of operands that meet go together."""

from __future__ import annotations

from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Outcome, rule
from secateur.groups.rules.slicing import taken


@rule(
    "pointwise",
    *("aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar", "aten.masked_fill", "aten.copy", "aten.fill"),
    *("aten.dropout", "aten.clone", "aten.contiguous", "aten.to", "aten._to_copy", "aten.type_as", "aten.detach", "aten.alias"),
    *(
        "aten.lift_fresh_copy",
        "aten.zeros_like",
        "aten.ones_like",
        "aten.full_like",
        "aten.empty_like",
    ),
    *(
        "aten.softplus",
        "aten.hardtanh",
        "aten.celu",
        "aten.elu",
        "aten.leaky_relu",
        "aten.feature_dropout",
    ),
    *(
        "aten.alpha_dropout",
        "aten.feature_alpha_dropout",
        "aten.hardswish",
        "aten.hardsigmoid",
        "aten.gelu",
        "aten.mish",
        "aten.log_sigmoid",
        "aten._prelu_kernel",
    ),
    *("aten.threshold", "aten.__and__", "aten.__or__", "aten.__xor__", "aten.expm1", "aten.true_divide", "aten.rsub", "aten.clip"),
    *("aten.multiply", "aten.subtract", "aten.divide", "aten.negative", "aten.absolute", "aten.floor_divide", "aten.arctan2"),
    *(
        "aten.conj",
        "aten._conj",
        "aten.conj_physical",
        "aten._neg_view",
        "aten.view.dtype",
        "aten.real",
        "aten.imag",
        "aten.softshrink",
        "aten.hardshrink",
        "aten.special_expit",
        "aten.fake_quantize_per_tensor_affine",
    ),
    *("aten.isfinite", "aten.isinf", "aten.isnan", "aten.resolve_conj", "aten.greater", "aten.less", "aten.not_equal"),
    *("aten.zero", "aten.special_ndtr", "aten.isclose", "aten.complex", "aten.polar"),
    *("aten.greater_equal", "aten.less_equal", "aten.scalar_tensor", "aten.pin_memory", "aten.tensor"),
    pliant=True,
)
def pointwise(call: Call) -> Outcome:
    """Unite what meets, by broadcasting; where activations are added, write down that producers join."""
    active = [o for o in call.operands() if o.fields and not o.parametric]
    if len(active) > 1 and str(call.node.target).startswith(("aten.add", "aten.sub")):
        for operand in active:
            call.ledger.note(operand.fields, frozenset(range(len(operand.shape))), "joined")
    return meet(call.ledger, call.operands(), len(call.shape))


@rule("aten.broadcast_tensors")
def broadcast(call: Call) -> Outcome:
    """All of them in the shape, and with the labels, of what they would make together."""
    fields = meet(call.ledger, call.operands(), len(call.shape))
    return [fields for _ in call.shapes]


@rule("aten.prelu")
def prelu(call: Call) -> Outcome:
    """A slope for each channel, which lies along dimension 1."""
    slope, x = call["weight"], call["self"]
    if slope.shape in ((), (1,)):
        return tuple(x.fields)
    lifted = [type(f)(f.labels.reshape(-1, *[1] * (len(x.shape) - 2)), f.block) for f in slope.fields]
    return meet(call.ledger, [x, Shaped((slope.shape[0], *[1] * (len(x.shape) - 2)), tuple(lifted))], len(x.shape))


@rule("aten.glu")
def glu(call: Call) -> Outcome:
    """The two halves of a dimension multiply each other."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    half = x.shape[dim] // 2

    shape = (*x.shape[:dim], half, *x.shape[dim + 1 :])
    parts = [Shaped(shape, taken(call, x, dim, slice(s, s + half))) for s in (0, half)]
    return meet(call.ledger, parts, len(shape))
