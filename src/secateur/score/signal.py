"""Score a channel by the part of the signal that its readers lose with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from secateur.capture.calls import argument, leaf, short_name
from secateur.groups.group import ChannelGroup
from secateur.score.evidence import Evidence
from secateur.score.moments import Expectation
from secateur.score.reading import Reading, readings

_TINY = 1e-30


@dataclass(frozen=True)
class Signal:
    """Score a channel by the part of the variance that its readers' outputs lose with it, as norms and weights tell it, without data.

        s_c = sum_readers a_r p_rc / (1 - sum_{lower} p_r),    p_rc = v_c ||W_:c||^2 / var(y_r),    scores ascending

    A norm says how much its outputs vary, and what lies between two norms is followed in the expectation: v_c is the variance of the
    channel where it is read if a bias can take up its mean (:class:`~secateur.FoldMeans`), or else its second moment. Outputs that a
    batch norm scales count as that leaves them. a_r is how much of the model's outputs depends on the reader: the branch of a residual
    sum counts by its part of the sum's variance. What is lost is compared with what is still there, so that no layer is emptied.
    Scores of all groups compare: use ``layer_norm="none"`` and :class:`~secateur.GlobalRank`.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
        >>> with torch.no_grad():
        ...     model[1].bias[2] = -20.0  # nothing comes through the activation behind
        >>> sc.study(model, torch.randn(1, 3, 8, 8)).plan(sc.Signal(), ratio=0.25).prunes[0].remove
        (2,)
    """

    def __call__(self, group: ChannelGroup, evidence: Evidence) -> Tensor:
        """Scores of the group's channels."""
        lost = list(_lost(group, evidence)) or [(_norms(group, evidence), 1.0)]
        order = torch.stack([weight * part for part, weight in lost]).sum(0).argsort(stable=True)
        steps = torch.stack([weight * _steps(part[order]) for part, weight in lost]).sum(0)
        scores = torch.zeros(group.size, dtype=torch.float64)
        scores[order] = steps.cummax(0).values
        return evidence.combine.single(scores)


def _steps(parts: Tensor) -> Tensor:
    """What each removal takes of what those before it have left."""
    rest = parts.flip(0).cumsum(0).flip(0) + (1 - parts.sum()).clamp(min=0)
    return parts / rest.clamp(min=_TINY)


def _lost(group: ChannelGroup, evidence: Evidence) -> Iterator[tuple[Tensor, float]]:
    """For each reader the part of its outputs' variance that each channel makes, and how much the reader matters."""
    expected, solution = evidence.expectation, evidence.solution
    assert solution is not None
    for reading in readings(group, solution):
        weight = expected.weights.get(reading.node, 0.0)
        if reading.weight is None:
            one_of_two = short_name(reading.node) == "scaled_dot_product_attention"
            yield _of_product(reading, group, expected), weight / 2 if one_of_two else weight
        else:
            yield _of_layer(reading, group, evidence), weight


def _of_product(reading: Reading, group: ChannelGroup, expected: Expectation) -> Tensor:
    assert reading.other is not None
    energy = torch.ones(group.size, dtype=torch.float64)
    for place in (reading.source, reading.other):
        mean, variance = expected[place.node].of(group.classes)
        energy = energy * (variance + mean.square())
    return energy / energy.sum().clamp(min=_TINY)


def _of_layer(reading: Reading, group: ChannelGroup, evidence: Evidence) -> Tensor:
    expected = evidence.expectation
    layer, spread = expected.layers.get(reading.node, (None, None))
    source, norm = expected[reading.source.node], _norm_behind(reading.node)
    mean, variance = source.of(group.classes)
    folded = source.told and (norm is not None or (layer is not None and layer.bias is not None))
    energy = variance if folded else variance + mean.square()
    weight = _real(evidence.weights[reading.weight or ""])
    if layer is None or spread is None:
        found = energy * _strength(reading, group, weight)
        return found / found.sum().clamp(min=_TINY)
    seen = spread if norm is None else _scale(norm, evidence, len(spread)).square()
    factors = torch.ones_like(spread) if norm is None else (seen / spread.clamp(min=_TINY)).sqrt()
    return energy * _strength(reading, group, layer.scaled(weight, factors)) / seen.sum().clamp(min=_TINY)


def _strength(reading: Reading, group: ChannelGroup, weight: Tensor) -> Tensor:
    """Squares of all weights with which each channel is read."""
    found = [m.fold(weight.square(), group.size) for m in group.members if m.tensor == reading.weight and m.role == "reads"]
    return torch.stack(found).sum(0)


def _norm_behind(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and short_name(users[0]) == "batch_norm" else None


def _scale(norm: fx.Node, evidence: Evidence, size: int) -> Tensor:
    name = leaf(argument(norm, "weight"))
    return torch.ones(size, dtype=torch.float64) if name is None else _real(evidence.weights[name])


def _norms(group: ChannelGroup, evidence: Evidence) -> Tensor:
    """Where no reader is known: each channel's part of the squares of all weights that it has a place in."""
    squares = [m.fold(_real(evidence.weights[m.tensor]).square(), group.size) for m in group.members]
    return torch.stack([each / each.sum().clamp(min=_TINY) for each in squares]).mean(0)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.abs() if tensor.is_complex() else tensor).double()
