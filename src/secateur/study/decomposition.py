"""Choose which layers of a model are factorized, by which method and at what rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from secateur.allocate import Leave
from secateur.capture import Capture
from secateur.decompose import ByHand, ByVBMF, Decomposable, DecomposableLayers, Refusal, choose_rank
from secateur.errors import SelectionError
from secateur.plan import Factorize, did_you_mean
from secateur.study.calibration import Calibration
from secateur.study.curves import Seen, observed
from secateur.study.rank_budget import Budget, within_budget
from secateur.study.rank_latency import LatencyBudget, within_latency
from secateur.study.timed import slower
from secateur.study.wish import Decompose, Found, RankChoice
from secateur.target import Forecast


def choose_factors(
    capture: Capture,
    layers: DecomposableLayers,
    wish: Decompose,
    *,
    exclude: Sequence[Leave] = (),
    budget: Budget | LatencyBudget | None = None,
    held: Calibration | None = None,
) -> tuple[tuple[Factorize, ...], tuple[str, ...], Forecast | None]:
    """Choose the layers that are factorized with their ranks, and say in notes which are not, and why; and what a latency came to."""
    if budget is not None and wish.rank is not None:
        raise SelectionError("Give ranks or a target, not both: the target finds the ranks.")
    if not wish.methods:
        raise SelectionError("Give at least one method of decomposition.")
    if wish.fit not in (None, "weights") and held is None:
        raise SelectionError(f"Factors that are fitted to {wish.fit} need calibration data: give some with data=...")
    wish = replace(wish, fit=wish.fit or ("weights" if held is None else "inputs"))
    rows = admitted(layers, capture.model, exclude)
    wish, seen = observed(capture.model, rows, wish, held, everything=budget is not None)
    found, notes, forecast = _found(capture.model, layers, rows, wish, budget, seen)
    refused = {name: refusal.reason for name, refusal in found.items() if isinstance(refusal, Refusal)}
    missed = {name: reason for name, reason in refused.items() if layers[name].fitting}
    if wish.strict and missed:
        raise _refused(missed)
    return tuple(edit for edit in found.values() if isinstance(edit, Factorize)), (*notes, *_reasons(refused)), forecast


def _found(
    model: nn.Module,
    layers: DecomposableLayers,
    rows: Sequence[Decomposable],
    wish: Decompose,
    budget: Budget | LatencyBudget | None,
    seen: Seen,
) -> tuple[dict[str, Found], tuple[str, ...], Forecast | None]:
    """The choice for each layer; where factors turn out slower, the choice is made again without them."""
    slow: dict[str, Refusal] = {}
    fast: set[Factorize] = set()
    while True:
        left = [row for row in rows if row.name not in slow]
        if budget is None:
            found, notes, forecast = _by_rank(model, layers, left, wish), seen.notes, None
        else:
            found, notes, forecast = _affordable(model, left, wish, budget, seen, len(slow))
        new = [edit for edit in found.values() if isinstance(edit, Factorize) and edit not in fast] if wish.timed else []
        timed = {edit: slower(model.get_submodule(edit.layer), edit, layers[edit.layer].calls) for edit in new}
        worse = {edit.layer: refusal for edit, refusal in timed.items() if refusal is not None}
        fast |= {edit for edit, refusal in timed.items() if refusal is None}
        slow |= worse
        if not worse:
            return {row.name: slow.get(row.name) or found[row.name] for row in rows if row.name in {**slow, **found}}, notes, forecast


def _affordable(
    model: nn.Module, rows: Sequence[Decomposable], wish: Decompose, budget: Budget | LatencyBudget, seen: Seen, slow: int
) -> tuple[dict[str, Found], tuple[str, ...], Forecast | None]:
    """The choice within a budget, which may be out of reach because of layers that were left out as slow."""
    try:
        if isinstance(budget, LatencyBudget):
            found, notes, forecast = within_latency(model, rows, wish, budget, seen)
            return found, (*notes, *seen.notes), forecast
        return *within_budget(model, rows, wish, budget, seen), None
    except SelectionError as error:
        if not slow:
            raise
        raise SelectionError(f"{error} Of {slow} {'layer' if slow == 1 else 'layers'} no factors were faster.") from error


def admitted(layers: DecomposableLayers, model: nn.Module, exclude: Sequence[Leave]) -> list[Decomposable]:
    """The layers that are not to be left alone; :class:`SelectionError` for a name or glob that matches nothing."""
    _check_excluded(layers, model, exclude)
    return [row for row in layers if not any(_is_meant(row, model, leave) for leave in exclude)]


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
        raise _refused(refused)
    return found


def _refused(reasons: Mapping[str, str]) -> SelectionError:
    return SelectionError("These layers cannot be factorized so:\n  " + "\n  ".join(f"{name}: {why}" for name, why in reasons.items()))


def _chosen(model: nn.Module, row: Decomposable, choice: RankChoice, wish: Decompose) -> Found:
    """The rank of one layer by the first method that applies to it."""
    if not row.fitting:
        return Refusal(row.reason or "no method applies to it")
    method = next((method for method in wish.methods if method.name in row.fitting), None)
    if method is None:
        return Refusal(f"only {' and '.join(row.fitting)} would apply to it")
    rule = choice if callable(choice) else ByHand(choice)
    size = row.calls[0].size if row.calls else None
    rank = choose_rank(model.get_submodule(row.name), method, rule, accept_dearer=wish.accept_dearer, trust_forward=row.trusted, size=size)
    return rank if isinstance(rank, Refusal) else wish.edit(row.name, method, rank)


def _reasons(refused: Mapping[str, str]) -> tuple[str, ...]:
    """One note a reason, with the layers that it holds for."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in refused.items():
        by_reason[reason].append(name or "the model itself")
    return tuple(f"not factorized: {', '.join(names)}: {reason}" for reason, names in by_reason.items())
