"""In each layer the cheaper of two ways: fewer channels, or factors of lower rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from torch import nn

from secateur.allocate import Leave, excluded
from secateur.decompose import Decomposable, Decomposition, Refusal, check
from secateur.decompose.spec import read_spec
from secateur.errors import SelectionError
from secateur.plan import Factorize, Plan
from secateur.rewrite import draft, draft_with_factors
from secateur.rewrite.factorize import input_moments
from secateur.score.batches import Data
from secateur.study.calibration import Calibration, calibration
from secateur.study.coherence import coherent_curves, coherent_removals
from secateur.study.curves import Curve, Seen, curve_of, observed
from secateur.study.decomposition import admitted
from secateur.study.rank_budget import Budget
from secateur.study.rank_latency import LatencyBudget, timed_curves
from secateur.study.removals import Removal, layers_of, removal_of
from secateur.study.stages import Between
from secateur.study.time_costs import timed_weighing
from secateur.study.weighing import Choice, Entries, Proportional, Weighing, described, ranks_of
from secateur.study.wish import Decompose
from secateur.target import LatencySearch, PredictedLatency, Target
from secateur.target.latency import Timed

if TYPE_CHECKING:
    from secateur.study.study import Study

_TRIES, _NEAR = 4, 0.002


@dataclass(frozen=True)
class Cheaper:
    """Choose for each layer between removing channels and lowering the rank, by one measure of what that loses.

        min  sum_groups l_g(k_g) + sum_layers l_l(r_l)      such that the whole costs no more than the target allows

    where l_g(k) is the error of the layers that read group g once k of its channels are gone and they are refitted, l_l(r) the error of
    layer l at rank r (its whitened tail), both under the covariance of the inputs that calibration data show and weighted by how much the
    model's outputs depend on them. One price on cost decides: at it each group takes the number of channels and each layer the rank at
    which loss and cost together are least, given the others, until nothing changes. A layer can lose channels and be factorized too.

    Needs calibration data and a target of MACs, parameters, bytes or measured latency. Costs in latency are the times of operators: of a
    narrower layer that of the narrower operator, of factors the sum of theirs. Groups that something else reads than plain layers, such as
    queries and keys, keep their channels.

    >>> Cheaper().decompose.fit
    'inputs'
    """

    decompose: Decompose = field(default_factory=lambda: Decompose(fit="inputs"))
    """How layers are factorized; ranks are found."""

    def plan(
        self,
        study: Study,
        target: Target,
        data: Data | Calibration | None,
        *,
        exclude: Sequence[Leave] = (),
        samples: int | None = 256,
        between: Between | None = None,
    ) -> Plan:
        """One plan for a studied model; ``between`` recovers what is left after channels went, before ranks are chosen for it."""
        held = calibration(study.capture, data, samples)
        if held is None:
            raise SelectionError(f"{self} needs calibration data: give some batches with data=...")
        if self.decompose.rank is not None:
            raise SelectionError(f"{self} finds channels and ranks for a target: give that alone.")
        budget = study.latency_budget(target) if target.quantity == "latency" else None
        gathered = _Gathered.of(study, self.decompose, held, exclude)
        if budget is not None:
            return _Timed(study, held, budget, gathered, _timed_weighing(study, budget.predicted, gathered)).plan()
        return _Chosen(study, self.decompose, target, held, exclude, between, _weighing(study, target, gathered), gathered.notes).plan()


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Makes a plan of a choice, which is made again where the plan does not come out as predicted."""

    study: Study
    wish: Decompose
    target: Target
    held: Calibration
    exclude: Sequence[Leave]
    between: Between | None
    weighing: Weighing
    notes: tuple[str, ...]

    def plan(self) -> Plan:
        allowed = self.target.fraction * self.weighing.dense.cost
        for _ in range(_TRIES):
            choice = self.weighing.within(allowed)
            pruned = _pruned(self.study, self.weighing, choice)
            left = self.study.after(pruned, data=self.held, between=self.between) if pruned.edits else self.study
            layers = self._factorized(choice)
            share = left.taken[self.target.quantity] / self.study.taken[self.target.quantity]
            if layers and share > self.target.fraction:
                return self._noted(self._ranked(left, layers), choice)
            if share <= self.target.fraction:
                return self._noted(pruned, choice)
            allowed *= self.target.fraction / share - _NEAR
        raise SelectionError(f"{self.target} cannot be reached by channels and factors together: {share:.1%} remain.")

    def _factorized(self, choice: Choice) -> set[str]:
        ranks, rows = self.weighing.ranks, self.study.decomposable
        chosen = [name.removesuffix(".weight") for name, entry in choice.entries.items() if ranks[name].points[entry] is not None]
        return {alias for name in chosen for alias in rows[name].names}

    def _ranked(self, left: Study, layers: set[str] | None) -> Plan:
        """The plan for what is left, with factors for these layers, or for any if these do not suffice."""
        settings = {f.name: getattr(self.wish, f.name) for f in fields(self.wish) if f.name != "strict"}
        alone = [*self.exclude, _all_but(layers)] if layers is not None else self.exclude
        try:
            return left.plan_decomposition(**settings, target=self.target, data=self.held, exclude=alone)
        except SelectionError:
            if layers is None:
                raise
            return self._ranked(left, None)

    def _noted(self, plan: Plan, choice: Choice) -> Plan:
        return _noted(plan, self.target, choice, self.weighing, self.notes)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A choice with the edits that it asks for."""

    choice: Choice
    pruned: Plan
    factors: tuple[Factorize, ...]
    small: nn.Module
    """What is left without the channels, before it is factorized."""


@dataclass(frozen=True, eq=False)
class _Timed:
    """Makes a plan of a choice by time, which is built and timed, and made again by what that says."""

    study: Study
    held: Calibration
    budget: LatencyBudget
    gathered: _Gathered
    weighing: Weighing

    def plan(self) -> Plan:
        """The plan whose model measures within the target."""
        found, forecast = LatencySearch(
            self.budget.target,
            self._within,
            least=lambda: self._tried(self.weighing.least),
            stopwatch=self._time,
            dense_ms=self.weighing.dense.cost,
            predicted_ms=lambda each: each.choice.cost,
        ).run()
        told = self.gathered.wish.to_json(self.budget.target, self.held) if found.factors else None
        settings = {**found.pruned.settings, **({} if told is None else {"decomposition": told}), "latency": forecast.to_json()}
        plan = replace(found.pruned, edits=(*found.pruned.edits, *found.factors), settings=settings)
        note = f"target {self.budget.target.fraction:.1%} of the dense model's latency, {forecast}"
        notes = (*self.gathered.notes, *self.budget.predicted.times.notes, note)
        return _noted(plan, self.budget.target, found.choice, self.weighing, notes)

    def _within(self, part: float) -> _Tried | None:
        try:
            return self._tried(self.weighing.within(part * self.weighing.dense.cost))
        except SelectionError:
            return None

    def _tried(self, choice: Choice) -> _Tried:
        pruned = _pruned(self.study, self.weighing, choice)
        small = draft(self.study.cut(pruned))
        points = {name.removesuffix(".weight"): self.weighing.ranks[name].points[entry] for name, entry in choice.entries.items()}
        factors = [_fitting(small, layer, point, self.gathered.wish) for layer, point in points.items() if point is not None]
        return _Tried(choice, pruned, tuple(edit for edit in factors if edit is not None), small)

    def _time(self, tried: _Tried, *, confirm: bool = False) -> Timed:
        model = draft_with_factors(self.study.cut(tried.pruned), tried.factors, tried.small)
        return self.budget.stopwatch.beside(self.study.capture, model, confirm=confirm)


def _fitting(small: nn.Module, layer: str, point: tuple[Decomposition, tuple[int, ...]], wish: Decompose) -> Factorize | None:
    """The edit of a layer that may have become narrower than its rank; none where it is too narrow for factors now."""
    method, rank = point
    spec = read_spec(small.get_submodule(layer), trust_forward=True)
    if isinstance(spec, Refusal):
        return None
    narrowed = tuple(min(part, limit) for part, limit in zip(rank, method.limits(spec), strict=True))
    found = check(spec, method, narrowed)
    return None if isinstance(found, Refusal) else wish.edit(layer, method, found)


def _pruned(study: Study, weighing: Weighing, choice: Choice) -> Plan:
    removals = weighing.removals
    ratios = {name: removals[name].counts[step] / removals[name].group.size for name, step in choice.steps.items() if step}
    if not ratios:
        return study._planned((), {"notes": []})
    plan = study.plan(ratios=ratios, scores={name: removal.scores for name, removal in removals.items()})
    return replace(plan, settings={**plan.settings, "criterion": "OBS()"})


def _noted(plan: Plan, target: Target, choice: Choice, weighing: Weighing, notes: Sequence[str]) -> Plan:
    found = [*described(choice, weighing), *notes, *plan.settings.get("notes", ())]
    predicted = f"predicted loss of the outputs' variance: {choice.loss:.2%}"
    return replace(plan, settings={**plan.settings, "way": "cheaper", "target": repr(target), "notes": [*found, predicted]})


def _all_but(layers: set[str]) -> Callable[[str, nn.Module], bool]:
    return lambda path, module: path not in layers and not any(name.startswith(f"{path}.") for name in layers)


@dataclass(frozen=True, eq=False)
class _Gathered:
    """What calibration data showed of groups and layers, before anything is priced."""

    wish: Decompose
    seen: Seen
    rows: Sequence[Decomposable]
    removals: Mapping[str, Removal]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, wish: Decompose, held: Calibration, exclude: Sequence[Leave]) -> _Gathered:
        """Weigh all that may go of a studied model by what calibration data show."""
        alone = excluded(study.groups, study.model, exclude, tied=study.capture.tied)
        groups = [group for group in study.groups if group.prunable and group.name not in alone]
        rows = admitted(study.decomposable, study.model, exclude)
        wish, seen = observed(study.model, rows, replace(wish, fit=wish.fit or "inputs"), held, everything=True)
        more = [name for name in layers_of(study.model, groups, study.decomposable) if name not in seen.moments]
        seen = replace(seen, moments={**seen.moments, **input_moments(study.model, more, held)})
        removals = {group.name: removal_of(study.model, group, study.decomposable, seen) for group in groups}
        plain = {name: removal for name, removal in removals.items() if isinstance(removal, Removal)}
        kept = coherent_removals(study.model, plain, study.decomposable, seen)
        whole = {name: removal.reason for name, removal in removals.items() if isinstance(removal, Refusal)}
        notes = tuple(f"channels of {name} stay: {reason}" for name, reason in whole.items())
        return cls(wish, seen, rows, kept, (*seen.notes, *notes))

    @property
    def by_name(self) -> dict[str, Decomposable]:
        """The layers by name."""
        return {row.name: row for row in self.rows}


def _weighing(study: Study, target: Target, gathered: _Gathered) -> Weighing:
    """All that may go with what it costs of a counted target."""
    budget, seen, rows = study.budget(target), gathered.seen, gathered.by_name
    units = {row.name: budget.units(study.model.get_submodule(row.name)) for row in gathered.rows if row.methods}
    found = {name: curve_of(study.model, rows[name], gathered.wish, budget.of, seen, units=each) for name, each in units.items()}
    curves = {name: curve for name, curve in found.items() if isinstance(curve, Curve)}
    ranks: dict[str, Entries] = {
        _leaf_name(study, rows[name]): ranks_of(study.model.get_submodule(name), rows[name], curve, budget.of, units=units[name])
        for name, curve in coherent_curves(study.model, rows, curves, seen).items()
    }
    weights = _weights(study, target, budget)
    costs = {name: Proportional(cost) for name, cost in weights.items()}
    return Weighing(gathered.removals, ranks, costs, budget.total - sum(weights.values()))


def _timed_weighing(study: Study, predicted: PredictedLatency, gathered: _Gathered) -> Weighing:
    """All that may go with the time that it takes."""
    _, curves = timed_curves(study.model, gathered.rows, gathered.wish, predicted, gathered.seen)
    names = {name: _leaf_name(study, gathered.by_name[name]) for name in curves}
    rows = {names[name]: gathered.by_name[name] for name in curves}
    return timed_weighing(study.model, rows, {names[name]: curve for name, curve in curves.items()}, gathered.removals, predicted)


def _leaf_name(study: Study, row: Decomposable) -> str:
    """The name under which the graph reads a layer's weight."""
    return next(name for name in (f"{own}.weight" for own in row.names) if name in study.weights)


def _weights(study: Study, target: Target, budget: Budget) -> dict[str, float]:
    """What each weight costs, in the budget's unit."""
    unit = study.taken[target.quantity] / budget.total
    costs = {"macs": study.macs.by_weight, "bytes": {n: t.nbytes for n, t in study.weights.items()}}
    found = costs.get(target.quantity) or {n: t.numel() for n, t in study.weights.items()}
    return {name: float(cost) / unit for name, cost in found.items() if study.weights[name].ndim > 1}
