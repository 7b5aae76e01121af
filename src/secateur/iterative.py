"""Cut a little, train, and cut again: the last model, with one plan that leads to it from the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur.allocate import Allocator, Leave, Options
from secateur.errors import RewriteError, SecateurError, SelectionError
from secateur.measure import compare_outputs
from secateur.measure.evaluation import evaluating
from secateur.pipeline import STANDARD, apply, recovered
from secateur.plan import Plan
from secateur.recover import Recovery
from secateur.recover.recovery import own_tensors
from secateur.result import Result
from secateur.rewrite import Cut, compose, edits_of
from secateur.rewrite.apply import Prefer
from secateur.score import Scorer
from secateur.score.batches import Data
from secateur.study import Study, study
from secateur.target import Target
from secateur.tune import FineTune, Record
from secateur.tune.data import TrainingData
from secateur.tune.losses import Loss

Spacing = Literal["geometric", "even"]
AGREE = 1e-4
"""How far the outputs of the model that the one plan makes may be from the last step's, relative to them."""
SHORT = FineTune(epochs=1)


@dataclass(frozen=True, eq=False)
class Step:
    """One cut and the training behind it."""

    target: float
    """What may remain of the dense model behind this step, or with a ratio the share of channels that stays."""
    result: Result
    """The trained model beside the one before; its plan belongs to the latter."""
    record: Record


@dataclass(frozen=True, eq=False)
class Iterated:
    """What came of cutting and training in steps."""

    result: Result
    """The last model beside the dense one. Where the steps' plans made no single one, its plan is that of the last step alone."""
    steps: tuple[Step, ...]
    composed: bool
    """Whether the result's plan leads from the dense model to the last one."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plan of each step, for the model that the step before left."""
        return tuple(step.result.plan for step in self.steps)


@dataclass(frozen=True)
class Iterative:
    """Prune a bit, train, prune again, until a target is reached.

    Behind step i of n the share f^(i/n) of the dense model remains (geometric), or 1 - (1 - f) i/n (even). Each step scores the
    model as it is by then, and proves its cut. At the end the cuts are put together into one plan for the dense model, which is
    carried out and proven once more and gets the trained weights; so it saves and loads like any other result. Where no plan says
    what all steps did together, as with groups that are coupled differently in the smaller models, the plans stay a list.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
        >>> x, y = torch.randn(64, 4), torch.randint(0, 3, (64,))
        >>> done = sc.Iterative(steps=2, tune=sc.FineTune(epochs=1))(model, x, (x, y), target=sc.Target(macs=0.5))
        >>> done.composed, [step.result.model[0].out_features for step in done.steps], done.result.plan.ratios
        (True, [11, 8], {'0': 0.5})
    """

    steps: int = 5
    """How many cuts."""
    tune: FineTune = SHORT
    """The training behind each cut; with checkpoints, each step has a directory of its own in theirs."""
    last: FineTune | None = None
    """The training behind the last cut; by default as behind the others."""
    spacing: Spacing = "geometric"
    """Each step leaves the same share of the one before, or takes away the same amount."""
    recover: Recovery = STANDARD
    """What is done between cut and training, where there are calibration data."""
    distil: bool = True
    """Let the dense model be the teacher."""
    prefer: Prefer = "auto"
    """As for :func:`~secateur.apply`."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SelectionError(f"There are {self.steps} steps; it takes one or more.")

    def __call__(
        self,
        model: nn.Module,
        inputs: Any,
        training: TrainingData,
        *,
        target: Target | None = None,
        ratio: float | None = None,
        criterion: Scorer | None = None,
        allocator: Allocator | None = None,
        exclude: Sequence[Leave] = (),
        options: Options | None = None,
        calibration: Data | None = None,
        metric: Callable[[nn.Module], float] | None = None,
        loss: Loss | None = None,
        resume: bool = False,
    ) -> Iterated:
        """Cut and train in steps; the given model stays as it is.

        Args:
            inputs: example inputs, as for :func:`~secateur.study`.
            training: as for :class:`~secateur.FineTune`.
            target: what may remain of the MACs or parameters at the end.
            ratio: or the fraction of the channels that goes.
            calibration: for criteria that look at activations, and for recovery.
            resume: go on from the checkpoints of all steps; what is finished is planned and cut again, not trained again.
        """
        dense = study(model, inputs)
        choose: dict[str, Any] = {
            "criterion": criterion,
            "allocator": allocator,
            "exclude": exclude,
            "options": options,
            "data": calibration,
        }
        train: dict[str, Any] = {"metric": metric, "loss": loss, "resume": resume, "teacher": model if self.distil else None}
        done: list[Step] = []
        found, whole = dense, _Whole(dense)
        for number, (share, goal) in enumerate(self._goals(target, ratio)):
            plan = found.plan(**choose, **goal(dense, found))
            result = recovered(apply(found, plan, prefer=self.prefer), found, self.recover, calibration)
            whole.add(found.cut(result.plan))
            tuned = self._settings(number)(result.model, training, cut=whole.cut, **train)
            done.append(Step(share, tuned.into(result), tuned.record))
            found = found.again(tuned.model)
        settings: dict[str, Any] = {"target": None if target is None else repr(target), "ratio": ratio, "notes": []}
        return _finished(whole, done, settings, self.prefer)

    def _goals(self, target: Target | None, ratio: float | None) -> Iterator[tuple[float, Callable[[Study, Study], Mapping[str, Any]]]]:
        """For each step the share that is to remain, and what to ask a study of the model for."""
        if (target is None) == (ratio is None) or (target is not None and target.quantity not in ("macs", "parameters")):
            raise SelectionError("Steps lead to a target of MACs or parameters, or to a ratio: give one of them.")
        final = 1 - ratio if ratio is not None else target.fraction if target is not None else 1.0
        shares = [self._share(final, number) for number in range(self.steps + 1)]
        for before, after in pairwise(shares):
            yield after, _asked(target, before, after)

    def _share(self, final: float, number: int) -> float:
        place = number / self.steps
        return float(final**place) if self.spacing == "geometric" else 1 - (1 - final) * place

    def _settings(self, number: int) -> FineTune:
        settings = self.last if self.last is not None and number + 1 == self.steps else self.tune
        folder = settings.checkpoints
        return settings if folder is None else replace(settings, checkpoints=Path(folder) / f"step-{number + 1}")


def _asked(target: Target | None, before: float, after: float) -> Callable[[Study, Study], Mapping[str, Any]]:
    def goal(dense: Study, found: Study) -> Mapping[str, Any]:
        if target is None:
            return {"ratio": 1 - after / before}
        by_macs = target.quantity == "macs"
        whole, now = (dense.macs.total, found.macs.total) if by_macs else (dense.parameters, found.parameters)
        fraction = min(after * whole / max(now, 1), 1 - 1e-9)
        return {"target": Target(macs=fraction) if by_macs else Target(parameters=fraction)}

    return goal


class _Whole:
    """All cuts so far as one cut of the dense model, while there is one."""

    def __init__(self, dense: Study) -> None:
        self.dense = dense
        self.cut: Cut | None = None
        self.reason = ""

    def add(self, cut: Cut) -> None:
        """Put the next cut behind those before."""
        if self.reason:
            return
        try:
            self.cut = cut if self.cut is None else compose(self.cut, cut)
        except SecateurError as error:
            self.cut, self.reason = None, str(error)

    def plan(self, settings: Mapping[str, Any]) -> Plan:
        """The plan of all cuts; :class:`RewriteError` if there is none."""
        if self.cut is None:
            raise RewriteError(self.reason or "nothing was cut")
        return Plan(edits_of(self.cut, self.dense.groups), self.dense.fingerprint, settings)


def _finished(whole: _Whole, steps: Sequence[Step], settings: Mapping[str, Any], prefer: Prefer) -> Iterated:
    last = steps[-1].result
    try:
        plan = whole.plan({**last.plan.settings, **settings, "steps": [step.target for step in steps]})
        one = apply(whole.dense, plan, prefer=prefer)
        _take_values(one, last.model)
        notes = (f"cut in {len(steps)} steps with training between them", *(note for step in steps for note in step.record.notes))
        result = replace(one, metrics=_metrics(steps), notes=(*one.notes, *dict.fromkeys(notes)), recovered=("training",))
    except SecateurError as error:
        note = f"the plans of {len(steps)} steps make no single one for the dense model: {error}"
        result = replace(last, before=steps[0].result.before, metrics=_metrics(steps), notes=(*last.notes, note))
        return Iterated(result, tuple(steps), composed=False)
    return Iterated(result, tuple(steps), composed=True)


def _metrics(steps: Sequence[Step]) -> dict[str, float]:
    taken = {f"metric after step {number}": step.record.metric_after for number, step in enumerate(steps, start=1)}
    return {name: value for name, value in taken.items() if value is not None}


def _take_values(one: Result, trained: nn.Module) -> None:
    """Give a model the tensors of one of the same structure, and check that it computes the same then."""
    theirs = own_tensors(trained)
    own = own_tensors(one.model)
    unlike = sorted(name for name, tensor in own.items() if name not in theirs or theirs[name].shape != tensor.shape)
    if unlike:
        raise RewriteError(f"the model of the one plan has other tensors than the last step's: {', '.join(unlike[:4])}")
    for name, tensor in own.items():
        tensor.detach().copy_(theirs[name].detach())
    with evaluating([one.model, trained]):
        found = compare_outputs(lambda: trained(*one.args, **one.kwargs), lambda: one.model(*one.args, **one.kwargs), [()])
    if not found.relative_l2 <= AGREE:
        raise RewriteError(f"the model of the one plan gives outputs that are {found.relative_l2:.1e} off the last step's")
