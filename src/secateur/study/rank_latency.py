"""Choose the ranks of all layers together, so that what is left takes no more than a part of the dense model's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from secateur.allocate import even_step
from secateur.decompose import Decomposable, ErrorCurve, LayerSpec, Refusal, allocate_ranks
from secateur.decompose.spec import read_spec
from secateur.errors import SelectionError
from secateur.measure.operation import Operation
from secateur.plan import Factorize
from secateur.rewrite import draft_with_factors
from secateur.score.progress import with_progress
from secateur.study.coherence import coherent_curves
from secateur.study.curves import Curve, Point, Seen, curve_of
from secateur.study.wish import Decompose, Found
from secateur.target import Forecast, LatencySearch, PredictedLatency, Stopwatch, Target
from secateur.target.factors import factor_operations, own_nodes, sums

MOST = 12
"""Points of a layer's curve whose factors are timed at most."""
_TICKS = 1e6
"""Times are chosen from in millionths of a millisecond, since costs are whole numbers."""


@dataclass(frozen=True, eq=False)
class LatencyBudget:
    """A target of latency with what the model's operators are predicted to take, and a stopwatch for what is left."""

    target: Target
    predicted: PredictedLatency
    stopwatch: Stopwatch


@dataclass(frozen=True, eq=False)
class _Choice:
    """What becomes of each layer for a predicted part of the time."""

    found: Mapping[str, Found]
    ms: float

    @property
    def edits(self) -> tuple[Factorize, ...]:
        return tuple(edit for edit in self.found.values() if isinstance(edit, Factorize))


def within_latency(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, budget: LatencyBudget, seen: Seen
) -> tuple[dict[str, Found], tuple[str, ...], Forecast]:
    """Choose all ranks together, build what is left, time it in turns with the dense model, and choose again by what that says.

    Raises :class:`SelectionError` where no choice of ranks measures within the target.
    """
    refused, curves = timed_curves(model, rows, wish, budget.predicted, seen)
    if not curves:
        raise SelectionError(f"{budget.target} was not reached: no factors are predicted to be faster than the layers that they replace.")
    whole = {name: float(curve.errors.costs[-1]) / _TICKS for name, curve in curves.items()}
    dense_ms = budget.predicted.dense_ms
    fixed = dense_ms - sum(whole.values())

    def chosen(places: Mapping[str, int]) -> _Choice:
        points = {name: curve.points[places[name]] for name, curve in curves.items()}
        kept = Refusal("the time is best spent on it as it is")
        found: dict[str, Found] = {name: kept if point is None else wish.edit(name, *point) for name, point in points.items()}
        return _Choice({**refused, **found}, fixed + sum(int(curves[name].errors.costs[place]) for name, place in places.items()) / _TICKS)

    def within(part: float) -> _Choice | None:
        try:
            return chosen(
                allocate_ranks({name: curve.errors for name, curve in curves.items()}, int((part * dense_ms - fixed) * _TICKS)).points
            )
        except SelectionError:
            return None

    empty = budget.predicted.cut_of({})

    choice, forecast = LatencySearch(
        budget.target,
        within,
        least=lambda: chosen({name: int(curve.errors.costs.argmin()) for name, curve in curves.items()}),
        stopwatch=lambda each, **how: budget.stopwatch.beside(empty.solution.walk.capture, draft_with_factors(empty, each.edits), **how),
        dense_ms=dense_ms,
        predicted_ms=lambda each: each.ms,
    ).run()
    note = f"target {budget.target.fraction:.1%} of the dense model's latency, {forecast}"
    return {row.name: choice.found[row.name] for row in rows}, (*budget.predicted.times.notes, note), forecast


def timed_curves(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, predicted: PredictedLatency, seen: Seen
) -> tuple[dict[str, Found], dict[str, Curve]]:
    """The errors of layers over the times of their factors, and why other layers stay; what is no faster than the layer is no point."""
    found: dict[str, Found] = {row.name: Refusal(row.reason or "") for row in rows if not row.methods}
    curves: dict[str, Curve] = {}
    able = [row for row in rows if row.methods]
    for row in with_progress(able, "Weighing ranks", len(able)):
        curve = curve_of(model, row, _stepped(model, row, wish), "macs", seen)
        if isinstance(curve, Refusal):
            found[row.name] = curve
        else:
            curves[row.name] = curve
    curves = coherent_curves(model, {row.name: row for row in rows}, curves, seen)
    few = {row: thinned(curves[row.name]) for row in able if row.name in curves}
    times = layer_times(model, {row: curve.points for row, curve in few.items()}, predicted)
    for row, curve in few.items():
        timed = _over_time(curve, times[row.name])
        if isinstance(timed, Refusal):
            found[row.name] = timed
            del curves[row.name]
        else:
            curves[row.name] = timed
    return found, curves


def _stepped(model: nn.Module, row: Decomposable, wish: Decompose) -> Decompose:
    """The wish with ranks that are multiples of what a processor likes, unless others are asked for."""
    spec, _ = stored(model, row)
    step = even_step(min(spec.group_inputs, spec.group_outputs))
    return replace(wish, round_to=step) if wish.round_to == 1 else wish


def stored(model: nn.Module, row: Decomposable) -> tuple[LayerSpec, Tensor]:
    """How a layer is set, and its weight."""
    layer = model.get_submodule(row.name)
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    return spec, layer.weight


def thinned(curve: Curve) -> Curve:
    """Of the points that lose less than all cheaper ones a few, evenly over the cost, and the layer as it is."""
    costs, losses = curve.errors.costs, curve.errors.errors
    order = np.lexsort((losses[:-1], costs[:-1]))
    best = np.minimum.accumulate(losses[order])
    worth = order[np.concatenate([[True], best[1:] < best[:-1]])]
    wanted = np.linspace(costs[worth[0]], costs[worth[-1]], MOST)
    kept = [*dict.fromkeys(int(worth[np.abs(costs[worth] - cost).argmin()]) for cost in wanted), len(costs) - 1]
    return replace(curve, points=tuple(curve.points[place] for place in kept), errors=_at(curve.errors, kept))


def _at(errors: ErrorCurve, kept: Sequence[int]) -> ErrorCurve:
    places = np.array(kept, dtype=np.int64)
    return replace(errors, ranks=tuple(errors.ranks[place] for place in kept), costs=errors.costs[places], errors=errors.errors[places])


def layer_times(
    model: nn.Module, points: Mapping[Decomposable, Sequence[Point]], predicted: PredictedLatency
) -> dict[str, list[float | None]]:
    """The milliseconds of a layer's factors at each point of its curve, in all calls; ``None`` where they do not run by themselves."""
    groups: list[list[Operation]] = []
    for row, each in points.items():
        groups += [_operations(model, row, point, predicted) for point in each]
    found = iter(sums(predicted.times, groups))
    return {row.name: [next(found) for _ in each] for row, each in points.items()}


def _operations(model: nn.Module, row: Decomposable, point: Point, predicted: PredictedLatency) -> list[Operation]:
    if point is None:
        return predicted.operations(own_nodes(predicted.capture, row.names))
    spec, weight = stored(model, row)
    method, rank = point
    calls = factor_operations(method.layers(spec, rank).values(), row.calls, weight.dtype)
    return [operation for each in calls for operation in each]


def _over_time(curve: Curve, times: Sequence[float | None]) -> Curve | Refusal:
    """The curve with times as costs, of the points that are faster than the layer."""
    dense = times[-1]
    if dense is None:
        return Refusal("its operator cannot be timed by itself")
    kept = [place for place, time in enumerate(times[:-1]) if time is not None and time < dense]
    if not kept:
        return Refusal("no factors are predicted to be faster")
    kept.append(len(times) - 1)
    costs = np.array([round(_TICKS * (times[place] or 0.0)) for place in kept], dtype=np.int64)
    errors = replace(_at(curve.errors, kept), costs=costs)
    return replace(curve, points=tuple(curve.points[place] for place in kept), errors=errors)
