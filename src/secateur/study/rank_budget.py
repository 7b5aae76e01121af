"""Choose the ranks of all layers together, so that what remains fits a target at the least error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from secateur.decompose import Decomposable, Decomposition, ErrorCurve, Moments, Refusal, Slopes, allocate_ranks, error_curve
from secateur.decompose.ranks import Measure
from secateur.errors import ModelError, SelectionError
from secateur.rewrite.factorize import input_moments, output_slopes
from secateur.study.calibration import Calibration
from secateur.study.wish import Decompose, Found
from secateur.target import Target

WRONG = 0.1
"""A layer that loses more of its outputs than this at half of its cost is none for factors."""
Point = tuple[Decomposition, tuple[int, ...]] | None


@dataclass(frozen=True)
class Budget:
    """What the model as it is takes, and what of that may remain."""

    target: Target
    of: Measure
    total: int
    allowed: float

    @classmethod
    def of_target(cls, target: Target, within: Target, macs: int, parameters: int) -> Budget:
        """The budget of a target for the dense model, where ``within`` is the same for the model as it is."""
        total = macs if target.macs is not None else parameters
        return cls(target, "macs" if target.macs is not None else "params", total, within.fraction * total)


@dataclass(frozen=True)
class Seen:
    """What calibration data showed of layers."""

    moments: Mapping[str, Moments] = field(default_factory=dict)
    """Of their inputs."""
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    """Of the model's outputs by theirs."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """The points of all methods for one layer on one curve; the last is the layer as it is."""

    points: tuple[Point, ...]
    errors: ErrorCurve
    at_half: float
    """The part of its outputs (of its weight without data) that the layer loses at half of its cost."""


def observed(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, held: Calibration | None, *, everything: bool
) -> tuple[Decompose, Seen]:
    """Show calibration data to the model, and settle whether errors are weighted.

    Unless ``everything`` is wanted, one batch is enough to tell whether the model can be differentiated.
    """
    names = [row.name for row in rows if row.methods]
    if held is None or not names:
        return replace(wish, weighted=False), Seen()
    moments = input_moments(model, names, held) if everything else {}
    if wish.weighted is False or wish.fit == "weights":
        return replace(wish, weighted=False), Seen(moments)
    try:
        slopes = output_slopes(model, names, held if everything else lambda: held()[:1])
    except ModelError as error:
        if wish.weighted:
            raise
        return replace(wish, weighted=False), Seen(moments, notes=(f"errors of layers count alike, since {error}",))
    if not slopes:
        return replace(wish, weighted=False), Seen(moments, notes=("errors of layers count alike, since no derivative reaches them",))
    return replace(wish, weighted=True), Seen(moments, slopes)


def within_budget(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, budget: Budget, seen: Seen
) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Choose all ranks together; a layer whose share of the budget is best left as it is gets none."""
    found: dict[str, Found] = {row.name: Refusal(row.reason or "") for row in rows if not row.methods}
    curves: dict[str, Curve] = {}
    for row in rows:
        if row.methods:
            curve = curve_of(model, row, wish, budget.of, seen)
            if isinstance(curve, Refusal):
                found[row.name] = curve
            else:
                curves[row.name] = curve
    errors = {name: curve.errors for name, curve in curves.items()}
    fixed = budget.total - sum(curve.dense_cost for curve in errors.values())
    least = fixed + sum(int(curve.costs.min()) for curve in errors.values())
    if not curves or least > budget.allowed:
        raise SelectionError(f"{budget.target} cannot be reached: with all at rank 1, {least / budget.total:.1%} remain.")
    chosen = allocate_ranks(errors, int(budget.allowed - fixed))
    for name, place in chosen.points.items():
        point = curves[name].points[place]
        found[name] = Refusal("the budget is best spent on it as it is") if point is None else wish.edit(name, *point)
    dense = budget.target.fraction * budget.total / budget.allowed
    note = f"target {budget.target.fraction:.1%}, predicted {(chosen.cost + fixed) / budget.total * dense:.1%}"
    return {row.name: found[row.name] for row in rows}, (note, *seen.notes, *wrong_tool(curves))


def wrong_tool(curves: Mapping[str, Curve]) -> tuple[str, ...]:
    """A note on the layers for which factors are the wrong tool."""
    lost = {name: curve.at_half for name, curve in curves.items() if curve.at_half > WRONG}
    told = ", ".join(f"{name} ({part:.0%})" for name, part in sorted(lost.items(), key=lambda each: -each[1]))
    return (f"factors are the wrong tool for layers that lose more than {WRONG:.0%} at half of their cost: {told}",) if lost else ()


def curve_of(model: nn.Module, row: Decomposable, wish: Decompose, of: Measure, seen: Seen) -> Curve | Refusal:
    """The error of one layer over its cost, by all methods that apply to it."""
    points: list[Point] = []
    curves: list[ErrorCurve] = []
    refusal = Refusal(f"{' and '.join(each.name for each in wish.methods)} cannot factorize it")
    for method in wish.methods:
        if method.name not in row.methods:
            continue
        curve = error_curve(
            model.get_submodule(row.name),
            method,
            moments=seen.moments.get(row.name) if wish.fit != "weights" else None,
            slopes=seen.slopes.get(row.name),
            of=of,
            round_to=wish.round_to,
            calls=row.calls,
            trust_forward=row.trusted,
        )
        if isinstance(curve, Refusal):
            refusal = curve
            continue
        points += [(method, rank) for rank in curve.ranks if rank is not None]
        curves.append(curve)
    return Curve((*points, None), _joined(curves), _at_half(curves)) if curves else refusal


def _joined(curves: Sequence[ErrorCurve]) -> ErrorCurve:
    costs = np.concatenate([*(curve.costs[:-1] for curve in curves), curves[0].costs[-1:]])
    errors = np.concatenate([*(curve.errors[:-1] for curve in curves), curves[0].errors[-1:]])
    ranks = (*(rank for curve in curves for rank in curve.ranks[:-1]), None)
    return ErrorCurve(ranks, costs, errors, curves[0].whole)


def _at_half(curves: Sequence[ErrorCurve]) -> float:
    halves = [float(curve.errors[curve.costs <= curve.dense_cost / 2].min(initial=curve.whole)) for curve in curves]
    return min(half / curve.whole if curve.whole > 0 else 0.0 for half, curve in zip(halves, curves, strict=True))
