"""The whole story in one screen: study, plan, apply, recover, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocate import Allocator, Leave, Options
from secateur.errors import RewriteError, SecateurError
from secateur.measure import compare_latency, measure
from secateur.plan import Edit, Plan, Prune
from secateur.recover import reestimate_batch_norm
from secateur.result import Result
from secateur.rewrite import TOLERANCE, rewrite
from secateur.rewrite.apply import Prefer
from secateur.rewrite.restrict import restrict
from secateur.score import L2, Scorer
from secateur.score.batches import Data, calibration_inputs
from secateur.study import Study, study
from secateur.target import Target


def apply(
    model: nn.Module | torch.export.ExportedProgram | Study,
    plan: Plan,
    inputs: Any = (),
    *,
    prefer: Prefer = "auto",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Result:
    """Carry out a plan and prove the result equal to the masked dense model; the given model stays as it is.

    Args:
        model: the model that the plan was made for, or a study of it.
        inputs: example inputs, as for :func:`study`.
        prefer: ``"auto"`` keeps the user's class where its forward can hold the smaller tensors and returns a graph
            otherwise; ``"module"`` and ``"graph"`` allow only one of them.
        tolerance: the largest error of the proof, relative to the scale of the outputs and to their change between inputs.

    Raises:
        PlanError: the plan belongs to another model.
        ProofError: the smaller model is not equal to the masked dense one.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> result = sc.apply(model, sc.study(model, x).plan(ratio=0.5), x)
        >>> result.model[0].out_features, result.proof.holds
        (4, True)
    """
    found = model if isinstance(model, Study) else study(model, inputs)
    notes: tuple[str, ...] = ()
    if prefer == "module":
        plan, notes = _held_by_class(found, plan, tolerance, seed)
    done = rewrite(found.cut(plan), prefer=prefer, tolerance=tolerance, seed=seed)
    return Result(
        model=done.model,
        kind=done.kind,
        plan=plan,
        proof=done.proof,
        before=measure(found.capture),
        after=measure(done.capture),
        layers=found.layers,
        args=found.capture.args,
        kwargs=found.capture.kwargs,
        attributes=done.attributes,
        notes=(*plan.settings.get("notes", ()), *notes, *done.notes),
    )


def _held_by_class(found: Study, plan: Plan, tolerance: float, seed: int) -> tuple[Plan, tuple[str, ...]]:
    """The part of a plan that the user's class can hold, and which layers therefore stay whole."""
    groups = {g.name: g for g in found.groups}

    def holds(edits: Sequence[Edit]) -> bool:
        try:
            rewrite(found.cut(replace(plan, edits=tuple(edits))), prefer="module", tolerance=tolerance, seed=seed)
        except SecateurError:
            return False
        return True

    def unheaded(edit: Edit) -> bool:
        return not isinstance(edit, Prune) or edit.kind == "blocks" or groups[edit.group].rows == 1

    def one_writer(edit: Edit) -> bool:
        return isinstance(edit, Prune) and edit.kind == "channels" and unheaded(edit) and len(groups[edit.group].writers) == 1

    found.cut(plan)
    kept = restrict(plan.edits, holds, [unheaded, one_writer])
    if not kept:
        raise RewriteError(f"The forward of {type(found.model).__name__} holds none of this plan's edits. Use prefer='auto' or 'graph'.")
    lost = [e.name for e in plan.edits if e not in kept]
    note = (f"kept whole, since {type(found.model).__name__} cannot hold them smaller: {', '.join(lost)}",) if lost else ()
    return replace(plan, edits=tuple(e for e in plan.edits if e in kept)), note


def compress(
    model: nn.Module | torch.export.ExportedProgram,
    inputs: Any = (),
    *,
    ratio: float | None = None,
    target: Target | None = None,
    criterion: Scorer | None = None,
    allocator: Allocator | None = None,
    heads: float | Mapping[str, float] | None = None,
    exclude: Sequence[Leave] = (),
    options: Options | None = None,
    data: Data | None = None,
    prefer: Prefer = "auto",
    latency: bool = True,
    seed: int = 0,
) -> Result:
    """Do all of it: find the channels, score them, cut to a ratio or a target, prove, recover batch norm, and time both models.

    Args:
        target: what may remain of MACs or parameters; half of the MACs if neither it nor a ratio is given.
        data: calibration data: batches, a tensor of samples, a file, a folder of images or ``module:function``. With it
            batch-norm statistics are estimated anew, and criteria that look at activations can be used.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
        >>> sc.compress(model, torch.randn(1, 3, 8, 8), target=sc.Target(macs=0.5), latency=False).proof.holds
        True
    """
    target = target if target or ratio is not None else Target(macs=0.5)
    held = data if data is None or isinstance(data, Tensor | str | Path) else list(data)
    found = study(model, inputs)
    plan = found.plan(
        criterion or L2(), ratio=ratio, target=target, allocator=allocator, heads=heads, exclude=exclude, options=options, data=held
    )
    result = apply(found, plan, prefer=prefer, seed=seed)
    if held is not None:
        reestimate_batch_norm(result.model, calibration_inputs(found.capture, held))
    if latency:
        timed = compare_latency({"dense": found.model, "compressed": result.model}, result.args, result.kwargs)
        result = replace(result, latency=timed, notes=(*result.notes, *_slower(timed)))
    return result


def _slower(timed: Mapping[str, Any]) -> tuple[str, ...]:
    dense, small = timed["dense"].median_ms, timed["compressed"].median_ms
    return (f"the compressed model measured slower than the dense one: {small:.2f} ms against {dense:.2f} ms",) if small > dense else ()
