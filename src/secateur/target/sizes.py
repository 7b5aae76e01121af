"""What a cut leaves of MACs and parameters, counted without making the smaller model."""

from __future__ import annotations

from torch import nn

from secateur.errors import SelectionError
from secateur.measure import count_macs
from secateur.measure.macs import MacCount
from secateur.rewrite import Cut, planned_graph
from secateur.rewrite.slices import Slices
from secateur.target.target import Target


def remaining(target: Target, cut: Cut, macs: MacCount) -> float:
    """The fraction of the target's MACs or parameters that a cut leaves; ``macs`` are those of the dense model."""
    if target.quantity == "macs":
        return count_macs(planned_graph(cut, values=False).graph).total / max(macs.total, 1)
    if target.quantity == "parameters":
        return _parameters(cut)
    raise SelectionError("What a cut leaves of the latency is measured, not counted.")


def _parameters(cut: Cut) -> float:
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    sizes = {str(n.target): capture.leaf(str(n.target)) for n in capture.graph.find_nodes(op="get_attr")}
    own = {name: t for name, t in sizes.items() if isinstance(t, nn.Parameter)}
    left = sum(slices.apply(name, t.detach().to("meta")).numel() if name in slices else t.numel() for name, t in own.items())
    return left / max(sum(t.numel() for t in own.values()), 1)
