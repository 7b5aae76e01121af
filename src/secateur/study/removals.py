"""What the model's outputs lose as channels of a group go, one after the other, and the layers that read them are refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.decompose import Decomposable, DecomposableLayers, LayerSpec, Refusal
from secateur.decompose.metric import Metric
from secateur.decompose.spec import read_spec, to_kernel
from secateur.groups import ChannelGroup
from secateur.groups.group import Member
from secateur.score.evidence import occurrences
from secateur.score.obs import removed
from secateur.study.curves import Seen

Curve = NDArray[np.float64]
_RIDGE = 1e-4
"""Small, since the covariance is drawn to equal variances already where samples are few."""


@dataclass(frozen=True, eq=False)
class Removal:
    """The order in which channels of a group go, and what each number of them loses."""

    group: ChannelGroup
    order: NDArray[np.int64]
    losses: Curve
    """At ``counts`` channels gone, from none on: what the model's outputs lose, as a part of their variance."""
    counts: NDArray[np.int64]

    @property
    def scores(self) -> Tensor:
        """A score for each channel by which they go in this order."""
        scores = torch.empty(self.group.size, dtype=torch.float64)
        scores[torch.as_tensor(self.order)] = torch.arange(1, self.group.size + 1, dtype=torch.float64)
        return scores

    def gone_at(self, step: int) -> Tensor:
        """The channels that are gone after some steps."""
        return torch.as_tensor(self.order[: int(self.counts[step])])

    def gone(self, member: Member) -> Curve:
        """The part of a member's dimension that is gone, for each of ``counts``."""
        places = np.bincount(member.channels, minlength=self.group.size)[self.order]
        return np.concatenate([[0.0], places.cumsum() / member.length])[self.counts]


def removal_of(model: nn.Module, group: ChannelGroup, layers: DecomposableLayers, seen: Seen) -> Removal | Refusal:
    """Take channels out of a group in the order of their cost, by the covariance of what the layers read (as OBS does).

    Each reader's error counts as the model's outputs depend on it. Refused where something else than a plain layer reads the channels, of
    which no loss can be told.
    """
    if group.kind != "channels" or not group.prunable:
        return Refusal(group.reason or "whole heads are not weighed")
    problems: list[tuple[Tensor, Tensor]] = []
    for member in group.members:
        if member.role == "reads":
            found = _problems(model, member, group.size, layers, seen)
            if isinstance(found, Refusal):
                return found
            problems += found
    if not problems:
        return Refusal("no layer reads its channels")
    order, losses = removal_curve(problems)
    step = sum(group.take)
    counts = np.arange(0, group.size, step)
    return Removal(group, order, losses[counts], counts)


def removal_curve(problems: Sequence[tuple[Tensor, Tensor]]) -> tuple[NDArray[np.int64], Curve]:
    """The channels in the order in which they go, the cheapest first, and the total error before each step and after the last.

    Problems are covariances ``(d, d)`` of inputs with columns ``(rest, d)`` that read them.
    """
    order, costs = zip(*removed(problems, ridge=_RIDGE), strict=True)
    losses = np.cumsum([0.0, *(max(cost, 0.0) for cost in costs)])
    return np.array(order, dtype=np.int64), losses


def _problems(model: nn.Module, member: Member, size: int, layers: DecomposableLayers, seen: Seen) -> list[tuple[Tensor, Tensor]] | Refusal:
    name = member.tensor.removesuffix(".weight")
    if not member.tensor.endswith(".weight") or name not in layers or layers[name].name not in seen.moments:
        return Refusal(f"{member.tensor} reads them, of which no loss can be told")
    row = layers[name]
    covariance, columns = _reading(model.get_submodule(row.name), row, seen)
    if covariance is None:
        return Refusal(f"{row.name} reads them in groups, of which no loss can be told")
    return [_spread(member, picked, size, covariance, columns) for picked in occurrences(member.channels)]


def _reading(layer: nn.Module, row: Decomposable, seen: Seen) -> tuple[Tensor | None, Tensor]:
    """The covariance of a layer's inputs, and the columns that read them in units of the model's outputs: ``(rest, in)``."""
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    kernel = to_kernel(layer.weight.detach().double(), spec)
    if spec.groups > 1:
        return None, kernel
    metric, slopes = Metric.of(seen.moments[row.name], spec, centred=True).to(kernel), seen.slopes.get(row.name)
    weighed = slopes.weigh(kernel) if slopes is not None else kernel / max(metric.norm(kernel), torch.finfo(kernel.dtype).tiny)
    return metric.channel[0], weighed[0].movedim(1, -1).reshape(-1, spec.inputs)


def _spread(member: Member, picked: NDArray[np.int64], size: int, covariance: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """One place of each channel; channels that have none there cost nothing."""
    places, channels = (torch.as_tensor(values[picked]) for values in (member.positions, member.channels))
    whole = torch.eye(size, dtype=covariance.dtype) * covariance.diagonal().mean()
    whole[channels.unsqueeze(1), channels] = covariance[places.unsqueeze(1), places]
    read = columns.new_zeros(len(columns), size)
    read[:, channels] = columns[:, places]
    return whole, read


def layers_of(model: nn.Module, groups: Sequence[ChannelGroup], layers: DecomposableLayers) -> Mapping[str, Decomposable]:
    """The plain layers that read channels of any group, by name."""
    names = (member.tensor.removesuffix(".weight") for group in groups for member in group.members if member.role == "reads")
    known = {layers[name].name: layers[name] for name in names if name in layers}
    return {name: row for name, row in known.items() if isinstance(read_spec(model.get_submodule(name), trust_forward=True), LayerSpec)}
