"""Choose the ranks of all layers together, so that their total cost fits a budget at the least total error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.decompose.calls import Call, workload
from secateur.decompose.factors import Decomposition, Rank, cost_at, kernel_for
from secateur.decompose.metric import Metric
from secateur.decompose.moments import Moments
from secateur.decompose.ranks import Measure
from secateur.decompose.slopes import Slopes
from secateur.decompose.spec import Refusal
from secateur.errors import SelectionError

_BISECTIONS = 80


@dataclass(frozen=True)
class ErrorCurve:
    """What each rank of a layer costs and loses; the last entry, rank None, is the layer as it is."""

    ranks: tuple[Rank | None, ...]
    costs: NDArray[np.int64]
    errors: NDArray[np.float64]
    whole: float = 1.0
    """The error of a layer that puts out its mean alone."""

    @property
    def dense_cost(self) -> int:
        return int(self.costs[-1])


@dataclass(frozen=True)
class RankAllocation:
    """The rank of each layer, None where it stays as it is, with what that costs and loses in total."""

    ranks: Mapping[str, Rank | None]
    points: Mapping[str, int]
    """Where on its curve each layer came to lie."""
    cost: int
    error: float


def error_curve(
    layer: nn.Module,
    method: Decomposition,
    *,
    moments: Moments | None = None,
    slopes: Slopes | None = None,
    sensitivity: float = 1.0,
    of: Measure = "macs",
    round_to: int = 1,
    calls: Sequence[Call] = (),
    trust_forward: bool = False,
) -> ErrorCurve | Refusal:
    """Compute the relative squared error of a layer, times its sensitivity, at the ranks that make it cheaper.

    With `moments` it is the error of the layer's outputs; with `slopes` the error of the model's outputs, as a part of their variance and
    not of the layer's. `round_to` admits only ranks that are multiples of it. Costs are those of all `calls` together, or of one at a
    nominal size.
    """
    found = kernel_for(layer, method, trust_forward=trust_forward)
    if isinstance(found, Refusal):
        return found
    spec, kernel = found
    metric = None if moments is None else Metric.of(moments, spec, centred=True).to(kernel)
    kernel = kernel if slopes is None else slopes.weigh(kernel)
    whole = (kernel.norm() if metric is None else torch.tensor(metric.norm(kernel))).square().clamp_min(torch.finfo(torch.float64).tiny)
    scale = sensitivity if slopes is not None else sensitivity / float(whole)
    dense = getattr(workload([spec], calls), of)
    points = [
        (rank, getattr(cost_at(spec, method, rank, calls), of), error * scale)
        for rank, error in method.squared_errors(kernel, metric, round_to=round_to).items()
    ]
    points = [point for point in points if point[1] < dense]
    if not points:
        return Refusal("no rank makes it cheaper")
    ranks, costs, errors = zip(*points, (None, dense, 0.0), strict=True)
    return ErrorCurve(ranks, np.array(costs, dtype=np.int64), np.array(errors, dtype=np.float64), float(whole) * scale)


def allocate_ranks(curves: Mapping[str, ErrorCurve], allowed: int) -> RankAllocation:
    """Choose one point of every curve with a total cost of at most `allowed` and the least total error.

    A price on cost is found by bisection (Lagrange); what it leaves of the budget then goes, step by step, where it buys most.
    """
    least = sum(int(curve.costs.min()) for curve in curves.values())
    if least > allowed:
        raise SelectionError(f"the layers cost at least {least} at rank 1, more than the {allowed} allowed: allow more or name more layers")
    choice = _priced(curves, _price(curves, allowed))
    _spend(curves, choice, allowed - _total(curves, choice))
    error = sum(float(curve.errors[choice[name]]) for name, curve in curves.items())
    ranks = {name: curve.ranks[choice[name]] for name, curve in curves.items()}
    return RankAllocation(ranks, choice, _total(curves, choice), error)


def _total(curves: Mapping[str, ErrorCurve], choice: Mapping[str, int]) -> int:
    return sum(int(curve.costs[choice[name]]) for name, curve in curves.items())


def _priced(curves: Mapping[str, ErrorCurve], price: float) -> dict[str, int]:
    return {name: int(np.argmin(curve.errors + price * curve.costs)) for name, curve in curves.items()}


def _price(curves: Mapping[str, ErrorCurve], allowed: int) -> float:
    """Find the least price on cost at which the layers together stay within what is allowed."""
    low, high = 0.0, 1e-12
    while _total(curves, _priced(curves, high)) > allowed:
        low, high = high, 10 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _total(curves, _priced(curves, middle)) > allowed:
            low = middle
        else:
            high = middle
    return high


def _spend(curves: Mapping[str, ErrorCurve], choice: dict[str, int], left: int) -> None:
    """Buy upgrades in place, the largest error for its cost first, while any fits."""
    while True:
        offers = {name: _best_offer(curve, choice[name], left) for name, curve in curves.items()}
        name = max(offers, key=lambda candidate: offers[candidate][0])
        gain, point = offers[name]
        if gain <= 0:
            return
        left -= int(curves[name].costs[point] - curves[name].costs[choice[name]])
        choice[name] = point


def _best_offer(curve: ErrorCurve, at: int, left: int) -> tuple[float, int]:
    extra = curve.costs - curve.costs[at]
    gain = curve.errors[at] - curve.errors
    worth = np.where((extra <= left) & (gain > 0), gain / np.maximum(extra, 1), 0)
    point = int(np.argmax(worth))
    return float(worth[point]), point
