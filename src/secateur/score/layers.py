"""Layers of a graph that multiply activations by a stored weight, as matrices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from secateur.capture.calls import argument, leaf, short_name

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@dataclass(frozen=True)
class Linear:
    """One call of a layer."""

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    dim: int
    """The dimension of inputs and outputs along which channels lie."""
    groups: int = 1
    inputs_first: bool = False
    """Whether the weight is stored as ``(in, out / groups, ...)`` and not as ``(out, in / groups, ...)``."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``(groups, out / groups, in / groups, taps)``."""
        table = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return table.transpose(1, 2) if self.inputs_first else table

    def scaled(self, weight: Tensor, factors: Tensor) -> Tensor:
        """The weight in its own shape, each output times a factor: ``(out,)``."""
        rows = factors.reshape(self.groups, -1, 1, 1)
        table = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return (table * (rows.transpose(1, 2) if self.inputs_first else rows)).reshape(weight.shape)


def linear_at(node: fx.Node) -> Linear | None:
    """The layer that a node calls, if its weight is a stored tensor."""
    name = short_name(node)
    if name == "linear":
        return _with(node, "input", "weight", "bias", -1)
    if name in _CONVOLUTIONS or name in _TRANSPOSED:
        rank = len(node.meta["fact"].shape) if "fact" in node.meta else 0
        dim = rank - 1 - int(name[-2])
        return _with(node, "input", "weight", "bias", dim, groups=int(argument(node, "groups")), inputs_first=name in _TRANSPOSED)
    if name == "addmm":
        return _with(node, "mat1", "mat2", "self", -1, inputs_first=True)
    if name in ("mm", "matmul"):
        return _with(node, "self", "mat2" if name == "mm" else "other", None, -1, inputs_first=True)
    return None


def _with(
    node: fx.Node, source: str, weight: str, bias: str | None, dim: int, *, groups: int = 1, inputs_first: bool = False
) -> Linear | None:
    values, stored = argument(node, source), argument(node, weight)
    name = leaf(stored)
    if name is None or not isinstance(values, fx.Node) or values.op == "get_attr" or len(stored.meta["fact"].shape) < 2:
        return None
    offset = leaf(argument(node, bias)) if bias else None
    if dim == -1 and len(stored.meta["fact"].shape) != 2:
        return None
    return Linear(node, values, name, offset, dim, groups, inputs_first)
