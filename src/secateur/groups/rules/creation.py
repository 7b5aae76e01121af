"""New tensors, and questions about shape and dtype alone: no labels, and nothing is held."""

from __future__ import annotations

from secateur.groups.rules.registry import Call, Outcome, rule


@rule(
    *("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty", "aten.new_empty_strided", "aten.new_tensor"),
    *("aten.sym_size", "aten.size", "aten.sym_numel", "aten.numel", "aten.sym_stride", "aten.is_floating_point", "aten.dim"),
    *("aten.arange", "aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.rand", "aten.randn", "aten.linspace", "aten.eye"),
    *("aten.meshgrid", "aten.tril_indices", "aten.triu_indices", "aten.hann_window"),
)
def bare(call: Call) -> Outcome:
    """Outputs without labels."""
    if "meshgrid" in str(call.node.target):
        return call.refuse("meshgrid of labelled values has no rule")
    return [() for _ in call.shapes] if len(call.shapes) > 1 else ()
