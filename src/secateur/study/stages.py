"""Carry a plan out, stage by stage: each run of edits of one kind on the model that the runs before it leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from secateur.capture import Capture
from secateur.errors import RewriteError, SecateurError
from secateur.layers import Layers
from secateur.plan import Edit, Factorize, Plan, Prune
from secateur.rewrite import TOLERANCE, Cut, FactorizedLayer, Proof, Rewritten, rewrite, rewrite_factorized
from secateur.rewrite.apply import Kind, Prefer
from secateur.rewrite.planned import planned_cut
from secateur.rewrite.prove import join_proofs
from secateur.rewrite.restrict import restrict
from secateur.study.calibration import Calibration

if TYPE_CHECKING:
    from secateur.study.study import Study

Between = Callable[[nn.Module, Cut], Sequence[str]]
"""Gives what a cut left new values, in place, before it is factorized, and says so in notes."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One run of edits, made."""

    before: Study
    edits: tuple[Prune, ...] | tuple[Factorize, ...]
    """Those that were made: the class may have held less than the plan asked for."""
    done: Rewritten
    factorized: tuple[FactorizedLayer, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Carried:
    """A plan carried out: the smaller model with the proofs of all stages."""

    model: nn.Module
    kind: Kind
    plan: Plan
    proof: Proof
    capture: Capture
    layers: Layers
    """The layers that channels were removed from: those of the dense model, unless layers were factorized before."""
    stages: tuple[Mapping[str, Any], ...]
    """The kind of each stage's model, and the attributes of the class that follow its sizes: what loading replays."""
    factorized: tuple[FactorizedLayer, ...]
    notes: tuple[str, ...]


def carry_out(
    found: Study,
    plan: Plan,
    *,
    prefer: Prefer = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    data: Calibration | None = None,
    between: Between | None = None,
) -> Carried:
    """Make all edits of a plan on a studied model, and prove every stage; the model stays as it is.

    ``between`` is given every pruned model, once proven, in plans that factorize layers too. Pruning is proven equal to the masked
    model, factors to the model with recomposed weights, each in the model as the stage before left it; the proof holds the trials of all.
    Raises :class:`PlanError` if the plan belongs to another model, :class:`ProofError` if a stage cannot be proven.
    """
    plan.check(found.fingerprint)
    after = between if plan.factorizations else None
    made = list(stages(found, plan.stages or ((),), prefer=prefer, tolerance=tolerance, seed=seed, data=data, between=after))
    cut = next((stage.before for stage in made if stage.edits and isinstance(stage.edits[0], Prune)), found)
    last = made[-1].done
    return Carried(
        model=last.model,
        kind="graph" if any(stage.done.kind == "graph" for stage in made) else "module",
        plan=replace(plan, edits=tuple(edit for stage in made for edit in stage.edits)),
        proof=join_proofs([stage.done.proof for stage in made]),
        capture=last.capture,
        layers=cut.layers,
        stages=tuple({"kind": stage.done.kind, "attributes": stage.done.attributes} for stage in made),
        factorized=tuple(row for stage in made for row in stage.factorized),
        notes=tuple(note for stage in made for note in (*stage.notes, *stage.done.notes)),
    )


def stages(
    found: Study,
    runs: Sequence[Sequence[Edit]],
    *,
    prefer: Prefer = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    data: Calibration | None = None,
    between: Between | None = None,
) -> Iterator[Stage]:
    """Make runs of edits one after the other, each on a study of what the one before left, and left by ``between``."""
    for number, edits in enumerate(runs):
        prunes = tuple(edit for edit in edits if isinstance(edit, Prune))
        factors = tuple(edit for edit in edits if isinstance(edit, Factorize))
        if factors:
            # A graph that a stage before made holds factors as it is.
            held: Prefer = prefer if number == 0 or prefer != "graph" else "auto"
            done, rows = rewrite_factorized(found.solution, factors, data, prefer=held, tolerance=tolerance, seed=seed)
            stage = Stage(found, factors, done, tuple(rows))
        else:
            stage = _pruned(found, prunes, prefer, tolerance, seed)
            if between is not None and stage.edits:
                told = between(
                    stage.done.model, planned_cut(found.solution, found.groups, [e for e in stage.edits if isinstance(e, Prune)])
                )
                stage = replace(stage, notes=(*stage.notes, *told))
        yield stage
        if number + 1 < len(runs):
            found = found.again(stage.done.model)


def _pruned(found: Study, edits: tuple[Prune, ...], prefer: Prefer, tolerance: float, seed: int) -> Stage:
    """Make all edits, or those that the user's class can hold where it is asked for, or where no graph can take its place."""
    if prefer == "module":
        return _in_class(found, edits, tolerance, seed)
    try:
        return Stage(found, edits, rewrite(planned_cut(found.solution, found.groups, edits), prefer=prefer, tolerance=tolerance, seed=seed))
    except RewriteError as refusal:
        if prefer == "graph":
            raise
        try:
            stage = _in_class(found, edits, tolerance, seed)
        except SecateurError:
            raise refusal from None
        return replace(stage, notes=(f"only some edits were made, since neither the class nor a graph holds all: {refusal}", *stage.notes))


def _in_class(found: Study, edits: tuple[Prune, ...], tolerance: float, seed: int) -> Stage:
    kept, notes = _held_by_class(found, edits, tolerance, seed)
    done = rewrite(planned_cut(found.solution, found.groups, kept), prefer="module", tolerance=tolerance, seed=seed)
    return Stage(found, kept, done, notes=notes)


def _held_by_class(found: Study, edits: tuple[Prune, ...], tolerance: float, seed: int) -> tuple[tuple[Prune, ...], tuple[str, ...]]:
    """The edits that the user's class can hold, and which layers therefore stay whole."""
    groups = {g.name: g for g in found.groups}

    def holds(chosen: Sequence[Prune]) -> bool:
        try:
            rewrite(planned_cut(found.solution, found.groups, chosen), prefer="module", tolerance=tolerance, seed=seed)
        except SecateurError:
            return False
        return True

    def unheaded(edit: Prune) -> bool:
        return edit.kind == "blocks" or groups[edit.group].rows == 1

    def one_writer(edit: Prune) -> bool:
        return edit.kind == "channels" and unheaded(edit) and len(groups[edit.group].writers) == 1

    planned_cut(found.solution, found.groups, edits)
    kept = restrict(edits, holds, [unheaded, one_writer])
    if not kept and edits:
        raise RewriteError(f"The forward of {type(found.model).__name__} holds none of this plan's edits. Use prefer='auto' or 'graph'.")
    lost = [edit.name for edit in edits if edit not in kept]
    note = (f"kept whole, since {type(found.model).__name__} cannot hold them smaller: {', '.join(lost)}",) if lost else ()
    return tuple(edit for edit in edits if edit in kept), note
