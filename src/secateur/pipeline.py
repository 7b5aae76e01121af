"""The whole story in one screen: study, plan, apply, recover, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from secateur.allocate import Allocator, Leave, Options
from secateur.errors import SecateurError, SelectionError
from secateur.measure import compare_latency, measure, slower_than_dense
from secateur.plan import Plan, Prune
from secateur.pretrained import Description, config_of, describe
from secateur.recover import Nothing, Recovery, Standard, reestimate_batch_norm, shift_batch_norm
from secateur.result import Result
from secateur.rewrite import TOLERANCE
from secateur.rewrite.apply import Prefer
from secateur.score import Scorer
from secateur.score.batches import Data, calibration_inputs
from secateur.score.batches import held as held_data
from secateur.study import Calibration, Study, calibration, carry_out, study
from secateur.study.cheaper import Cheaper
from secateur.study.stages import Between
from secateur.study.suited import suited
from secateur.study.uneven import uneven_widths
from secateur.study.wish import Decompose
from secateur.target import Target

HALF = Target(macs=0.5)
STANDARD = Standard()
SAMPLES = 256
"""Samples that factors are fitted to, as many as a refit takes."""


def apply(
    model: nn.Module | torch.export.ExportedProgram | Study,
    plan: Plan,
    inputs: Any = (),
    *,
    prefer: Prefer = "auto",
    tolerance: float = TOLERANCE,
    seed: int | None = None,
    data: Data | Calibration | None = None,
    samples: int | None = 256,
    between: Between | None = None,
) -> Result:
    """Carry out a plan and prove the result, stage by stage; the given model stays as it is.

    A pruned model is proven equal to the masked one, a factorized model to the one with recomposed weights. Factors are no part of a
    plan: they are computed here, from the weights and, where the plan fits them to inputs, from calibration data.

    Args:
        model: the model that the plan was made for, or a study of it.
        inputs: example inputs, as for :func:`study`.
        prefer: ``"auto"`` keeps the user's class where it can, else makes a graph; ``"module"`` and ``"graph"`` allow one of them.
        tolerance: the largest error of the proof, relative to the scale of the outputs and to their change between inputs.
        seed: starts the random inputs of the proof; by default the plan's own.
        data: calibration data, as for :meth:`Study.plan_decomposition`, of which ``samples`` are used at most.
        between: gives what a cut left new values before it is factorized, as a recovery does: :func:`recovering`.

    Raises:
        PlanError: the plan belongs to another model.
        ProofError: the smaller model is not equal to its reference.
        SelectionError: the plan fits factors to inputs, and there are no calibration data.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> result = sc.apply(model, sc.study(model, x).plan(ratio=0.5), x)
        >>> result.model[0].out_features, result.proof.holds
        (4, True)
    """
    found = model if isinstance(model, Study) else study(model, inputs)
    held = calibration(found.capture, data, samples) if plan.needs_data else None
    seed = int(plan.settings.get("seed", 0)) if seed is None else seed
    done = carry_out(found, plan, prefer=prefer, tolerance=tolerance, seed=seed, data=held, between=between)
    result = Result(
        model=done.model,
        kind=done.kind,
        plan=done.plan,
        proof=done.proof,
        before=measure(found.capture),
        after=measure(done.capture),
        layers=done.layers,
        args=found.capture.args,
        kwargs=found.capture.kwargs,
        stages=done.stages,
        factorized=done.factorized,
        notes=(*plan.settings.get("notes", ()), *_other_data(plan, held), *uneven_widths(found.groups, found.weights, plan), *done.notes),
        file_names=getattr(found.model, "file_names", None),
        recovered=("what was called between cut and factors",) if between is not None and plan.factorizations and plan.prunes else (),
    )
    return _with_config(result, found) if plan.settings.get("uniform") else result


def _with_config(result: Result, found: Study) -> Result:
    """A result of uniform widths with the config that describes it, or why none does."""
    described: Description | str
    if result.plan.factorizations:
        described = "layers were factorized, which no config tells"
    elif config_of(found.model) is None:
        described = f"{type(found.model).__name__} has no config that it can be built from"
    else:
        try:
            inputs = found.capture.args, dict(found.capture.kwargs)
            described = describe(found.cut(result.plan), found.groups, result.plan.prunes, result.model, inputs)
        except SecateurError as error:
            described = str(error)
    note = f"no config describes the model: {described}" if isinstance(described, str) else f"a config describes the model: {described}"
    return replace(result, pretrained=described, notes=(*result.notes, note))


def _other_data(plan: Plan, held: Calibration | None) -> tuple[str, ...]:
    """A note where factors are fitted to other data than those that the ranks were chosen with."""
    known = (plan.settings.get("decomposition", {}).get("calibration") or {}).get("digest")
    if held is None or known in (None, held.digest):
        return ()
    return ("the factors are fitted to other calibration data than the plan was made with",)


def compress(  # noqa: PLR0913 - the whole story takes every setting
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
    decompose: Decompose | Cheaper | None = None,
    data: Data | None = None,
    recover: Recovery = STANDARD,
    prefer: Prefer = "auto",
    latency: bool = True,
    seed: int = 0,
) -> Result:
    """Do all of it: find the channels, score them, cut to a ratio or a target, prove, recover, and time both models.

    Args:
        criterion: how channels are scored. By default by the error that a refit leaves (:class:`~secateur.OBS`) where there are data, else
            by the part of the signal that weights and norms expect of them (:class:`~secateur.Signal`).
        allocator: how layers are compared. By default, for a target and where no criterion is named, by loss against MACs or parameters
            (:class:`~secateur.Knapsack`), without data in one ranking; otherwise each layer loses the same ratio.
        target: what may remain of MACs, parameters, bytes or latency; half of the MACs if neither it, nor a ratio, nor a rank is given.
        decompose: factorize layers, at its ranks or at those that the target finds, after a cut to the ratio if there is one; by
            :class:`Cheaper` only those where that loses less.
        data: calibration data: batches, a tensor of samples, a file, a folder of images or ``module:function``. With it
            layers are refitted, and criteria that look at activations can be used.
        recover: what wins back the cut's loss once it is proven; by default :class:`~secateur.Standard`. It gives tensors new values and
            changes no shape; the result's notes say of it.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
        >>> sc.compress(model, torch.randn(1, 3, 8, 8), target=sc.Target(macs=0.5), latency=False).proof.holds
        True
        >>> sc.compress(model, torch.randn(1, 3, 8, 8), decompose=sc.Decompose(sc.SpatialSVD(), rank=2), latency=False).factorized[0].rank
        (2,)
    """
    held = None if data is None else held_data(data, _wanted(recover))
    found = study(model, inputs)

    def pruned(within: Target | None) -> Plan:
        way = suited(found, criterion=criterion, allocator=allocator, options=options, target=within, data=held)
        return way.plan(found, ratio=ratio, target=within, heads=heads, exclude=exclude)

    between = None if held is None else recovering(recover, held)
    if decompose is None:
        plan = pruned(target or (None if ratio is not None else HALF))
    elif isinstance(decompose, Cheaper):
        _require_nothing(ratio=ratio, heads=heads, criterion=criterion, allocator=allocator, options=options)
        plan = decompose.plan(found, target or HALF, held, exclude=exclude, samples=SAMPLES, between=between)
    else:
        start = found.after(pruned(None), between=between) if ratio is not None or heads is not None else found
        plan = _decomposed(start, decompose, target, exclude, held)
    plan = replace(plan, settings={**plan.settings, "seed": seed})
    result = recovered(apply(found, plan, prefer=prefer, data=held, samples=SAMPLES, between=between), found, recover, held)
    return _timed(result, found) if latency else result


def _wanted(recover: Recovery) -> int | None:
    """How many calibration samples serve anything: those of the scores and of the factors, or more if the recovery takes more."""
    samples: int | None = getattr(recover, "samples", SAMPLES if isinstance(recover, Nothing) else None)
    return None if samples is None else max(samples, SAMPLES)


def _timed(result: Result, found: Study) -> Result:
    latency = compare_latency({"dense": found.model, "compressed": result.model}, result.args, result.kwargs)
    return replace(result, latency=latency, notes=(*result.notes, *slower_than_dense(latency)))


def recovering(recover: Recovery, data: Data) -> Between:
    """A recovery with data, for :func:`apply` to run on what a cut left before it is factorized."""
    return lambda model, cut: recover(model, cut, data).notes


def _require_nothing(**given: object) -> None:
    said = [name for name, value in given.items() if value is not None]
    if said:
        raise SelectionError(f"Cheaper() finds the channels itself, by what their readers lose: leave out {', '.join(said)}.")


def recovered(result: Result, found: Study, recover: Recovery, data: Data | None) -> Result:
    """A result after recovery, in place; where layers were factorized, batch-norm statistics move with what that changed."""
    if not result.plan.factorizations:
        done = recover(result.model, found.cut(result.plan), data)
        return result.taken_from(done)
    count = _batch_norm(result, found, data) if data is not None and not isinstance(recover, Nothing) else 0
    note = f"the statistics of {count} batch-norm layers were adapted after the proof"
    return replace(result, notes=(*result.notes, note), recovered=(*result.recovered, "batch norm")) if count else result


def _batch_norm(result: Result, found: Study, data: Data) -> int:
    """Adapt batch-norm statistics, by what the plan changed where its cut is one of the dense model."""
    given = list(calibration_inputs(found.capture, data))
    if any(isinstance(edit, Prune) for stage in result.plan.stages[1:] for edit in stage):
        return reestimate_batch_norm(result.model, given)
    return shift_batch_norm(result.model, found.model, found.cut(result.plan), given)


def _decomposed(start: Study, wish: Decompose, target: Target | None, exclude: Sequence[Leave], data: Data | None) -> Plan:
    settings = {f.name: getattr(wish, f.name) for f in fields(wish)}
    within = target or (HALF if wish.rank is None else None)
    return start.plan_decomposition(**settings, target=within, exclude=exclude, data=data, samples=SAMPLES)
