"""Sums that a layer's outputs go into: what is already wrong with the other summand, the layer can make good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from secateur.capture.calls import arguments, leaf, packet
from secateur.recover.paired import Steps
from secateur.recover.readers import Reader, shape
from secateur.rewrite import Cut

LEAST_SCALE = 1e-3
"""Batch-norm factors below this are taken for zero: no output of the layer before could make up for anything."""


@dataclass(frozen=True, eq=False)
class Residual:
    """The other summand in the dense and in the smaller program, and what its error is worth before a batch norm."""

    dense: fx.Node
    small: fx.Node
    factor: Tensor
    """1 / scale of the batch norm between layer and sum, for each kept channel; 1 without one."""

    def error(self, dense: Steps, small: Steps, kept: Callable[[Tensor], Tensor]) -> Tensor | None:
        """What the layer's outputs lack for the sum to be right; ``None`` where the other summand comes later."""
        if self.dense not in dense.env or self.small not in small.env:
            return None
        difference: Tensor = kept(dense.env[self.dense]) - small.env[self.small]
        return difference * self.factor.to(difference)


def residual_of(cut: Cut, dense: Reader, small: Reader, rows: Tensor) -> Residual | None:
    """The sum that a layer's outputs go into, at once or after a batch norm, if they go nowhere else."""
    ours, theirs = other_summand(dense.node), other_summand(small.node)
    if ours is None or theirs is None or shape(ours[0]) != shape(dense.node):
        return None
    factor = torch.ones(1) if ours[1] is None else _inverse_scale(cut, ours[1])
    if factor is None:
        return None
    kept = factor if len(factor) == 1 else factor[rows.to(factor.device)]
    trailing = (1,) * (-1 - dense.channel_dim)
    return Residual(ours[0], theirs[0], kept.reshape(-1, *trailing))


def other_summand(node: fx.Node) -> tuple[fx.Node, fx.Node | None] | None:
    """The other summand, and the batch norm on the way."""
    user = _only_user(node)
    norm = user if user is not None and packet(user) == "aten.batch_norm" and not arguments(user)["training"] else None
    term, added = (node, user) if norm is None else (norm, _only_user(norm))
    if added is None or packet(added) != "aten.add" or arguments(added).get("alpha", 1) != 1:
        return None
    first, second = added.args[:2]
    other = second if first is term else first
    is_activation = isinstance(other, fx.Node) and other is not term and other.op != "get_attr"
    return (other, norm) if is_activation and isinstance(other, fx.Node) else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _inverse_scale(cut: Cut, norm: fx.Node) -> Tensor | None:
    given, capture = arguments(norm), cut.solution.walk.capture
    variance, gamma = leaf(given["running_var"]), leaf(given["weight"])
    if variance is None or (given["weight"] is not None and gamma is None):
        return None
    scale = (capture.leaf(variance).detach().double() + given["eps"]).rsqrt()
    scale = scale if gamma is None else scale * capture.leaf(gamma).detach()
    return torch.where(scale.abs() > LEAST_SCALE, 1 / scale, 0)
