"""Choose which layers of a model are factorized, by which method and at what rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import nn

from secateur.allocate import Leave
from secateur.capture import Capture
from secateur.decompose import (
    SVD,
    ByHand,
    ByVBMF,
    Decomposable,
    DecomposableLayers,
    Decomposition,
    ErrorCurve,
    Moments,
    RankRule,
    Refusal,
    Tucker,
    allocate_ranks,
    choose_rank,
    error_curve,
    settings_of,
)
from secateur.decompose.ranks import Measure
from secateur.errors import SelectionError
from secateur.plan import Factorize, Fit, did_you_mean
from secateur.rewrite.factorize import input_moments
from secateur.study.calibration import Calibration
from secateur.target import Target

RankChoice = int | tuple[int, ...] | RankRule
"""A rank for all modes, one for each mode, or a rule that finds it."""
USUAL: tuple[Decomposition, ...] = (Tucker(), SVD())
"""Tucker for kernels with an extent, SVD for matrices."""
Found = Factorize | Refusal


@dataclass(frozen=True)
class Decompose:
    """How layers are factorized: the settings of :meth:`Study.plan_decomposition` in one value.

    >>> Decompose(SVD(), rank=ByEnergy(0.9)).fit is None
    True
    """

    method: Decomposition | Sequence[Decomposition] = USUAL
    """Of several, the first that applies to a layer, or with a target the one that loses least."""
    rank: RankChoice | Mapping[str, RankChoice] | None = None
    fit: Fit | None = None
    """What factors are fitted to; by default inputs where there are calibration data."""
    correct_bias: bool = True
    round_to: int = 1
    accept_dearer: bool = False

    @property
    def methods(self) -> tuple[Decomposition, ...]:
        """The methods, in the order in which they are asked."""
        return tuple(self.method) if isinstance(self.method, Sequence) else (self.method,)

    def edit(self, layer: str, method: Decomposition, rank: tuple[int, ...]) -> Factorize:
        """The edit for one layer."""
        return Factorize(layer, method.name, rank, settings_of(method), self.fit or "weights", self.correct_bias)

    def to_json(self, target: Target | None, held: Calibration | None) -> dict[str, Any]:
        """What a plan says of how its ranks came about."""
        return {
            "methods": [repr(method) for method in self.methods],
            "rank": None if target is not None else repr(ByVBMF() if self.rank is None else self.rank),
            "target": None if target is None else repr(target),
            "fit": self.fit,
            "calibration": None if held is None else held.to_json(),
        }


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


def choose_factors(
    capture: Capture,
    layers: DecomposableLayers,
    wish: Decompose,
    *,
    exclude: Sequence[Leave] = (),
    budget: Budget | None = None,
    held: Calibration | None = None,
) -> tuple[tuple[Factorize, ...], tuple[str, ...]]:
    """Choose the layers that are factorized with their ranks, and say in notes which are not, and why."""
    if budget is not None and wish.rank is not None:
        raise SelectionError("Give ranks or a target, not both: the target finds the ranks.")
    if not wish.methods:
        raise SelectionError("Give at least one method of decomposition.")
    if wish.fit not in (None, "weights") and held is None:
        raise SelectionError(f"Factors that are fitted to {wish.fit} need calibration data: give some with data=...")
    wish = replace(wish, fit=wish.fit or ("weights" if held is None else "inputs"))
    _check_excluded(layers, capture.model, exclude)
    rows = [row for row in layers if not any(_is_meant(row, capture.model, leave) for leave in exclude)]
    if budget is not None:
        found, notes = _within_budget(capture, rows, wish, budget, held)
    else:
        found, notes = _by_rank(capture.model, layers, rows, wish), ()
    edits = tuple(edit for edit in found.values() if isinstance(edit, Factorize))
    return edits, (*notes, *_reasons({name: refusal.reason for name, refusal in found.items() if isinstance(refusal, Refusal)}))


def _check_excluded(layers: DecomposableLayers, model: nn.Module, exclude: Sequence[Leave]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for leave in exclude:
        if isinstance(leave, str) and not any(fnmatchcase(name, leave) for name in modules if name):
            names = [name for row in layers for name in row.names]
            raise SelectionError(f"No layer to leave alone matches {leave!r}.{did_you_mean(leave, names)}")


def _is_meant(row: Decomposable, model: nn.Module, leave: Leave) -> bool:
    """Whether a layer, or a module around it, is among those to leave alone."""
    for name in row.names:
        parts = name.split(".")
        for path in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            module = model.get_submodule(path)
            if isinstance(leave, str):
                meant = fnmatchcase(path, leave)
            else:
                meant = isinstance(module, leave) if isinstance(leave, type) else leave(path, module)
            if meant:
                return True
    return False


def _by_rank(model: nn.Module, layers: DecomposableLayers, rows: Sequence[Decomposable], wish: Decompose) -> dict[str, Found]:
    rank = ByVBMF() if wish.rank is None else wish.rank
    if not isinstance(rank, Mapping):
        return {row.name: _chosen(model, row, rank, wish) for row in rows}
    found: dict[str, Found] = {}
    by_glob = {key: choice for key, choice in rank.items() if key not in layers}
    for key in by_glob:
        if not any(fnmatchcase(name, key) for row in layers for name in row.names):
            names = [name for row in layers for name in row.names]
            raise SelectionError(f"No layer that could be factorized matches {key!r}.{did_you_mean(key, names)}")
    named = {layers[key].name: choice for key, choice in rank.items() if key in layers}
    for row in rows:
        glob = next((choice for key, choice in by_glob.items() if any(fnmatchcase(name, key) for name in row.names)), None)
        choice = named.get(row.name, glob)
        if choice is not None:
            found[row.name] = _chosen(model, row, choice, wish)
    refused = {name: each.reason for name, each in found.items() if isinstance(each, Refusal) and name in named}
    if refused:
        raise SelectionError("These layers cannot be factorized so:\n  " + "\n  ".join(f"{name}: {why}" for name, why in refused.items()))
    return found


def _chosen(model: nn.Module, row: Decomposable, choice: RankChoice, wish: Decompose) -> Found:
    """The rank of one layer by the first method that applies to it."""
    if not row.fitting:
        return Refusal(row.reason or "no method applies to it")
    method = next((method for method in wish.methods if method.name in row.fitting), None)
    if method is None:
        return Refusal(f"{' and '.join(each.name for each in wish.methods)} do not apply to it, {' and '.join(row.fitting)} would")
    rule = ByHand(choice) if isinstance(choice, int | tuple) else choice
    size = row.calls[0].size if row.calls else None
    rank = choose_rank(model.get_submodule(row.name), method, rule, accept_dearer=wish.accept_dearer, trust_forward=row.trusted, size=size)
    return rank if isinstance(rank, Refusal) else wish.edit(row.name, method, rank)


def _within_budget(
    capture: Capture, rows: Sequence[Decomposable], wish: Decompose, budget: Budget, held: Calibration | None
) -> tuple[dict[str, Found], tuple[str, ...]]:
    """Choose all ranks together; a layer whose share of the budget is best left as it is gets none."""
    admitted = [row for row in rows if row.methods]
    moments = {} if held is None else input_moments(capture.model, [row.name for row in admitted], held)
    found: dict[str, Found] = {row.name: Refusal(row.reason or "") for row in rows if not row.methods}
    points: dict[str, list[tuple[Decomposition, tuple[int, ...]] | None]] = {}
    curves: dict[str, ErrorCurve] = {}
    for row in admitted:
        joined = _joined_curves(capture.model, row, wish, budget.of, moments.get(row.name))
        if isinstance(joined, Refusal):
            found[row.name] = joined
        else:
            points[row.name], curves[row.name] = joined
    fixed = budget.total - sum(curve.dense_cost for curve in curves.values())
    least = fixed + sum(int(curve.costs.min()) for curve in curves.values())
    if not curves or least > budget.allowed:
        raise SelectionError(f"{budget.target} cannot be reached: with all at rank 1, {least / budget.total:.1%} remain.")
    chosen = allocate_ranks(curves, int(budget.allowed - fixed))
    for name, place in chosen.points.items():
        point = points[name][place]
        found[name] = Refusal("the budget is best spent on it as it is") if point is None else wish.edit(name, *point)
    note = f"target {budget.allowed / budget.total:.1%}, predicted {(chosen.cost + fixed) / budget.total:.1%}"
    return {row.name: found[row.name] for row in rows}, (note,)


def _joined_curves(
    model: nn.Module, row: Decomposable, wish: Decompose, of: Measure, moments: Moments | None
) -> tuple[list[tuple[Decomposition, tuple[int, ...]] | None], ErrorCurve] | Refusal:
    """The points of all methods for one layer on one curve; the last is the layer as it is."""
    points: list[tuple[Decomposition, tuple[int, ...]] | None] = []
    curves: list[ErrorCurve] = []
    refusal = Refusal(f"{' and '.join(each.name for each in wish.methods)} do not apply to it")
    for method in wish.methods:
        if method.name not in row.methods:
            continue
        curve = error_curve(
            model.get_submodule(row.name),
            method,
            moments=moments,
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
    if not curves:
        return refusal
    costs = np.concatenate([*(curve.costs[:-1] for curve in curves), curves[0].costs[-1:]])
    errors = np.concatenate([*(curve.errors[:-1] for curve in curves), curves[0].errors[-1:]])
    ranks = (*(rank for curve in curves for rank in curve.ranks[:-1]), None)
    return [*points, None], ErrorCurve(ranks, costs, errors)


def _reasons(refused: Mapping[str, str]) -> tuple[str, ...]:
    """One note a reason, with the layers that it holds for."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in refused.items():
        by_reason[reason].append(name)
    return tuple(f"not factorized: {', '.join(names)}: {reason}" for reason, names in by_reason.items())
