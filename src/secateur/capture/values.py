"""Whether a captured program speaks for other inputs too, or looks at their values and would go another way."""

from __future__ import annotations

import torch
from torch import fx

from secateur.capture.capture import Fact

# torch.export knows their shapes by heart, so they carry no tag.
_UNTAGGED = frozenset(["torchvision::nms", "aten::is_nonzero", "aten::nonzero_numpy", "aten::where.default"])


def depends_on_values(graph: fx.Graph) -> bool:
    """Whether any call gives a number or a shape that depends on values which are not constant."""
    return any(looks(node) for node in graph.nodes)


def tells_python(node: fx.Node) -> bool:
    """Whether a call gives Python something that depends on what is in a tensor."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    # All that `.tolist()` leaves behind is a result that no call reads.
    listed = node.target._schema.name == "aten::resolve_neg" and not node.users
    return listed or torch.Tag.data_dependent_output in node.target.tags or _is_untagged(node.target)


def _is_untagged(target: torch._ops.OpOverload) -> bool:
    name = target._schema.name
    return not _UNTAGGED.isdisjoint((name, f"{name}.{target._overloadname}"))


def looks(node: fx.Node) -> bool:
    """Whether a call gives a number or a shape that depends on values which are not constant."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if not tells_python(node) and torch.Tag.dynamic_output_shape not in target.tags:
        return False
    varying = [operand for operand in node.all_input_nodes if not operand.meta.get("constant", False)]
    if target._schema.name.startswith("aten::index"):
        # Indexing carries the tag because of masks; positions give the shape that they have themselves.
        return any(_is_mask(operand) for operand in varying if operand is not node.args[0])
    return bool(varying)


def _is_mask(node: fx.Node) -> bool:
    fact = node.meta.get("fact")
    return isinstance(fact, Fact) and fact.dtype in (torch.bool, torch.uint8)
