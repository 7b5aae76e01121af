"""One study and one scoring, many targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import fx, nn

from secateur.allocate import Allocator, Leave, Options
from secateur.errors import SecateurError, SelectionError
from secateur.pipeline import STANDARD
from secateur.plan import Plan
from secateur.recover import Recovery
from secateur.rewrite.apply import Prefer
from secateur.score import Scorer
from secateur.score.batches import Data
from secateur.study import Study, study
from secateur.study.suited import suited
from secateur.sweep.metric import Evaluate, FidelityTo, metric_name
from secateur.sweep.points import Point, Sweep, reasons
from secateur.sweep.trial import Trial, Trials
from secateur.sweep.workers import Workers, check_workers, each
from secateur.target import Target

K = TypeVar("K")
TARGETS = (0.8, 0.65, 0.5, 0.35)
SAMPLES = 256


def sweep(  # noqa: PLR0913 - the whole story takes every setting
    model: nn.Module | torch.export.ExportedProgram | Study,
    inputs: Any = (),
    targets: Sequence[float | Target] = TARGETS,
    *,
    data: Data | None = None,
    evaluate: Evaluate | None = None,
    criterion: Scorer | None = None,
    allocator: Allocator | None = None,
    exclude: Sequence[Leave] = (),
    options: Options | None = None,
    recover: Recovery = STANDARD,
    prefer: Prefer = "auto",
    latency: bool = False,
    samples: int | None = SAMPLES,
    seed: int = 0,
    workers: Workers = None,
) -> Sweep:
    """Cut a model to several targets, and weigh what is left of a metric against what is left of the work.

    The model is studied and its channels are scored once. For each target a plan is made, carried out and proven, and the smaller model
    recovered and measured. The models are not kept: :func:`~secateur.apply` carries out the plan of a point again.

    Args:
        model: the model, or a study of it.
        inputs: example inputs, as for :func:`~secateur.study`.
        targets: what may remain: fractions of the MACs, or targets of MACs or of parameters, all of one kind.
        data: calibration data, as for :func:`~secateur.compress`; read once.
        evaluate: a function of a model in evaluation mode that returns a number, higher being better. Without one it is the fidelity:
            one minus the relative error of the outputs beside the dense model's, on the data, or on the example inputs.
        criterion: this and ``allocator``, ``exclude``, ``options``, ``recover`` and ``prefer`` are as for :func:`~secateur.compress`.
        latency: time each smaller model in turns with the dense one, too.
        samples: use so many samples of the data at most.
        workers: ``"ray"`` makes a task of Ray of each point (extra ``ray``), by the same code; by default they are worked on in turn.

    Raises:
        SelectionError: the targets are not of one kind or not distinct, or none can be reached; one that cannot is in ``missed``.
        MissingExtraError: Ray is asked for and not installed.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> found = sc.sweep(model, torch.randn(8, 4), [0.75, 0.5, 0.25])
        >>> [point.plan.ratios["0"] for point in found.points]
        [0.25, 0.5, 0.75]
    """
    goals = _goals(targets)
    check_workers(workers, latency=latency)
    found = model if isinstance(model, Study) else study(model, inputs)
    trials = Trials.of(found, data, evaluate, samples, recover=recover, prefer=prefer, latency=latency)
    way = suited(found, criterion=criterion, allocator=allocator, options=options, target=goals[0], data=trials.data, samples=samples)

    def plan(goal: Target) -> Plan:
        made = way.plan(found, target=goal, exclude=exclude)
        return replace(made, settings={**made.settings, "seed": seed})

    done, missed = tried(trials, {_name(goal): goal for goal in goals}, plan, "Sweeping over targets", workers)
    return _swept(trials, goals, done, missed)


def _swept(trials: Trials, goals: Sequence[Target], done: Mapping[str, Trial], missed: Mapping[str, str]) -> Sweep:
    quantity: Literal["macs", "parameters"] = "macs" if goals[0].quantity == "macs" else "parameters"
    return Sweep(
        model=model_name(trials.found.model),
        quantity=quantity,
        metric=metric_name(trials.evaluate),
        dense=trials.dense(),
        points=tuple(Point(**vars(done[_name(goal)]), target=goal.fraction) for goal in goals if _name(goal) in done),
        missed=reasons(missed),
        notes=what_was_measured(trials),
    )


def _goals(targets: Sequence[float | Target]) -> list[Target]:
    goals = [goal if isinstance(goal, Target) else Target(macs=goal) for goal in targets]
    kinds = {goal.quantity for goal in goals}
    if kinds not in ({"macs"}, {"parameters"}):
        raise SelectionError(f"A sweep goes over targets of MACs, or over targets of parameters, not over {sorted(kinds) or 'none'}.")
    if len({_name(goal) for goal in goals}) < len(goals):
        raise SelectionError(f"A sweep goes to each target once, not over {', '.join(map(_name, goals))}.")
    return goals


def _name(goal: Target) -> str:
    return f"{goal.fraction:g}"


def tried(
    trials: Trials, asked: Mapping[str, K], plan: Callable[[K], Plan], what: str, workers: Workers
) -> tuple[dict[str, Trial], dict[str, str]]:
    """What came of each plan by name, and of those that came to nothing the reason; :class:`SelectionError` if all did."""
    plans: dict[str, Plan] = {}
    missed: dict[str, str] = {}
    for name, wish in asked.items():
        try:
            plans[name] = plan(wish)
        except SecateurError as error:
            missed[name] = str(error)
    done: dict[str, Trial] = {}
    gpus = 1 if trials.accelerated else 0
    for name, outcome in zip(plans, each(trials, list(plans.values()), what, workers=workers, gpus=gpus), strict=True):
        if isinstance(outcome, str):
            missed[name] = outcome
        else:
            done[name] = outcome
    if not done:
        raise SelectionError("Nothing came of it. " + " ".join(f"{name}: {reason}" for name, reason in missed.items()))
    return done, {name: missed[name] for name in asked if name in missed}


def what_was_measured(trials: Trials) -> tuple[str, ...]:
    """A note on what the fidelity is worth."""
    if not isinstance(trials.evaluate, FidelityTo):
        return ()
    if trials.data is None:
        return ("fidelity is that on the example inputs, since there are no data",)
    return ("fidelity is that on the data which served the criterion and the recovery, too",)


def model_name(model: nn.Module) -> str:
    """What a person would call the model: its class, or that it is a graph."""
    return "Graph of layers" if isinstance(model, fx.GraphModule) else type(model).__name__
