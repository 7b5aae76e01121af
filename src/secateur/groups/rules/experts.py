"""Products with one matrix an expert, each for its own rows of the input."""

from __future__ import annotations

from secateur.groups.rules.contraction import product
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


@rule("aten._grouped_mm")
def grouped_matmul(call: Call) -> Outcome:
    """``y[m, n] = sum_k a[m, k] b[expert of m, k, n]``; a batch of matrices on both sides is a plain batched product."""
    a, b = call["self"], call["mat2"]
    if (len(a.shape), len(b.shape)) == (3, 3) and call["offs"] is None:
        return product(call, [a, b], ["emk", "ekn"], "emn")
    if (len(a.shape), len(b.shape)) != (2, 3) or call["bias"] is not None:
        return call.refuse("this form of aten._grouped_mm has no rule")
    return _of_experts(call, a, b)


@rule("transformers.grouped_mm_fallback")
def grouped_matmul_of_any_width(call: Call) -> Outcome:
    """The same product from another library, which torch.export meets where the widths or dtype do not suit the one of ATen."""
    return _of_experts(call, call["input"], call["weight"])


def _of_experts(call: Call, rows: Operand, weight: Operand) -> Outcome:
    for each in weight.fields:
        if 0 in each.dims:
            call.ledger.freeze(each.labels, "is one of several experts")
    return product(call, [rows, weight], ["mk", "ekn"], "mn")
