"""Whether a captured program speaks for other inputs too, or looks at their values and would go another way."""

from __future__ import annotations

import torch
from torch import fx

from secateur.capture.capture import Fact

_TELLING = frozenset([torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape])
# torch.export knows their shapes by heart, so they carry no tag.
_UNTAGGED = frozenset(["torchvision::nms", "aten::is_nonzero", "aten::nonzero_numpy"])


def depends_on_values(graph: fx.Graph) -> bool:
    """Whether any call gives a number or a shape that depends on values which are not constant."""
    return any(_looks(node) for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload))


def _looks(node: fx.Node) -> bool:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    if not _TELLING.intersection(target.tags) and target._schema.name not in _UNTAGGED:
        return False
    facts = [operand.meta.get("fact") for operand in node.all_input_nodes]
    varying = [fact for fact in facts if isinstance(fact, Fact) and fact.value is None]
    if target._schema.name.startswith("aten::index"):
        # Indexing carries the tag because of masks; positions give the shape that they have themselves.
        return any(fact.dtype in (torch.bool, torch.uint8) for fact in varying[1:])
    return bool(varying)
