"""What calibration data show of layers, and what each layer loses over what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from secateur.decompose import Decomposable, Decomposition, ErrorCurve, Moments, Refusal, Slopes, error_curve
from secateur.decompose.ranks import Measure
from secateur.errors import ModelError
from secateur.rewrite.factorize import input_moments, output_slopes
from secateur.study.calibration import Calibration
from secateur.study.wish import Decompose

Point = tuple[Decomposition, tuple[int, ...]] | None


@dataclass(frozen=True)
class Seen:
    """What calibration data showed of layers."""

    moments: Mapping[str, Moments] = field(default_factory=dict)
    """Of their inputs."""
    slopes: Mapping[str, Slopes] = field(default_factory=dict)
    """Of the model's outputs by theirs."""
    notes: tuple[str, ...] = ()
    batches: Calibration | None = None
    """The data themselves, where curves are to be scaled by what the outputs lose at one point of each."""


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
    return replace(wish, weighted=True), Seen(moments, slopes, batches=held if everything else None)


def curve_of(model: nn.Module, row: Decomposable, wish: Decompose, of: Measure, seen: Seen, *, units: int = 1) -> Curve | Refusal:
    """The error of one layer over its cost, by all methods that apply to it; each element or MAC costs so many units."""
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
    return Curve((*points, None), _joined(curves, units), _at_half(curves)) if curves else refusal


def _joined(curves: Sequence[ErrorCurve], units: int) -> ErrorCurve:
    costs = units * np.concatenate([*(curve.costs[:-1] for curve in curves), curves[0].costs[-1:]])
    errors = np.concatenate([*(curve.errors[:-1] for curve in curves), curves[0].errors[-1:]])
    ranks = (*(rank for curve in curves for rank in curve.ranks[:-1]), None)
    return ErrorCurve(ranks, costs, errors, curves[0].whole)


def _at_half(curves: Sequence[ErrorCurve]) -> float:
    halves = [float(curve.errors[curve.costs <= curve.dense_cost / 2].min(initial=curve.whole)) for curve in curves]
    return min(half / curve.whole if curve.whole > 0 else 0.0 for half, curve in zip(halves, curves, strict=True))
