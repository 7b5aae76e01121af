"""The criterion and the allocator that suit a model and its data, where nobody names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from secateur.allocate import Allocator, GlobalRank, Knapsack, Options, settled
from secateur.capture.decisions import weights_decide
from secateur.plan import Plan
from secateur.score import OBS, Scorer, Signal, Taylor
from secateur.score.batches import Data
from secateur.study.study import Study
from secateur.target import Target

ROOM_GIB = 4.0
"""Covariances that take more are not gathered."""


@dataclass(frozen=True, eq=False)
class Suited:
    """How channels are scored, compared and counted."""

    criterion: Scorer
    allocator: Allocator | None
    options: Options
    scores: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    def plan(self, found: Study, **wishes: Any) -> Plan:
        """The plan of a study, for wishes as :meth:`Study.plan` takes them."""
        plan = found.plan(self.criterion, allocator=self.allocator, options=self.options, scores=self.scores, **wishes)
        return replace(plan, settings={**plan.settings, "notes": [*self.notes, *plan.settings.get("notes", ())]})


def suited(
    found: Study,
    *,
    criterion: Scorer | None = None,
    allocator: Allocator | None = None,
    options: Options | None = None,
    target: Target | None = None,
    data: Data | None = None,
    samples: int | None = 256,
) -> Suited:
    """Settle what was left open, and score the channels.

    With data: by the error behind a refit (``OBS``), or where its covariances take too much memory by what the outputs lose (``Taylor``),
    divided by what channels cost. Without: by the part of the signal that weights and norms expect of them (``Signal``), in one ranking.
    A ratio in the place of a target is one for every layer. Without options, the widths for a target are multiples that processors like
    (``step_size=None``).

    Args:
        data: what can be read more than once: no iterator.
    """
    notes: tuple[str, ...] = ()
    if criterion is None and data is not None and weights_decide(found.capture):
        data, notes = None, ("what this model calls depends on its weights, so its graph tells nothing of other inputs than the example's",)
    chosen = criterion or (Signal() if data is None else _by_data(found))
    compared = allocator if criterion is not None or allocator is not None else _across(chosen, target)
    options = options or Options(step_size=1 if target is None else None)
    if criterion is None and compared is not None:
        options = replace(options, layer_norm="none")
    if compared is not None:
        options, told = settled(compared, options)
        notes = (*notes, *told)
    scores = found.scores(chosen, data=data, options=options, samples=samples)
    if criterion is None and data is not None and not any(bool(s.any()) for s in scores.values()):
        note = f"{chosen} finds no channel that the outputs depend on, so weights and norms decide"
        rest = suited(found, allocator=allocator, options=options, target=target)
        return replace(rest, notes=(note, *rest.notes))
    return Suited(chosen, compared, options, scores, notes)


def _by_data(found: Study) -> Scorer:
    needed = OBS().memory_gib(found.groups, found.solution)
    return OBS() if needed <= ROOM_GIB else Taylor()


def _across(criterion: Scorer, target: Target | None) -> Allocator | None:
    if target is None:
        return None
    if isinstance(criterion, Signal):
        return GlobalRank()
    return Knapsack(target.quantity)
