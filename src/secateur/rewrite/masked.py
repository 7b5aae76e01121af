"""The reference: the dense graph in which what goes is masked after every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import RewriteError
from secateur.groups.fields import Fields
from secateur.rewrite.cut import Cut
from secateur.rewrite.execute import Double, widened
from secateur.rewrite.renormal import NEUTRAL, NORMAL


class Masked(Double):
    """Runs the dense graph with every removed position zeroed, and statistics taken over the kept positions."""

    def __init__(self, cut: Cut, leaves: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(cut.solution.walk.capture.program, leaves)
        self.cut = cut

    def run_node(self, n: fx.Node) -> Any:
        """Run one node of the dense graph, then mask what it returned."""
        if n.name in self.cut.solution.ledger.renormalising and self.cut.touches(self.cut.fields(n.all_input_nodes[0])):
            value = self._over_kept(n)
        else:
            value = super().run_node(n)
        if n.op in ("output", "placeholder"):
            return value
        fields = self.cut.solution.walk.fields.get(n, ())
        if isinstance(fields, list) and isinstance(value, list | tuple):
            return [self._masked(v, f) for v, f in zip(value, fields, strict=True)]
        return self._masked(value, fields)

    def _masked(self, value: Any, fields: Fields) -> Any:
        kept = self.cut.mask(fields) if isinstance(value, Tensor) else None
        return value if kept is None else torch.where(torch.as_tensor(kept, device=value.device), value, torch.zeros((), dtype=value.dtype))

    def _over_kept(self, n: fx.Node) -> Any:
        target = n.target
        assert isinstance(target, torch._ops.OpOverload)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        named = {a.name: a.default_value if a.has_default_value() else None for a in target._schema.arguments}
        named |= dict(zip(named, args, strict=False)) | kwargs
        source = args[0]
        mask = self.cut.mask(self.cut.fields(n.all_input_nodes[0]))
        kept = torch.as_tensor(mask, device=source.device).expand(source.shape)
        name = str(target.overloadpacket).removeprefix("aten.")
        if name in NORMAL:
            return NORMAL[name](kept, named)
        if name in NEUTRAL:
            filled = torch.where(kept, source, torch.as_tensor(NEUTRAL[name], dtype=source.dtype, device=source.device))
            return target(filled, *fx.node.map_aggregate(args[1:], widened), **kwargs)
        raise RewriteError(f"{target} takes statistics over channels that go, and the reference does not know how (node {n.name})")
