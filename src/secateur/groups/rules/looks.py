"""Calls by which Python learns what is in a tensor: what comes after may hang on it."""

from __future__ import annotations

from secateur.groups.rules.pointwise import pointwise
from secateur.groups.rules.registry import Call, Outcome, rule


@rule("aten.item", "aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.allclose")
def looked_at(call: Call) -> Outcome:
    """A number for Python; what it is made of stays."""
    return call.refuse("the model looks at its values")


@rule("aten.resolve_neg")
def listed(call: Call) -> Outcome:
    """The same tensor; a result that no call reads is on its way to ``.tolist()``."""
    return pointwise(call) if call.node.users else looked_at(call)
