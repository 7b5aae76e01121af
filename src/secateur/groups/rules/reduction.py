"""Reductions, softmax, and operators that look at the order along a dimension."""

from __future__ import annotations

import operator

from secateur.groups.fields import Field, Fields
from secateur.groups.ledger import Ledger
from secateur.groups.meeting import flattened, reduce
from secateur.groups.rules.normalisation import renormalises
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


def dropped(fields: Fields, dims: frozenset[int], keepdim: bool) -> Fields:
    """Fields without the reduced dimensions, or with them at size 1."""
    if keepdim:
        return fields
    out = []
    for field in fields:
        shape = [s for d, s in enumerate(field.labels.shape) if d not in dims]
        out.append(Field(field.labels.reshape(shape), field.block))
    return tuple(out)


def _reduced(call: Call, x: Operand, dims: frozenset[int]) -> Fields:
    return dropped(reduce(call.ledger, x.fields, dims), dims, bool(call.args.get("keepdim", False)))


@rule("aten.sum", "aten.nansum", "aten.any", "aten.count_nonzero")
def total(call: Call) -> Outcome:
    """Labels along summed dimensions end: an absent position adds nothing."""
    x = call["self"]
    return _reduced(call, x, call.dims(call.args.get("dim"), len(x.shape)))


@rule("aten.norm", "aten.linalg_vector_norm", "aten.linalg_norm", "aten.frobenius_norm")
def norm(call: Call) -> Outcome:
    """The p-norm is a sum of powers, to which an absent position adds nothing."""
    x, order = call["self"] if "self" in call.args else call["A"], call.args.get("ord", call.args.get("p"))
    dims = call.dims(call.args.get("dim"), len(x.shape))
    vector = order is None or "linalg_norm" not in str(call.node.target) or len(dims) == 1
    if not vector or isinstance(order, str) or (order is not None and order < 0):
        return call.refuse(f"a norm of order {order!r} has no rule")
    return _reduced(call, x, dims)


@rule(
    *("aten.mean", "aten.var", "aten.std", "aten.amax", "aten.amin", "aten.prod", "aten.logsumexp", "aten.nanmean", "aten.all"),
    *("aten.var_mean", "aten.std_mean", "aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.aminmax"),
    *("aten.max.default", "aten.min.default", "aten.median.default"),
)
def statistic(call: Call) -> Outcome:
    """A statistic over labelled positions is from now on one over the kept positions."""
    x = call["self"]
    dims = call.dims(call.args.get("dim"), len(x.shape))
    renormalises(call, x, dims)
    if str(call.node.target).endswith(".dim") and len(call.shapes) > 1 and _reads_places(call):
        _hold(call.ledger, x, dims, "positions along it are returned as numbers")
    fields = _reduced(call, x, dims)
    return [fields for _ in call.shapes] if len(call.shapes) > 1 else fields


def _reads_places(call: Call) -> bool:
    """Whether anything reads the second output: the places of the values that are the first."""
    return any(user.target is not operator.getitem or user.args[1] == 1 for user in call.node.users)


def _hold(ledger: Ledger, x: Operand, dims: frozenset[int], text: str) -> None:
    ledger.freeze_fields(tuple(f for f in x.fields if f.dims & dims), text)


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten.softmin")
def softmax(call: Call) -> Outcome:
    """Labels that softmax shares probability over stay, or go all together where they also vary along other dimensions."""
    x = call["self"]
    return after_softmax(call.ledger, x.fields, call.dims(call["dim"], len(x.shape)))


def after_softmax(ledger: Ledger, fields: Fields, dims: frozenset[int]) -> Fields:
    """Fields after a softmax: part of its positions can't go, since a smaller softmax is another function."""
    out = []
    for field in fields:
        if not field.dims & dims:
            out.append(field)
        elif field.dims <= dims or field.block:
            ledger.freeze(field.labels, "softmax runs over it")
        else:
            out.append(flattened(ledger, field, dims))
    return tuple(out)


@rule("aten.cumsum")
def running_total(call: Call) -> Outcome:
    """What was summed so far at each position, to which an absent position adds nothing."""
    return tuple(call["self"].fields)


@rule("aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin")
def running(call: Call) -> Outcome:
    """A statistic over the positions so far is from now on one over the kept ones among them."""
    x = call["self"]
    dims = call.dims(call["dim"], len(x.shape))
    renormalises(call, x, dims)
    if len(call.shapes) == 1:
        return tuple(x.fields)
    if _reads_places(call):
        _hold(call.ledger, x, dims, "positions along it are returned as numbers")
    return [tuple(x.fields) for _ in call.shapes]


@rule("aten.sort", "aten.argsort", "aten.msort", "aten.topk", "aten.kthvalue", "aten.mode", "aten.nanmedian", "aten.quantile")
@rule("aten.rot90", "aten.argmax", "aten.argmin", "aten.tril", "aten.triu", "aten.renorm")
def ordered(call: Call) -> Outcome:
    """Operators to which the order along a dimension matters: labels along it stay."""
    x = call["self"]
    rank = len(x.shape)
    name = str(call.node.target)
    given = call.args.get("dim", call.args.get("dims"))
    dims = frozenset({rank - 2, rank - 1}) if "tri" in name else frozenset({0}) if "msort" in name else call.dims(given, rank)
    _hold(call.ledger, x, dims, f"{name.split('.')[1]} depends on the order along it")
    fields = tuple(f for f in x.fields if not f.dims & dims)
    if len(call.shape) < rank:
        fields = dropped(fields, dims, keepdim=False)
    return [fields for _ in call.shapes] if len(call.shapes) > 1 else fields
