"""What widths and ranks cost in time: of each call of a model how its time falls as channels go, and of factors in its place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secateur.allocate import even_step
from secateur.decompose import Decomposable, LayerSpec
from secateur.measure.operation import Operation
from secateur.study.curves import Curve, Point
from secateur.study.rank_latency import stored
from secateur.study.removals import Removal
from secateur.study.weighing import ALL, Entries, Left, Weighing
from secateur.target import PredictedLatency, Shrinking
from secateur.target.factors import factor_operations, own_nodes, sums

Numbers = NDArray[np.float64]
Places = dict[str, dict[tuple[str, int], Numbers]]
_EIGHTHS, _QUARTERS = np.arange(1, 9) / 8, np.arange(1, 5) / 4
_FIRST_AXIS = 2
"""Weights have dimensions 0 and 1; the numbers of calls that shrink together come after these."""


@dataclass(frozen=True, eq=False)
class Steps:
    """The part of a time that is left where a part of some channels is left."""

    parts: Numbers
    shares: Numbers

    def __call__(self, left: Numbers | float) -> Numbers:
        return np.asarray(np.interp(left, self.parts, self.shares))


@dataclass(frozen=True, eq=False)
class Stairs:
    """The time of one or more calls: a product of steps, one for all channels that shrink the same numbers."""

    whole: float
    steps: Mapping[int, Steps]

    @property
    def axes(self) -> tuple[int, ...]:
        """The places among the calls' numbers that shrink."""
        return tuple(self.steps)

    def __call__(self, left: Left) -> Numbers:
        found = np.asarray(self.whole)
        for axis, step in self.steps.items():
            found = found * step(left[axis])
        return found


@dataclass(frozen=True, eq=False)
class TimedRanks:
    """Entries whose cost is time: that of the first factor falls with the layer's inputs, of the last with its outputs."""

    points: tuple[Point, ...]
    losses: Numbers
    first: Numbers
    middle: Numbers
    last: Numbers
    inputs: Steps
    outputs: Steps
    layer: Stairs
    in_dim: int = 1

    @property
    def axes(self) -> tuple[int, ...]:
        """Both dimensions of its channels, and what the layer's own calls follow."""
        return (0, 1, *self.layer.axes)

    def costs(self, left: Left, at: int | slice = ALL) -> Numbers:
        """The cost of each entry, or of one."""
        first, last = self.inputs(left[self.in_dim]), self.outputs(left[1 - self.in_dim])
        if isinstance(at, int):
            whole = self.points[at] is None
            return self.layer(left) if whole else np.asarray(self.first[at] * first + self.middle[at] + self.last[at] * last)
        factors = self.first * first + self.middle + self.last * last
        return np.append(factors[:-1], self.layer(left))[at]


def timed_weighing(
    model: nn.Module,
    rows: Mapping[str, Decomposable],
    curves: Mapping[str, Curve],
    removals: Mapping[str, Removal],
    predicted: PredictedLatency,
) -> Weighing:
    """Groups of channels and layers with what all calls of the model take; layers are given by the names of their weights."""
    removals = {name: even(removal) for name, removal in removals.items()}
    items: dict[str, list[Shrinking]] = {
        weight: [predicted.calls[node] for node in own_nodes(predicted.capture, rows[weight].names) if node in predicted.calls]
        for weight in curves
    }
    factorized = {node for weight in curves for node in own_nodes(predicted.capture, rows[weight].names)}
    items |= _alike(call for node, call in predicted.calls.items() if node not in factorized)
    axes = {name: _axes(calls, removals) for name, calls in items.items()}
    costs = _stairs(items, axes, predicted)
    ranks = {weight: _ranks(model, rows[weight], curve, costs[weight], predicted) for weight, curve in curves.items()}
    entries: dict[str, Entries] = {**ranks}
    return Weighing(removals, entries, costs, 0.0, _places(axes, removals))


def even(removal: Removal) -> Removal:
    """The steps of a group that leave widths which processors like, since what lies between saves no time."""
    step = even_step(removal.group.size // max(removal.group.rows, 1)) * max(removal.group.rows, 1)
    kept = (removal.counts == 0) | ((removal.group.size - removal.counts) % step == 0)
    return replace(removal, losses=removal.losses[kept], counts=removal.counts[kept])


def _alike(calls: Iterable[Shrinking]) -> dict[str, list[Shrinking]]:
    """Calls that take equally long, whatever goes, together."""
    found: dict[str, list[Shrinking]] = defaultdict(list)
    for call in calls:
        found[f"{call.operation.key} {sorted((name, lost.tolist()) for name, lost in call.lost.items())}"].append(call)
    return dict(found)


def _axes(calls: Sequence[Shrinking], removals: Mapping[str, Removal]) -> list[dict[str, float]]:
    """The groups whose channels shrink the same numbers of some calls, each with its part of what they all can lose."""
    found: dict[tuple[tuple[int, ...], ...], dict[str, float]] = defaultdict(dict)
    for name in removals:
        lost = [call.lost.get(name, np.zeros(len(call.base))) for call in calls]
        touched = tuple(tuple(np.flatnonzero(each).tolist()) for each in lost)
        if any(touched):
            found[touched][name] = max(float(each.max(initial=0.0)) for each in lost)
    return [{name: part / sum(parts.values()) for name, part in parts.items()} for parts in found.values()]


def _places(axes: Mapping[str, Sequence[Mapping[str, float]]], removals: Mapping[str, Removal]) -> Places:
    """By group, the part of each axis that is gone after its steps."""
    found: Places = defaultdict(dict)
    for name, each in axes.items():
        for axis, groups in enumerate(each, start=_FIRST_AXIS):
            for group, part in groups.items():
                found[group][name, axis] = part * removals[group].counts / removals[group].group.size
    return found


def _stairs(
    items: Mapping[str, Sequence[Shrinking]], axes: Mapping[str, Sequence[Mapping[str, float]]], predicted: PredictedLatency
) -> dict[str, Stairs]:
    """The time of each item along each of its axes, all measured in one go."""
    wanted: list[tuple[Operation, Numbers]] = []
    for name, calls in items.items():
        for groups in axes[name] or [{}]:
            wanted += [(call.operation, np.round(call.at(dict.fromkeys(groups, float(part))))) for part in _EIGHTHS for call in calls]
    found = iter(predicted.times_of(wanted))
    out: dict[str, Stairs] = {}
    for name, calls in items.items():
        tables = [np.array([sum(next(found) for _ in calls) for _ in _EIGHTHS]) for _ in axes[name] or [{}]]
        steps = {axis: Steps(_EIGHTHS, _shares(tables[axis - _FIRST_AXIS])) for axis, _ in enumerate(axes[name], start=_FIRST_AXIS)}
        out[name] = Stairs(float(tables[0][-1]), steps)
    return out


def _shares(times: Numbers) -> Numbers:
    return times / times[-1] if times[-1] > 0 else np.ones(len(times))


def _ranks(model: nn.Module, row: Decomposable, curve: Curve, layer: Stairs, predicted: PredictedLatency) -> TimedRanks:
    spec, made = stored(model, row)
    parts = [_parts(spec, point, row, made.dtype, predicted) for point in curve.points[:-1]]
    first, middle, last = (np.array(each) for each in zip(*parts, (0.0, 0.0, 0.0), strict=True))
    inputs, outputs = _ends(spec, curve.points[(len(curve.points) - 1) // 2], row, made.dtype, predicted)
    in_dim = 0 if spec.transposed or spec.inputs_first else 1
    return TimedRanks(curve.points, curve.errors.errors, first, middle, last, inputs, outputs, layer, in_dim)


def _parts(spec: LayerSpec, point: Point, row: Decomposable, dtype: torch.dtype, predicted: PredictedLatency) -> tuple[float, float, float]:
    """The time of the first factor, of those in the middle, and of the last."""
    assert point is not None
    method, rank = point
    times = [time or 0.0 for time in sums(predicted.times, factor_operations(method.layers(spec, rank).values(), row.calls, dtype))]
    return (times[0], sum(times[1:-1]), times[-1]) if len(times) > 1 else (0.0, 0.0, times[0])


def _ends(spec: LayerSpec, point: Point, row: Decomposable, dtype: torch.dtype, predicted: PredictedLatency) -> tuple[Steps, Steps]:
    """How the first factor's time falls with the layer's inputs, and the last one's with its outputs, at a rank in the middle."""
    assert point is not None
    method, rank = point
    specs = list(method.layers(spec, rank).values())
    first = [replace(specs[0], inputs=_part(specs[0].inputs, part, specs[0].groups)) for part in _QUARTERS]
    last = [replace(specs[-1], outputs=_part(specs[-1].outputs, part, specs[-1].groups)) for part in _QUARTERS]
    heads = [factor_operations([each], row.calls, dtype)[0] for each in first]
    tails = [factor_operations([*specs[:-1], each], row.calls, dtype)[-1] for each in last]
    times = sums(predicted.times, [*heads, *tails])
    tables = np.array([time or 0.0 for time in times]).reshape(2, len(_QUARTERS))
    return Steps(_QUARTERS, _shares(tables[0])), Steps(_QUARTERS, _shares(tables[1]))


def _part(width: int, part: float, groups: int) -> int:
    return max(1, round(width * part / groups)) * groups
