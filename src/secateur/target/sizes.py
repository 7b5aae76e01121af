"""What a cut leaves of MACs, parameters and bytes, counted without making the smaller model."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from secateur.errors import SelectionError
from secateur.measure import count_macs
from secateur.measure.macs import MacCount
from secateur.rewrite import Cut, planned_graph
from secateur.rewrite.slices import Slices
from secateur.target.target import Target


def remaining(target: Target, cut: Cut, macs: MacCount) -> float:
    """The fraction of the target's MACs, parameters or bytes that a cut leaves; ``macs`` are those of the dense model."""
    if target.quantity == "macs":
        return count_macs(planned_graph(cut, values=False).graph).total / max(macs.total, 1)
    if target.quantity == "parameters":
        return _share(cut, lambda tensor: tensor.numel() if isinstance(tensor, nn.Parameter) else 0)
    if target.quantity == "bytes":
        return _share(cut, lambda tensor: tensor.nbytes)
    raise SelectionError("What a cut leaves of the latency is measured, not counted.")


def _share(cut: Cut, size: Callable[[Tensor], int]) -> float:
    """What a cut leaves of the sizes of all stored tensors."""
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    stored = {str(n.target): capture.leaf(str(n.target)) for n in capture.graph.find_nodes(op="get_attr")}
    whole = {name: size(tensor) for name, tensor in stored.items()}
    left = {name: whole[name] * prod(slices.shape(name, tensor.shape)) / max(tensor.numel(), 1) for name, tensor in stored.items()}
    return sum(left.values()) / max(sum(whole.values()), 1)
